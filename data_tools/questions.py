"""`clipkit-data questions`: a selection set of captions against what is nearly right.

The wrong captions are the samples' own (json "negatives", with "negative_tags" beside them), or
made by exchanging one phrase of a group for another: "woman firefighter" for "man firefighter".

OUT/<split>/0.tar ...       copies of the samples that have a question
OUT/<split>/selection.jsonl the questions
OUT/dataset_type.txt        retrieval works too
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit.data.negatives.edits import plain
from clipkit.data.selection_set import FILE
from clipkit.data.shard_reader import iter_samples
from clipkit.data.shards import expand_shards
from clipkit.data.tar_index import load_index
from clipkit.data.wds_write import write_folder
from clipkit.errors import DataError
from data_tools.options import ShardsArgument
from data_tools.staging import new_folder

Groups = Mapping[str, Sequence[str]]  # name -> phrases
_MEMBERS = ("jpg", "jpeg", "png", "webp", "txt", "json")


def questions(
    shards: ShardsArgument,
    out: Annotated[Path, typer.Argument(help="Folder to create; its parents may be missing.")],
    group: Annotated[
        list[str] | None,
        typer.Option(help="Phrases to exchange, 'gender=man|woman'; repeat. Else json negatives."),
    ] = None,
    split: Annotated[str, typer.Option(help="Folder of the questions below OUT.")] = "test",
) -> None:
    """Ask for each caption against each caption that is nearly right, as a selection set."""
    items, samples = write_question_set(shards, out, parse_groups(group or []), split)
    print(f"wrote {out / split}: {items} questions over {samples} samples")


def parse_groups(options: Iterable[str]) -> dict[str, list[str]]:
    """ "name=a|b" of each option.

    Raises:
        DataError: An option without a name or with fewer than two phrases.
    """
    groups: dict[str, list[str]] = {}
    for option in options:
        name, _, listed = option.partition("=")
        phrases = [phrase.strip() for phrase in listed.split("|") if phrase.strip()]
        if not name or len(set(phrases)) < 2 or name in groups:
            raise DataError(f"--group '{option}': write name=phrase|phrase, each name once")
        groups[name] = phrases
    return groups


def write_question_set(
    shards: Sequence[str], out: Path, groups: Groups, split: str = "test"
) -> tuple[int, int]:
    """Write the questions of all samples that have one; returns (questions, samples).

    Args:
        shards: Tars with captions, or patterns.
        out: Folder to create.
        groups: Phrases to exchange; empty: the samples' own negatives are asked.
        split: Folder of the questions below `out`.

    Raises:
        DataError: `out` is there, or no sample has a question.
    """
    kept: list[dict[str, bytes]] = []
    items: list[dict[str, Any]] = []
    for shard in expand_shards(shards, "SHARDS"):
        for sample in iter_samples(load_index(shard), _MEMBERS):
            wrong = _wrong(sample.members, groups)
            items += ask(f"s{len(kept):07d}", sample.members, wrong)  # as write_folder names it
            if wrong:
                kept.append(sample.members)
    if not items:
        what = "holds a phrase of --group" if groups else "has json 'negatives' with tags"
        raise DataError(f"{', '.join(shards)}: no caption {what}; there is nothing to ask")
    with new_folder(out) as folder:
        write_folder(folder, split, kept, kind="retrieval")
        write_questions(folder / split, items)
    return len(items), len(kept)


def ask(
    key: str, sample: Mapping[str, bytes], wrong: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Ask for the caption against each wrong one, one item each.

    Args:
        key: Of the sample in its shards, the name of its image.
        sample: Extension -> bytes; with txt.
        wrong: (caption, what is wrong with it).
    """
    return [
        {
            "id": f"{key}/{number}",
            "images": [key],
            "texts": [sample["txt"].decode().strip(), caption],
            "answer": 0,
            "tags": [tag],
        }
        for number, (caption, tag) in enumerate(wrong)
    ]


def write_questions(split: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write the items of a split."""
    lines = [json.dumps(item) + "\n" for item in items]
    (split / FILE).write_text("".join(lines), encoding="utf-8")


def exchanged(caption: str, groups: Groups) -> list[tuple[str, str]]:
    """(caption with one phrase exchanged for another of its group, the group's name), all of them.

    A phrase is found as whole words, and not as a part of a hyphenated one.
    """
    found: dict[str, str] = {}
    for name, phrases in groups.items():
        choice = "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))
        for match in re.finditer(rf"(?<![\w-])(?:{choice})(?![\w-])", caption):
            for phrase in phrases:
                if phrase != match.group():
                    text = f"{caption[: match.start()]}{phrase}{caption[match.end() :]}"
                    found.setdefault(text, name)
    return list(found.items())


def _wrong(sample: Mapping[str, bytes], groups: Groups) -> list[tuple[str, str]]:
    """Wrong captions of a sample with their tags; none where it has no caption."""
    caption = sample.get("txt", b"").decode("utf-8", "replace").strip()
    if not caption:
        return []
    if groups:
        return exchanged(caption, groups)
    try:
        meta = json.loads(sample.get("json", b"{}"))
        lists = meta["negatives"], meta["negative_tags"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    if not all(isinstance(x, list) and all(isinstance(y, str) and y for y in x) for x in lists):
        return []
    if len(lists[0]) != len(lists[1]):
        return []
    return [(text, tag) for text, tag in zip(*lists) if plain(text) != plain(caption)]
