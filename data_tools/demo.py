"""Build the demo data: real digits and rendered scenes as shards, the same bytes every time.

Layout of the result (counts in `demo.json`):

    digits/     train-*.tar (png txt cls), test/ (png cls),
                classnames.txt, zeroshot_classification_templates.txt
    shapes/     train-*.tar, test/, unseen/ (held-out combinations; all png txt json),
                dataset_type.txt
    relations/  train-*.tar, test/ (all png txt json), dataset_type.txt

`test/` and `unseen/` hold `nshards.txt` and `0.tar`, CLIP_benchmark's webdataset layout; those of
scenes also `selection.jsonl`, which asks for the caption against each of its hard negatives.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from webdataset import TarWriter

from clipkit.errors import DataError
from data_tools import demo_digits, demo_shapes

VERSION = 2  # raise it when the bytes change, so that older folders are rebuilt
SIZES = {
    "digits_train": 1437,
    "digits_test": 360,
    "shapes_train": 6000,
    "shapes_test": 200,
    "shapes_unseen": 200,
    "relations_train": 2000,
    "relations_test": 200,
}
DIGITS_PER_SHARD = 300
SCENES_PER_SHARD = 500
Sample = dict[str, bytes]  # suffix -> bytes of one tar member
Tick = Callable[[], None]


def build_demo(out: Path, seed: int = 0) -> bool:
    """Write the demo data sets to `out`, or do nothing when they are there already.

    The folder appears in one rename, so an interrupted build leaves no half data set.

    Args:
        out: Folder to create. A demo of another version or seed is replaced.
        seed: Draws caption templates and scenes; the digits split does not depend on it.

    Returns:
        False when `out` was up to date.

    Raises:
        DataError: `out` is a file, or a folder with other things in it.
    """
    summary = {
        "version": VERSION,
        "parameters": {"seed": seed, **SIZES},
        "held_out": sorted(" ".join(item) for item in demo_shapes.HELD_OUT),
    }
    if _present_summary(out) == summary:
        return False
    # abspath: "." and "x/.." have no usable name to put the temporary folder beside.
    out = Path(os.path.abspath(out))
    staging = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("demo data", total=sum(SIZES.values()))
            _build_all(staging, seed, lambda: progress.advance(task))
        _write_lines(staging / "demo.json", [json.dumps(summary, indent=2)])
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def _present_summary(out: Path) -> object:
    """Read the `demo.json` of an existing demo; None when there is nothing to keep at `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if out.is_dir():
        try:
            summary = json.loads((out / "demo.json").read_text())
        except (OSError, ValueError):
            summary = None
        if isinstance(summary, dict) and {"version", "parameters"} <= summary.keys():
            return summary
    raise DataError(
        f"{out} exists and is not a demo data folder: name a new or an empty folder, or remove it"
    )


def _replace(staging: Path, out: Path) -> None:
    """Move the finished folder to its place; an older demo steps aside first."""
    if out.exists():
        old = out.with_name(f"{out.name}.old-{os.getpid()}")
        out.rename(old)
        staging.rename(out)
        shutil.rmtree(old)
    else:
        staging.rename(out)


def _build_all(root: Path, seed: int, tick: Tick) -> None:
    """Write the three data sets; `tick` is called once a sample."""
    train, test = demo_digits.load_digit_samples(seed)
    digits = root / "digits"
    _write_train(digits, train, DIGITS_PER_SHARD, tick)
    _write_test(digits / "test", test, tick)
    _write_lines(digits / "classnames.txt", demo_digits.CLASSNAMES)
    _write_lines(digits / "zeroshot_classification_templates.txt", demo_digits.TEMPLATES)

    shapes = root / "shapes"
    scenes = demo_shapes.shapes_train(SIZES["shapes_train"], seed)
    _write_train(shapes, scenes, SCENES_PER_SHARD, tick)
    for split in ("test", "unseen"):
        scenes = demo_shapes.shapes_test(SIZES[f"shapes_{split}"], seed, split == "unseen")
        _write_test(shapes / split, scenes, tick)
    _write_lines(shapes / "dataset_type.txt", ["retrieval"])

    relations = root / "relations"
    scenes = demo_shapes.relations_train(SIZES["relations_train"], seed)
    _write_train(relations, scenes, SCENES_PER_SHARD, tick)
    _write_test(relations / "test", demo_shapes.relations_test(SIZES["relations_test"], seed), tick)
    _write_lines(relations / "dataset_type.txt", ["retrieval"])


def _write_train(folder: Path, samples: Iterable[Sample], per_shard: int, tick: Tick) -> None:
    """Write `train-00000.tar` and so on; keys are unique over the shards."""
    folder.mkdir()
    keyed = [(f"{folder.name}-{index:06d}", sample) for index, sample in enumerate(samples)]
    for shard, start in enumerate(range(0, len(keyed), per_shard)):
        _write_tar(folder / f"train-{shard:05d}.tar", keyed[start : start + per_shard], tick)


def _write_test(folder: Path, samples: Iterable[Sample], tick: Tick) -> None:
    """Write one split in CLIP_benchmark's webdataset layout."""
    folder.mkdir()
    keyed = [(f"s{index:07d}", sample) for index, sample in enumerate(samples)]
    _write_tar(folder / "0.tar", keyed, tick)
    scenes = [(key, sample) for key, sample in keyed if "json" in sample]
    if scenes:
        items = [item for scene in scenes for item in demo_shapes.selection_items(*scene)]
        _write_lines(folder / "selection.jsonl", map(json.dumps, items))
    _write_lines(folder / "nshards.txt", ["1"])


def _write_tar(path: Path, samples: Iterable[tuple[str, Sample]], tick: Tick) -> None:
    """Write samples as neighbouring members, sorted by suffix, with nothing of today in them."""
    # An open file, not a name: webdataset reads "%" and "scheme:" in names its own way.
    # The time is a whole number: tarfile would put a fraction into an extra header.
    with path.open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        for key, sample in samples:
            writer.write({"__key__": key, **sample})
            tick()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
