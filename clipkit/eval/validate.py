"""Is an evaluation set whole? Every image is decoded, every label and caption read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from clipkit.data.eval_sets import EvalSet
from clipkit.data.mixed_set import open_mixed_set
from clipkit.data.selection_set import open_selection
from clipkit.data.wds_folder import KINDS, WdsFolder, open_folder
from clipkit.errors import ClipkitError, DataError
from clipkit.eval.embed import ImageSource

_AHEAD = 64  # images decoded between two looks at the result
_ENOUGH = 100  # problems after which reading more helps nobody


@dataclass
class Validation:
    """What a set holds and what is wrong with it."""

    samples: int = 0
    problems: list[str] = field(default_factory=list)


def validate_set(place: EvalSet, kind: str) -> Validation:
    """Read a set as one of its types, all of it."""
    found = Validation()
    try:
        if kind in KINDS:
            folder = open_folder(place.root, place.split, kind=kind)
            found.samples = len(folder)
            _check_targets(folder)
            _check_images(folder, found)
        elif kind == "selection":
            selection = open_selection(place.root, place.split)
            found.samples = len(selection)
            _check_images(selection.source, found)
        else:
            mixed = open_mixed_set(place.root, place.split)
            found.samples = len(mixed)
            _check_images(mixed.image_files, found)
    except ClipkitError as error:
        found.problems.append(str(error))
    return found


def _check_targets(folder: WdsFolder) -> None:
    """Labels or captions of every sample.

    Raises:
        DataError: The first that is missing or wrong.
    """
    if folder.kind == "retrieval":
        folder.captions()
    elif folder.kind == "multilabel":
        folder.label_sets()
    else:
        folder.labels()


def _check_images(source: ImageSource, found: Validation) -> None:
    def problem(index: int) -> str:
        try:
            next(iter(source.images(index, index + 1)))
        except DataError as error:
            return str(error)
        return ""

    console = Console(stderr=True)
    starts = range(0, len(source), _AHEAD)
    with ThreadPoolExecutor(8) as pool:
        for start in track(starts, Path(source.place).name, console=console, transient=True):
            stop = min(start + _AHEAD, len(source))
            found.problems += [p for p in pool.map(problem, range(start, stop)) if p]
            if len(found.problems) >= _ENOUGH:
                return
