"""The published files of compositional benchmarks, read as items of a selection set.

One reader per benchmark: (source, Options) -> drafts, whose images are names below the folder that
holds the benchmark's images. A reader knows no images and writes nothing.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import DataError

_MAX_WORDS = 30  # of a caption whose order is tested, as published
_TRIES = 20


@dataclass(frozen=True)
class Picture:
    """An image as a benchmark names it.

    Attributes:
        names: Where it may lie below the image folder, best first; the ending may be left out.
        box: (x, y, width, height) to cut out, or None.
    """

    names: tuple[str, ...]
    box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Draft:
    """An item whose images are yet to be found; fields as in a selection set."""

    id: str
    images: tuple[Picture, ...]
    texts: tuple[str, ...]
    answer: int | list[int]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What readers can be told.

    Attributes:
        min_votes: VALSE: keep items whose caption so many of three annotators chose.
        seed: order: draws the shuffles.
    """

    min_votes: int = 2
    seed: int = 0


def sugarcrepe(source: Path, _: Options) -> Iterator[Draft]:
    """SugarCrepe: a folder of JSON files, one a kind of change; the file is the tag."""
    for path in _json_files(source):
        for key, row in _entries(path):
            where = f"{path}: '{key}'"
            texts = (_text(row, "caption", where), _text(row, "negative_caption", where))
            image = Picture((_text(row, "filename", where),))
            yield Draft(f"{path.stem}/{key}", (image,), texts, 0, (path.stem,))


def valse(source: Path, options: Options) -> Iterator[Draft]:
    """VALSE: a folder of JSON files, one an instrument; tags are file and linguistic phenomenon."""
    for path in _json_files(source):
        for key, row in _entries(path):
            where = f"{path}: '{key}'"
            votes = row.get("mturk")
            if not isinstance(votes, dict) or type(votes.get("caption")) is not int:
                raise DataError(f"{where}: has no annotators' votes in mturk.caption")
            if votes["caption"] < options.min_votes:
                continue
            texts = (_text(row, "caption", where), _text(row, "foil", where))
            file = _text(row, "image_file", where)
            places = (file, f"{path.stem}/{file}", f"{row.get('dataset', '')}/{file}")
            phenomenon = row.get("linguistic_phenomena")
            more = (phenomenon,) if isinstance(phenomenon, str) and phenomenon else ()
            tags = tuple(dict.fromkeys((path.stem, *more)))
            yield Draft(f"{path.stem}/{key}", (Picture(places),), texts, 0, tags)


def aro(source: Path, _: Options) -> Iterator[Draft]:
    """ARO's VG-Relation or VG-Attribution: a JSON list with boxes; the tag is what is swapped."""
    for number, row in enumerate(_list(source)):
        where = f"{source}: entry {number}"
        if "relation_name" in row:
            tag = _text(row, "relation_name", where)
        else:
            pair = row.get("attributes")
            if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_text, pair)):
                raise DataError(f"{where}: has neither 'relation_name' nor two 'attributes'")
            tag = "_".join(pair)
        box = tuple(row.get(f"bbox_{side}") for side in "xywh")
        if not all(type(v) in (int, float) for v in box):
            raise DataError(f"{where}: bbox_x, bbox_y, bbox_w and bbox_h must be numbers")
        image = Picture((_text(row, "image_path", where),), box)  # type: ignore[arg-type]
        texts = (_text(row, "true_caption", where), _text(row, "false_caption", where))
        yield Draft(f"{source.stem}/{number}", (image,), texts, 0, (tag,))


def order(source: Path, options: Options) -> Iterator[Draft]:
    """Word order in the manner of ARO: a caption against shuffles of its words.

    The source is a JSON list of {"image", "caption": [...]}, as of COCO and Flickr30k. Of ARO's
    four shuffles the two that need no part-of-speech tagger are made: words within each trigram,
    and the trigrams among each other. Shuffles depend on the seed and the caption's place only.
    """
    for number, row in enumerate(_list(source)):
        where = f"{source}: entry {number}"
        captions = row.get("caption")
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(map(_is_text, captions)):
            raise DataError(f"{where}: 'caption' must be a list of captions")
        image = Picture((_text(row, "image", where),))
        for place, caption in enumerate(captions):
            words = _words(caption)
            rng = random.Random(f"order {options.seed} {number} {place}")
            texts = dict.fromkeys([" ".join(words), *_shuffles(words, rng)])
            if len(texts) > 1:  # else every shuffle of so few words reads as the caption does
                yield Draft(f"{number}/{place}", (image,), tuple(texts), 0, ("order",))


def winoground(source: Path, _: Options) -> Iterator[Draft]:
    """Winoground: image_0, image_1, caption_0, caption_1 and tags, one JSON object a line."""
    for number, (where, row) in enumerate(_rows(source)):
        images = tuple(Picture((f,)) for f in _both(row, "image", where))
        tags = [row.get(k) for k in ("collapsed_tag", "tag", "secondary_tag")]
        found = tuple(dict.fromkeys(str(tag) for tag in tags if tag))
        name = str(row.get("id", number))
        yield Draft(name, images, tuple(_both(row, "caption", where)), [0, 1], found)


def bivlc(source: Path, _: Options) -> Iterator[Draft]:
    """BiVLC: image, caption, negative_image, negative_caption, type; a CSV or JSON lines."""
    for number, (where, row) in enumerate(_rows(source)):
        names = [_text(row, key, where) for key in ("image", "negative_image")]
        texts = (_text(row, "caption", where), _text(row, "negative_caption", where))
        tags = tuple(dict.fromkeys(str(row[k]) for k in ("type", "subtype") if row.get(k)))
        yield Draft(str(number), tuple(Picture((n,)) for n in names), texts, [0, 1], tags)


