"""Writes CLIP_benchmark's webdataset layout, the same bytes for the same samples.

<root>/<split>/{0..N-1}.tar and nshards.txt, with classnames.txt,
zeroshot_classification_templates.txt and dataset_type.txt beside the split.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from webdataset import TarWriter

from clipkit.config.parts import suggest
from clipkit.data.wds_folder import KINDS
from clipkit.errors import DataError

Sample = dict[str, bytes]  # suffix -> bytes of one member


def write_folder(
    root: str | Path,
    split: str,
    samples: Iterable[Sample],
    *,
    classnames: Sequence[str] = (),
    templates: Sequence[str] = (),
    kind: str = "classification",
    samples_per_shard: int = 10_000,
) -> int:
    """Write one split of an evaluation set; it appears in one rename, or not at all.

    Further splits of a set are written by further calls with the same names and templates.

    Args:
        root: The set's folder; may be there already.
        split: Folder of the shards.
        samples: suffix -> bytes, e.g. {"png": ..., "cls": b"3"}, {"jpg": ..., "npy": ...} or
            {"webp": ..., "txt": ...}; read once, keys are s0000000, s0000001, ... .
        classnames: One per class, in the order of labels; none for retrieval.
        templates: Prompts with {c}; none for retrieval.
        kind: "classification", "multilabel" or "retrieval".
        samples_per_shard: Samples in every shard but the last.

    Returns:
        Samples written.

    Raises:
        DataError: The split is there, the set has other names, templates or type, or an argument
            cannot be written.
    """
    root = Path(os.path.abspath(root))
    texts = _texts(kind, classnames, templates)
    _check_place(root, split, texts)
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard={samples_per_shard}: must be at least 1")
    fresh = not root.exists()
    staging = root / f".{split}.tmp-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        count = _write_shards(staging, iter(samples), samples_per_shard)
        if not count:
            raise DataError(f"{root / split}: there are no samples to write")
        for name, text in texts.items():
            _put(root / name, text)
        staging.rename(root / split)
    except OSError as error:
        raise DataError(f"{root}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
    return count


def _texts(kind: str, classnames: Sequence[str], templates: Sequence[str]) -> dict[str, str]:
    """File name -> content of what stands beside the splits."""
    if kind not in KINDS:
        raise DataError(f"unknown type '{kind}'{suggest(kind, list(KINDS))}")
    texts = {"dataset_type.txt": f"{kind}\n"}
    if kind == "retrieval":
        if classnames or templates:
            raise DataError("a retrieval set has no class names and no templates; leave them out")
        return texts
    for what, lines in (("class names", classnames), ("templates", templates)):
        # a blank or broken line would move the labels of all classes behind it
        bad = next((x for x in lines if not x.strip() or len(x.splitlines()) != 1), None)
        if bad is not None or not lines:
            raise DataError(
                f"a {kind} set needs {what}, one line each; "
                f"{'there are none' if bad is None else f'{bad!r} is no line'}"
            )
    without = next((t for t in templates if "{c}" not in t), None)
    if without is not None:
        raise DataError(f"template '{without}' has no {{c}} for the class name")
    texts["classnames.txt"] = "".join(f"{x.strip()}\n" for x in classnames)
    texts["zeroshot_classification_templates.txt"] = "".join(f"{x.strip()}\n" for x in templates)
    return texts


def _check_place(root: Path, split: str, texts: dict[str, str]) -> None:
    if not split or split.startswith(".") or "/" in split:
        raise DataError(f"split '{split}' is no folder name")
    if (root / split).exists():
        raise DataError(f"{root / split} exists; remove it or choose another folder")
    for name, text in texts.items():
        path = root / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path} differs from what the split '{split}' needs; all splits of a set share it"
            )


def _write_shards(folder: Path, samples: Iterator[Sample], size: int) -> int:
    """0.tar, 1.tar, ... and nshards.txt; gives the number of samples."""
    shards = count = 0
    for first in samples:
        # An open file, not a name: webdataset reads "%" and "scheme:" in names its own way.
        # The time is a whole number: tarfile would put a fraction into an extra header.
        with (
            (folder / f"{shards}.tar").open("wb") as stream,
            TarWriter(stream, encoder=False, mtime=0) as writer,
        ):
            for sample in chain([first], islice(samples, size - 1)):
                writer.write({"__key__": f"s{count:07d}", **sample})
                count += 1
        shards += 1
    _put(folder / "nshards.txt", f"{shards}\n")
    return count


def _put(path: Path, text: str) -> None:
    """Write a text file whole or not at all; one that is there is equal and stays."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
