"""Stored results to report on: of a real run over colour sets, and made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipkit.dist.group import World
from clipkit.eval.base import EvalResult
from clipkit.eval.embed import Embedder
from clipkit.eval.results import StoredResult, result_path, write_result
from clipkit.eval.zero_shot import ZeroShotEval
from tests.fixtures_encoder import color_encoder, write_color_set

LABELS = [0, 0, 0, 1, 1, 2, 3, 3]


def store(
    out: Path, result: EvalResult, kind: str, model: str = "m", step: int | None = None, **more: Any
) -> StoredResult:
    """A result as a run of evaluations leaves it."""
    facts = {
        "kind": kind,
        "model_name": model,
        "key": "k",
        "step": step,
        "model": "ViT-tiny",
        "pretrained": f"runs/{model}",
        "weights_hash": (model * 64)[:64],
        "precision": "fp32",
        "versions": {"clipkit": "0.1.0", "torch": "2.15"},
        **more,
    }
    return write_result(result_path(out, model, result.dataset, kind), result, facts)


def zero_shot(place: Path, model: str = "m", step: int | None = None) -> StoredResult:
    """Colours named by a model that takes blue for green."""

    def confuse(color: Any) -> Any:
        color = color.clone()
        color[color[:, 2] > color[:, 0] + 100] = color.new_tensor([12.0, 240.0, 10.0])
        return (color - 120) / (color - 120).norm(dim=-1, keepdim=True)

    data = place / "colors"
    if not data.exists():
        write_color_set(data, LABELS)
    task = ZeroShotEval(str(data), "colors")
    result = task.run(Embedder(color_encoder(confuse), World()))
    return store(place / "results", result, "zero_shot", model, step)


def made_up(
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]] | None = None,
    dataset: str = "made",
    **rest: Any,
) -> EvalResult:
    """A result without a data set behind it."""
    return EvalResult("task", dataset, {"n": 10, **metrics}, intervals or {}, **rest)


def made_gap() -> EvalResult:
    """Details of the geometry of two modalities."""
    details = {
        "pca": {"image": [[0.0, 1.0], [1.0, 0.5]], "text": [[-1.0, 0.0]]},
        "cosines": {"edges": [0.0, 0.5, 1.0], "matched": [1, 3], "mismatched": [6, 2]},
    }
    return made_up({"rmg": 0.7}, {"rmg": (0.6, 0.8)}, "pairs", details=details)
