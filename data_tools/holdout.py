"""`clipkit-data holdout`: whole groups of samples kept out of training.

OUT/train/      shards of all other samples, those without a group among them
OUT/held/       shards of the held-out groups' samples (what a memory may hold)
OUT/test/       shards of those of them that are tested on, by --test-share
OUT/groups/     evaluation set: the tested samples, one class a group
OUT/groups.json which groups they are, and counts

OUT is an evaluation set itself, with test, held and train as splits: a classification set where the
source has class names, else a retrieval set.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from clipkit.data.shard_reader import iter_samples
from clipkit.data.shard_writer import write_shard
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from data_tools.options import OutArgument, ShardsArgument
from data_tools.staging import new_folder
from data_tools.tables import shard_names, write_keep

NAMES, TEMPLATES, TYPE = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
)
PARTS = ("train", "held", "test")


@dataclass(frozen=True)
class Row:
    """One sample: where it lies, its group and its caption ("" where it has none)."""

    shard: str
    row: int
    key: str
    group: str
    caption: str


@dataclass(frozen=True)
class Choice:
    """Which groups, and which of their samples are tested on.

    Attributes:
        values: The groups; (): draw a share of all that are large enough.
        share: Of the groups.
        test_share: Of each held-out group's samples.
        seed: Draws both.
    """

    values: tuple[str, ...] = ()
    share: float = 0.2
    test_share: float = 0.0
    seed: int = 0


def holdout(shards: Sequence[str], out: Path, by: str, choice: Choice) -> dict[str, int]:
    """Split shards by whole groups.

    The sample whose caption is the shortest of its group is tested on first: its caption names the
    group, and is then in no memory.

    Args:
        shards: Paths.
        out: New folder.
        by: txt, cls, or json.<field>: what samples of one group share.
        choice: Which groups, which samples.

    Returns:
        Part -> samples, and "groups" -> how many are held out.

    Raises:
        DataError: `out` is there, or there is no group to hold out.
    """
    _check(out, by, choice)
    rows = list(_rows(shards, by))
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.group:
            groups[row.group].append(row)
    if not groups:
        raise DataError(f"--by {by}: no sample has it; choose txt, cls or json.<field>")
    held = _held(groups, choice, by)
    rng = np.random.default_rng(choice.seed)
    tested = {row for name in held for row in _tested(groups[name], choice.test_share, rng)}
    parts: dict[str, list[Row]] = {name: [] for name in PARTS}
    for row in rows:
        parts["test" if row in tested else "held" if row.group in held else "train"].append(row)
    if not parts["train"]:
        raise DataError(f"--by {by}: nothing is left to train on; hold out fewer groups")
    source = Path(shards[0]).parent
    labels = _labels(source, by, {name: groups[name] for name in held})
    counts = {**{name: len(kept) for name, kept in parts.items()}, "groups": len(held)}
    facts = {"by": by, "seed": choice.seed, **counts, "held_out": {n: len(groups[n]) for n in held}}
    with new_folder(out) as root:
        for name, kept in parts.items():
            _write_part(shards, root, name, kept)
        _describe(source, root)
        if tested:
            _write_groups(shards, source, root / "groups", labels, tested)
        told = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
        (root / "groups.json").write_text(told, encoding="utf-8")
    return counts


def _check(out: Path, by: str, choice: Choice) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists: name a new or an empty folder, or remove it")
    if by not in ("txt", "cls") and not (by.startswith("json.") and all(by.split("."))):
        raise DataError(f"--by {by}: choose txt, cls or json.<field>")
    if not 0 < choice.share <= 1 or not 0 <= choice.test_share <= 1:
        raise DataError("--share must be above 0, and both shares at most 1")


def _rows(shards: Sequence[str], by: str) -> Iterator[Row]:
    member, _, place = by.partition(".")
    for path, name in zip(shards, shard_names(shards)):
        for sample in iter_samples(load_index(path), (member, "txt")):
            text = sample.members.get(member, b"").decode("utf-8", "replace")
            if place:
                text = _field(text, place)
            caption = sample.members.get("txt", b"").decode("utf-8", "replace")
            yield Row(name, sample.row, sample.key, _one_line(text), _one_line(caption))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _field(text: str, place: str) -> str:
    """A field of a json member, dots descending; "" if it is not there or no single value."""
    try:
        value: Any = json.loads(text)
        for step in place.split("."):
            value = value[step]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    return str(value) if isinstance(value, str | int) else ""


def _held(groups: Mapping[str, Sequence[Row]], choice: Choice, by: str) -> list[str]:
    """Names of the held-out groups, sorted."""
    if choice.values:
        unknown = next((v for v in choice.values if v not in groups), None)
        if unknown is not None:
            raise DataError(f"--values {unknown}: no sample has this {by}")
        return sorted(set(choice.values))
    least = 2 if 0 < choice.test_share < 1 else 1
    large = sorted(name for name, rows in groups.items() if len(rows) >= least)
    count = round(choice.share * len(large))
    if not count:
        raise DataError(f"--share {choice.share} of {len(large)} groups is none; give more")
    drawn = np.random.default_rng(choice.seed).permutation(len(large))[:count]
    return sorted(large[i] for i in drawn)


def _tested(rows: Sequence[Row], share: float, rng: np.random.Generator) -> list[Row]:
    """The tested samples of a group: that with the shortest caption, others drawn."""
    if share in (0, 1) or len(rows) < 2:
        return list(rows) if share == 1 else []
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    first = min(range(len(rows)), key=lambda i: (len(rows[i].caption), rows[i].key))
    others = [i for i in rng.permutation(len(rows)) if i != first]
    return [rows[i] for i in [first, *others[: count - 1]]]


def _write_part(shards: Sequence[str], out: Path, name: str, rows: Sequence[Row]) -> None:
    """OUT/<name>/ by way of a keep-list."""
    from data_tools.reshard.run import reshard

    if not rows:
        return
    keep = out / f"{name}.parquet"
    write_keep(
        keep, [r.shard for r in rows], [r.row for r in rows], [r.key for r in rows], "holdout"
    )
    reshard(shards, out / name, keeps=[keep], samples_per_shard=1000, workers=1)


def _describe(source: Path, out: Path) -> None:
    """What makes OUT an evaluation set."""
    if not (source / NAMES).is_file():
        (out / TYPE).write_text("retrieval\n")
        return
    for name in (NAMES, TEMPLATES, TYPE):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _labels(source: Path, by: str, held: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What the evaluation set calls each group: by cls its class, else its shortest caption.

    Raises:
        DataError: A group by cls is no class of the source.
    """
    if by != "cls":
        captions = {name: [r.caption for r in rows if r.caption] for name, rows in held.items()}
        return {
            name: min(own or [name], key=lambda c: (len(c), c)) for name, own in captions.items()
        }
    if not (source / NAMES).is_file():
        return {name: name for name in held}
    known = (source / NAMES).read_text(encoding="utf-8").rstrip().split("\n")
    wrong = next((n for n in held if not n.isdecimal() or int(n) >= len(known)), None)
    if wrong is not None:
        raise DataError(
            f"--by cls: a sample's cls '{wrong[:40]}' is none of the {len(known)} classes in "
            f"{source / NAMES}; write its class, from 0 on"
        )
    return {name: known[int(name)].strip() for name in held}


