"""The command `clipkit-data validate`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.errors import ConfigError, DataError
from data_tools.options import OutArgument, RunOptions, ShardsArgument, with_run_options

if TYPE_CHECKING:
    from data_tools.map_shards import MapReport

_SHOWN = 5


@with_run_options
def validate(
    shards: ShardsArgument,
    out: OutArgument,
    repair: Annotated[
        Path | None, typer.Option(help="Folder for clean copies: usable samples, known members.")
    ] = None,
    image_keys: Annotated[
        str, typer.Option(help="Extensions of images, the preferred first, split by commas.")
    ] = "jpg,jpeg,png,webp",
    caption_keys: Annotated[
        str, typer.Option(help="Extensions of captions, or json.<field>, split by commas.")
    ] = "txt",
    keep: Annotated[
        str, typer.Option(help="Further extensions that clean copies have, split by commas.")
    ] = "json,cls",
    max_pixels: Annotated[int, typer.Option(min=1, help="Width x height at most.")] = 50_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a member at most.")] = 50_000_000,
    min_side: Annotated[int, typer.Option(min=1, help="Pixels of the shorter side.")] = 1,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Reject JPEGs that decode with warnings, too: most flipped bytes in pixels are "
            "seen only so. Needs simplejpeg.",
        ),
    ] = False,
    *,
    run: RunOptions,
) -> None:
    """Check every header, name, image and caption of shards; exit status 1 if any is unusable.

    OUT/rejects has a row for each sample that training cannot use (or that --min-side, a key twice
    in a shard, or a name like ../x rules out), OUT/problems one for each thing that is odd but
    usable and for each damaged tar (row -1). Columns: shard, row, key, cause, detail. What is plain
    of a format (alpha, palette, bilevel, cmyk, animated, exif_orientation) has no row:
    OUT/summary.json counts it, as all else, in notes and by shard in noted. Members of unknown
    extensions are never opened.

    --repair writes each shard anew without its rejects, the same bytes every time.
    """
    rules = {
        "image_keys": _names(image_keys),
        "caption_keys": _names(caption_keys),
        "keep": _names(keep),
        "max_pixels": max_pixels,
        "max_bytes": max_bytes,
        "min_side": min_side,
        "strict": strict,
    }
    _validate(shards, out, rules, str(repair.absolute()) if repair else "", run)


def _validate(
    shards: list[str],
    out: Path,
    rules: dict[str, Any],
    copies: str,
    run: RunOptions,
) -> None:
    from data_tools.map_shards import map_shards
    from data_tools.summary import print_summary, write_summary
    from data_tools.validate.check import check_shard

    _check_rules(rules)
    paths = _paths(shards)
    params = {"root": _root(paths, copies), "rules": rules, "repair": copies}
    report = map_shards(check_shard, paths, out=out, params=params, label="validate", **run)
    if run["dry_run"]:
        return
    facts = _facts(report) | {"arguments": {"shards": shards, "repair": copies, **rules}}
    write_summary(out, "validate", facts)
    print_summary("validate", facts)
    for line in facts["damaged"][:_SHOWN]:
        lost = f"; {line['missing']} samples are missing" if line["missing"] else ""
        print(f"{line['shard']}: {line['damage']}{lost}")
    if len(facts["damaged"]) > _SHOWN:
        print(f"... {len(facts['damaged']) - _SHOWN} more in {out / 'summary.json'}")
    report.raise_failures()
    if facts["rejected"] or facts["damaged"]:
        raise typer.Exit(1)


def _paths(patterns: list[str]) -> list[str]:
    """Shards of the patterns.

    Raises:
        DataError: One matches nothing, or is remote.
    """
    from clipkit.data.shards import expand_shards, is_url

    paths = expand_shards(patterns, "SHARDS")
    for path in paths:
        if is_url(path):
            raise DataError(f"SHARDS: '{path}' is remote; copy it to disk")
    return paths


def _names(text: str) -> list[str]:
    names = [name.strip().removeprefix(".") for name in text.split(",") if name.strip()]
    return [name if name.startswith("json.") else name.lower() for name in names]


def _check_rules(rules: dict[str, Any]) -> None:
    """Raises ConfigError for what would fail in every shard."""
    from importlib.util import find_spec

    from clipkit.data.captions import CaptionRule

    for name in ("image_keys", "caption_keys"):
        if not rules[name]:
            raise ConfigError(f"--{name.replace('_', '-')}: give at least one extension")
    CaptionRule(tuple(rules["caption_keys"]))
    if rules["strict"] and find_spec("simplejpeg") is None:
        raise ConfigError("--strict needs simplejpeg: pip install simplejpeg")


def _root(paths: list[str], copies: str) -> str:
    """Folder from which the shards are named.

    Raises:
        DataError: A clean copy would replace a shard.
    """
    from data_tools.tables import shard_names

    names = shard_names(paths)
    for path, name in zip(paths, names):
        if copies and os.path.realpath(path) == os.path.realpath(os.path.join(copies, name)):
            raise DataError(f"--repair: would replace '{path}'; name another folder")
    return str(Path(os.path.abspath(paths[0])).parents[names[0].count("/")])


def _facts(report: MapReport) -> dict[str, Any]:
    """What the summary says."""
    rejects: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for result in report.done:
        rejects.update(result["rejects"])
        notes.update(result["notes"])
    results = [(shard, r) for shard, r in zip(report.shards, report.results) if r]
    damaged = [
        {"shard": shard, "damage": r["damage"] or "samples are missing", "missing": r["missing"]}
        for shard, r in results
        if r["damage"] or r["missing"]
    ]
    return report.facts() | {
        "good": sum(result["good"] for result in report.done),
        "rejected": sum(rejects.values()),
        "missing": sum(result["missing"] for result in report.done),
        "damaged_shards": len(damaged),
        "rejects": dict(rejects.most_common()),
        "notes": dict(notes.most_common()),
        "damaged": damaged,
        "noted": [{"shard": shard, "notes": r["notes"]} for shard, r in results if r["notes"]],
    }
