"""Evaluation sets on disk: what a folder can be read as, and which sets lie below a root.

| type           | how it is known                                            | reader           |
|----------------|------------------------------------------------------------|------------------|
| classification | classnames.txt, zeroshot_classification_templates.txt      | wds_folder.py    |
| multilabel     | dataset_type.txt says so; .npy of zeros and ones           | wds_folder.py    |
| retrieval      | dataset_type.txt says so; .txt with one caption a line     | wds_folder.py    |
| selection      | <split>/selection.jsonl                                    | selection_set.py |
| mixed_search   | queries.jsonl, mixed_corpus.jsonl and qrels (MixBench)     | mixed_set.py     |

A folder can be of several types: `shapes` is a retrieval and a selection set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipkit.errors import DataError

TYPES = ("classification", "multilabel", "retrieval", "selection", "mixed_search")


@dataclass(frozen=True)
class EvalSet:
    """A folder and split.

    Attributes:
        root: The folder.
        split: Of its shards.
        types: What it can be read as; never empty.
    """

    root: Path
    split: str
    types: tuple[str, ...]

    @property
    def name(self) -> str:
        """As results show it."""
        return self.root.name if self.split == "test" else f"{self.root.name}/{self.split}"


def types_of(root: Path, split: str) -> tuple[str, ...]:
    """What a folder can be read as; () where it is no evaluation set."""
    found = []
    shards = (root / split).is_dir() or any(root.glob(f"{split}-*.tar"))
    kind = root / "dataset_type.txt"
    if shards and kind.is_file():
        try:
            found.append(kind.read_text(encoding="utf-8").strip())
        except UnicodeDecodeError:
            raise DataError(f"{kind} cannot be read as UTF-8 text") from None
    elif shards and (root / "classnames.txt").is_file():
        found.append("classification")
    if (root / split / "selection.jsonl").is_file():
        found.append("selection")
    if (root / "mixed_corpus.jsonl").is_file():
        found.append("mixed_search")
    return tuple(dict.fromkeys(found))


def find_sets(root: str | Path, split: str = "test") -> list[EvalSet]:
    """The set at `root`, or those in the folders right below it.

    Raises:
        DataError: Nothing there.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"evaluation set '{root}': no such folder")
    folders = [root] if types_of(root, split) else sorted(p for p in root.iterdir() if p.is_dir())
    sets = [EvalSet(p.resolve(), split, types_of(p, split)) for p in folders if types_of(p, split)]
    if not sets:
        raise DataError(
            f"evaluation set '{root}': neither it nor a folder in it holds {split} shards with "
            f"classnames.txt or dataset_type.txt, a selection.jsonl, or a mixed_corpus.jsonl"
        )
    return sets