def _write_groups(
    shards: Sequence[str], source: Path, out: Path, labels: Mapping[str, str], tested: set[Row]
) -> None:
    """The evaluation set with one class a group; samples keep their keys."""
    classes = {name: i for i, name in enumerate(labels)}
    number = {(r.shard, r.row): classes[r.group] for r in tested}

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for path, shard in zip(shards, shard_names(shards)):
            for sample in iter_samples(load_index(path)):
                label = number.get((shard, sample.row))
                if label is not None:
                    yield sample.key, {**sample.members, "cls": b"%d" % label}

    write_shard(out / "test" / "00000.tar", samples())
    (out / NAMES).write_text("".join(f"{x}\n" for x in labels.values()), encoding="utf-8")
    own = source / TEMPLATES
    (out / TEMPLATES).write_bytes(own.read_bytes() if own.is_file() else b"{c}\n")
    (out / TYPE).write_text("classification\n")


def holdout_command(
    shards: ShardsArgument,
    out: OutArgument,
    by: Annotated[str, typer.Option(help="What a group shares: txt, cls or json.<field>.")],
    values: Annotated[
        str | None, typer.Option(help="The groups, comma-separated; else a share is drawn.")
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the groups that is held out.")] = 0.2,
    test_share: Annotated[
        float, typer.Option(help="Share of each held-out group that is tested on.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws others.")] = 0,
) -> None:
    """Hold whole groups of samples out of training: new concepts for a memory, or to test on.

    OUT/train holds the other samples, OUT/held the groups', OUT/test those of them that are tested
    on. OUT/groups is the evaluation set that names the group of each tested sample.
    """
    from clipkit.data.shard_images import find_shards

    chosen = tuple(_one_line(v) for v in values.split(",")) if values else ()
    counts = holdout(find_shards(shards), out, by, Choice(chosen, share, test_share, seed))
    print(f"wrote {out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
