"""Turn a published compositional benchmark into a selection set that clipkit evaluates.

OUT/<split>/selection.jsonl    the items
OUT/images/...                 copies of the images, unless they lie below OUT already
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.config.parts import suggest
from clipkit.data.image_files import inside
from clipkit.data.selection_set import FILE, open_selection
from clipkit.errors import DataError
from data_tools.selection_formats import NOTES, READERS, Draft, Options, Picture

_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        items: How many.
        images: Different image files.
        left_out: Items without their images.
        note: What to know of this benchmark; "" if nothing.
    """

    items: int
    images: int
    left_out: int
    note: str


def convert(
    benchmark: str,
    source: Path,
    images: Path,
    out: Path,
    *,
    split: str = "test",
    allow_missing: bool = False,
    options: Options | None = None,
) -> Converted:
    """Write a selection set; it appears in one rename, or not at all.

    Args:
        benchmark: One of `READERS`.
        source: The benchmark's own file or folder.
        images: Folder its image names are below of.
        out: The set's folder. If `images` lies in it, nothing is copied; else it must be new.
        split: Folder of the items below `out`.
        allow_missing: Leave out items whose images are not there, instead of refusing.
        options: Of the readers.

    Raises:
        DataError: Unknown benchmark, broken source, missing images, or `out` in use.
    """
    if benchmark not in READERS:
        raise DataError(f"unknown benchmark '{benchmark}'{suggest(benchmark, list(READERS))}")
    if not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    if not inside(split) or "/" in split:
        raise DataError(f"--split {split}: must be the name of a folder")
    images, out = Path(os.path.abspath(images)), Path(os.path.abspath(out))
    drafts = list(READERS[benchmark](source, options or Options()))
    found = {picture: _find(images, picture) for draft in drafts for picture in draft.images}
    whole = [d for d in drafts if all(found[picture] for picture in d.images)]
    left_out = len(drafts) - len(whole)
    if left_out and not allow_missing:
        lost = next(picture for picture, file in found.items() if not file)
        raise DataError(
            f"{images}: images of {left_out} of {len(drafts)} items are not there, first "
            f"'{lost.names[0]}'; name their folder with --images, or leave these items out with "
            f"--allow-missing"
        )
    if not whole:
        raise DataError(f"{source}: holds no item whose images are there")
    files = {p: str(found[p]) for d in whole for p in d.images}
    stay = images == out or out in images.parents
    prefix = images.relative_to(out).as_posix() if stay else "images"
    lines = [json.dumps(_item(d, files, prefix), ensure_ascii=False) + "\n" for d in whole]
    copies = {} if stay else {f"images/{file}": images / file for file in files.values()}
    _write(out, split, lines, copies)
    return Converted(len(whole), len(set(files.values())), left_out, NOTES.get(benchmark, ""))


def _find(images: Path, picture: Picture) -> str | None:
    """The name below `images` at which a picture lies."""
    for name in picture.names:
        if not inside(name):
            raise DataError(f"image '{name[:200]}' leads out of its folder; the source is broken")
        for ending in _ENDINGS:
            if (images / f"{name}{ending}").is_file():
                return Path(f"{name}{ending}").as_posix()
    return None


def _item(draft: Draft, files: dict[Picture, str], prefix: str) -> dict[str, Any]:
    entries: list[Any] = []
    for picture in draft.images:
        name = (Path(prefix) / files[picture]).as_posix()
        entries.append({"file": name, "box": list(picture.box)} if picture.box else name)
    return {
        "id": draft.id,
        "images": entries,
        "texts": list(draft.texts),
        "answer": draft.answer,
        "tags": list(draft.tags),
    }


def _write(out: Path, split: str, lines: list[str], copies: dict[str, Path]) -> None:
    """Write beside the final place, read it back, and move it there.

    With copies the whole set is new; without, it is a new split of a folder that holds the images.
    """
    if copies and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists; name a new folder, or put the images below it")
    if (out / split).exists():
        raise DataError(f"{out / split}: exists; remove it, or name another --split")
    mark = f"tmp-{os.getpid()}"
    staging = out.with_name(f"{out.name}.{mark}") if copies else out / f".{split}.{mark}"
    root, folder = (staging, split) if copies else (out, staging.name)
    try:
        (root / folder).mkdir(parents=True)
        (root / folder / FILE).write_text("".join(lines), encoding="utf-8")
        for name, image in copies.items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
        open_selection(root, folder)
        if copies and out.exists():
            out.rmdir()
        staging.rename(out if copies else out / split)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