def inpaintcoco(source: Path, _: Options) -> Iterator[Draft]:
    """InpaintCOCO: coco_image, coco_caption, inpaint_image, inpaint_caption, concept."""
    for number, (where, row) in enumerate(_rows(source)):
        names = [_text(row, f"{kind}_image", where) for kind in ("coco", "inpaint")]
        texts = tuple(_text(row, f"{kind}_caption", where) for kind in ("coco", "inpaint"))
        tags = (str(row["concept"]),) if row.get("concept") else ()
        yield Draft(str(number), tuple(Picture((n,)) for n in names), texts, [0, 1], tags)


def mmvp(source: Path, _: Options) -> Iterator[Draft]:
    """MMVP-VLM: Questions.csv with number, visual pattern and statement; 2k - 1 and 2k are a pair.

    The published number is the 2 x 2 item's image_acc: both statements choose their own image.
    """
    path = source / "Questions.csv" if source.is_dir() else source
    rows = [row for row in _table(path) if row][1:]
    for start in range(0, len(rows), 2):
        where, pair = f"{path}: questions {start + 1} and {start + 2}", rows[start : start + 2]
        if any(len(row) < 3 or not row[0].strip().isdigit() for row in pair):
            raise DataError(f"{where}: need a number, a pattern and a statement")
        pair.sort(key=lambda row: int(row[0]))
        numbers = [int(row[0]) for row in pair]
        if len(pair) < 2 or numbers[1] != numbers[0] + 1 or numbers[1] % 2:
            raise DataError(f"{where}: are no pair 2k - 1 and 2k")
        pattern = pair[0][1].strip()
        images = tuple(Picture((f"{pattern}/{n}.jpg", f"{n}.jpg")) for n in numbers)
        texts = tuple(f"a photo of {row[2].strip()}" for row in pair)
        yield Draft(str(numbers[1] // 2), images, texts, [0, 1], (pattern,) if pattern else ())


READERS: dict[str, Callable[[Path, Options], Iterator[Draft]]] = {
    reader.__name__: reader
    for reader in (sugarcrepe, valse, aro, order, winoground, bivlc, mmvp, inpaintcoco)
}
SOURCES = {
    "sugarcrepe": "folder of its JSON files (add_att.json ... swap_obj.json)",
    "valse": "folder of its JSON files (actant-swap.json ... relations.json)",
    "aro": "visual_genome_relation.json or visual_genome_attribution.json",
    "order": "coco_karpathy_test.json or flickr30k_test.json",
    "winoground": "examples.jsonl, or its folder",
    "bivlc": "CSV or JSON lines",
    "mmvp": "Questions.csv, or its folder",
    "inpaintcoco": "CSV or JSON lines",
}
NOTES = {
    "order": "the two shuffles of nouns and adjectives need a part-of-speech tagger and are left "
    "out: an item has at most 3 texts, so the accuracy does not compare with published ones of 5",
    "mmvp": "the published number is image_acc: both statements choose their own image",
    "aro": "for the published average: macro=true; min_tag_count=25 for attributes; ignore_tags "
    "with the symmetric relations for relations",
}


def _words(caption: str) -> list[str]:
    """Lower case, without punctuation: else a capital or a full stop would tell the true order."""
    return re.sub(r"[^\w\s'-]", " ", caption.lower()).split()[:_MAX_WORDS]


def _shuffles(words: list[str], rng: random.Random) -> list[str]:
    """A shuffle within trigrams and one of trigrams; drawn again while nothing has moved."""
    out = []
    for within in (True, False):
        for _ in range(_TRIES):
            trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
            for part in trigrams if within else [trigrams]:
                rng.shuffle(part)
            moved = [word for trigram in trigrams for word in trigram]
            if moved != words:
                out.append(" ".join(moved))
                break
    return out


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {str(error)[:100]}") from None


def _json(path: Path) -> Any:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the JSON file")
    try:
        return json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {str(error)[:100]}") from None


def _table(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(_content(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV: {error}") from None


def _json_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(f"{folder}: holds no .json files; name the benchmark's data folder")
    return paths


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, entry) of a JSON object of objects, or of a list of them."""
    content = _json(path)
    pairs = content.items() if isinstance(content, dict) else enumerate(_list(path))
    for key, row in pairs:
        if not isinstance(row, dict):
            raise DataError(f"{path}: '{key}' is no object")
        yield str(key), row


def _list(path: Path) -> list[dict[str, Any]]:
    content = _json(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path}: must be a JSON list of objects")
    return content


def _rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a CSV with a header, or of JSON lines; of a folder its one such file."""
    path = source
    if source.is_dir():
        found = [p for ending in ("jsonl", "csv") for p in sorted(source.glob(f"*.{ending}"))]
        if len(found) != 1:
            raise DataError(f"{source}: holds {len(found)} .jsonl and .csv files; name one of them")
        path = found[0]
    if path.suffix == ".csv":
        header, *table = _table(path) or [[]]
        for number, cells in enumerate(table, 2):
            yield f"{path}: row {number}", dict(zip(header, cells))
        return
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: is no JSON object")
        yield f"{path}: line {number}", row


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, list) and len(value) == 1:  # as some exports of VALSE have their captions
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: has no text in '{key}'")
    return value


def _both(row: dict[str, Any], key: str, where: str) -> list[str]:
    return [_text(row, f"{key}_{i}", where) for i in (0, 1)]
