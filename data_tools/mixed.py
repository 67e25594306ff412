"""`clipkit-data mixed`: a search set of texts and images made from shards of pairs.

OUT/queries.jsonl, OUT/mixed_corpus.jsonl, OUT/qrels/test.tsv, OUT/images/   (MixBench's layout)

Every pair is a query and a document: half of them, drawn by the seed, ask with the text for the
image, the others with the image for the text. So half of the queries and half of the documents are
texts, a query's own answer is always of the other modality, and it never stands beside itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data_tools.options import ShardsArgument

_OWN, _SAME_GROUP = 3, 1  # grades of relevance
MATES = 1000  # of a group that are relevant to one query
_IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_PIXELS = 50_000_000  # what the reader of evaluation sets takes


@dataclass(frozen=True)
class Pair:
    """A sample of the shards.

    Attributes:
        text: Its first line of text.
        image: Its bytes.
        suffix: Of the image.
        group: Value of the json member's field; "" where it has none.
    """

    text: str
    image: bytes
    suffix: str
    group: str


def mixed(
    shards: ShardsArgument,
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    group: Annotated[
        str | None,
        typer.Option(
            help="Field of the json member; pairs that share it are relevant with 1, of "
            "more than 1,000 so many drawn ones."
        ),
    ] = None,  # fmt: skip
    split: Annotated[str, typer.Option(help="Of a folder that is an evaluation set.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Draws which pairs ask with their text.")] = 0,
) -> None:
    """Make a search set from pairs: half of them ask with the text, half with the image.

    A query's own pair is relevant with 3. `clipkit eval run --tasks mixed_modality` scores it.
    """
    from clipkit.data.shard_images import find_shards

    count = write_mixed(find_shards(shards, split), out, group=group, seed=seed)
    print(f"wrote {out}: {count} queries, {count} documents")


def write_mixed(
    shards: Sequence[str], out: Path, *, group: str | None = None, seed: int = 0
) -> int:
    """Write the set; the folder appears in one rename, or not at all.

    Args:
        shards: Paths of tars whose samples hold an image and a txt member.
        out: Folder to create.
        group: Field of the json member; null and missing values share nothing.
        seed: Draws the half that asks with its text.

    Returns:
        Number of pairs.

    Raises:
        DataError: `out` is there, a sample is not whole, or no sample has the field.
    """
    from clipkit.data.mixed_set import open_mixed_set
    from clipkit.errors import DataError

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists: name a new or an empty folder, or remove it")
    pairs = list(_pairs(shards, group))
    if len(pairs) < 2:
        raise DataError(f"{', '.join(shards[:3])}: {len(pairs)} samples; a search needs two")
    if group and not any(pair.group for pair in pairs):
        raise DataError(f"--group {group}: no sample's json member has this field; leave it out")
    out = Path(os.path.abspath(out))
    staging = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        _write(staging, pairs, np.random.default_rng(seed))
        len(open_mixed_set(staging).image_files)
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(pairs)


def _pairs(shards: Sequence[str], group: str | None) -> Iterator[Pair]:
    from clipkit.data.bad_samples import BadSample
    from clipkit.data.decode import check_shape, open_image
    from clipkit.data.shard_reader import iter_samples
    from clipkit.data.tar_index import load_indexes
    from clipkit.errors import DataError

    for index in load_indexes(shards):
        for sample in iter_samples(index, (*_IMAGES, "txt", "json")):
            where = f"{index.path}: sample '{sample.key}'"
            suffix = next((s for s in _IMAGES if s in sample.members), None)
            lines = sample.members.get("txt", b"").decode("utf-8", "replace").split("\n")
            text = next((line.strip() for line in lines if line.strip()), "")
            if suffix is None or not text:
                raise DataError(f"{where} has no {'text' if suffix else 'image'}; it needs both")
            try:
                check_shape(open_image(sample.members[suffix], _MAX_PIXELS))
            except BadSample as error:
                raise DataError(f"{where}: {error}") from None
            value = _field(sample.members.get("json"), group) if group else ""
            yield Pair(text, sample.members[suffix], suffix, value)


def _field(data: bytes | None, name: str) -> str:
    """A field of a json member as text; "" where it has none, or null."""
    try:
        value = json.loads(data or b"{}").get(name)
    except (ValueError, AttributeError, RecursionError):
        return ""
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _write(root: Path, pairs: Sequence[Pair], rng: np.random.Generator) -> None:
    """Queries, documents, judgements and images; half of the pairs ask with their text."""
    by_text = rng.permutation(len(pairs)) % 2 == 0
    (root / "images").mkdir(parents=True)
    (root / "qrels").mkdir()
    queries, documents, groups = [], [], defaultdict(list)
    for i, (pair, asks) in enumerate(zip(pairs, by_text.tolist())):
        name = f"images/{i:07d}.{pair.suffix}"
        (root / name).write_bytes(pair.image)
        sides = {"text": pair.text, "image": ""}, {"text": "", "image": name}
        queries.append({"query_id": f"q{i}", **sides[0 if asks else 1]})
        documents.append({"corpus_id": f"d{i}", **sides[1 if asks else 0]})
        if pair.group:
            groups[pair.group].append(i)
    _write_lines(root / "queries.jsonl", map(_line, queries))
    _write_lines(root / "mixed_corpus.jsonl", map(_line, documents))
    mates = {
        name: rows if len(rows) <= MATES else sorted(rng.permutation(rows)[:MATES].tolist())
        for name, rows in groups.items()
    }
    _write_lines(root / "qrels" / "test.tsv", _judged(pairs, mates))


def _judged(pairs: Sequence[Pair], mates: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """A line for each query and what is relevant to it, its own document among them."""
    yield "query_id\tcorpus_id\tscore"
    for i, pair in enumerate(pairs):
        for j in sorted({i, *mates.get(pair.group, ())}):
            yield f"q{i}\td{j}\t{_OWN if i == j else _SAME_GROUP}"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
