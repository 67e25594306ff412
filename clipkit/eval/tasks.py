"""An evaluation folder -> the evaluator of its type."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clipkit.dist.group import World
from clipkit.eval.base import EvalResult
from clipkit.eval.retrieval import RetrievalEval
from clipkit.eval.zero_shot import ZeroShotEval
from clipkit.towers.dual import FeatureEncoder


class Evaluator(Protocol):
    """Any evaluation task."""

    name: str

    def check(self) -> object:
        """Open the data set; raises DataError before any training is spent."""
        ...

    def run(self, model: FeatureEncoder, world: World) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        ...


def task_for_folder(data: str, split: str = "test") -> Evaluator:
    """The evaluator that `dataset_type.txt` asks for; without one, zero-shot classification."""
    root = Path(data)
    kind = root / "dataset_type.txt"
    name = root.name if split == "test" else f"{root.name}/{split}"
    if kind.is_file() and kind.read_text().strip() == "retrieval":
        return RetrievalEval(data, name, split=split)
    return ZeroShotEval(data, name, split=split)
