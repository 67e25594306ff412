"""Build the sidecar index of shards ahead of training, and say what is damaged or missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit.errors import DataError
from data_tools.options import RunOptions, ShardsArgument, with_run_options


def index_shard(shard: str, out: Path, content: bool, accept: bool) -> dict[str, Any]:
    """Build or refresh one shard's sidecar.

    Args:
        shard: Its path.
        out: Not used: a sidecar lies beside its shard.
        content: Hash the whole file too, and hold it against the hash of an earlier run.
        accept: Its samples are all there are: forget that it held more, or had other bytes.

    Raises:
        DataError: It cannot be read, or its sidecar cannot be written anywhere.
    """
    from clipkit.data.index_sidecar import read_head, sidecar_places, stamp_of, write_sidecar
    from clipkit.data.known_counts import KnownCounts, missing_samples
    from clipkit.data.tar_index import index_fields, load_index

    try:
        stamp = stamp_of(shard)  # before the scan: a shard that changes meanwhile stays stale
    except OSError as error:
        raise DataError(f"shard '{shard}' cannot be read: {error.strerror}") from None
    index, rotten = load_index(shard), False
    wanted = index
    if content:
        digest = _sha256(shard)
        rotten = bool(index.content) and index.content != digest and not accept
        wanted = replace(wanted, content=index.content if rotten else digest)
    if accept:
        wanted = replace(wanted, expected=0, accepted=True)
    if (wanted.head, wanted.content) != (index.head, index.content):
        write_sidecar(shard, index_fields(wanted), stamp)
    if not any(read_head(place, stamp) for place in sidecar_places(shard)):
        raise DataError(f"the index of '{shard}' cannot be written, nor in the cache folder")
    return {
        "samples": len(wanted),
        "members": len(wanted.offsets),
        "damage": wanted.damage,
        "notes": wanted.notes,
        "end_mark": wanted.end_mark,
        "missing": missing_samples(shard, wanted.head, KnownCounts()),
        "changed_in_place": rotten,
        "sha256": wanted.content,
    }


def _sha256(path: str) -> str:
    """Of the file's bytes as they are now, nothing remembered."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"shard '{path}' cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def write_sizes(counts: dict[str, int]) -> list[Path]:
    """Write open_clip's `sizes.json` (shard -> samples) into each shard's folder.

    Entries of other shards there stay.

    Args:
        counts: Shard path -> samples.

    Raises:
        DataError: One cannot be written, or is there and is no JSON object.
    """
    from clipkit.data.plain_files import read_plain

    folders: dict[Path, dict[str, int]] = defaultdict(dict)
    for path, count in counts.items():
        folders[Path(path).parent][os.path.basename(path)] = count
    written = []
    for folder, sizes in folders.items():
        target = folder / "sizes.json"
        temporary = folder / f".sizes.json.tmp-{os.getpid()}"
        try:
            old = json.loads(read_plain(target, 64 << 20) or b"") if target.exists() else {}
            merged = dict(sorted({**old, **sizes}.items()))
            temporary.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, target)
        except (ValueError, TypeError):
            raise DataError(f"{target}: is no JSON object; remove it") from None
        except OSError as error:
            raise DataError(f"{target}: cannot be written: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
        written.append(target)
    return written


def run_index(
    shards: Sequence[str],
    out: Path,
    *,
    content: bool = False,
    accept: bool = False,
    sizes: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Index shards in parallel; facts for the summary, which is written to `out`.

    Args:
        shards: Paths.
        out: Folder of summary.json.
        content, accept: As index_shard.
        sizes: Write sizes.json; a shard that misses samples keeps the number it should hold.
        dry_run: Touch nothing.
        options: Of map_shards: engine, workers, retries, limit.

    Raises:
        DataError: Shards failed; the others are done.
    """
    from data_tools.map_shards import map_shards
    from data_tools.summary import write_summary

    report = map_shards(
        index_shard,
        shards,
        out=out,
        params={"content": content, "accept": accept},
        resume=False,  # a fresh sidecar is the mark, and costs nothing to look at
        dry_run=dry_run,
        label="index",
        **options,
    )
    done = [(s, r) for s, r in zip(report.shards, report.results) if r is not None]
    facts = {
        "arguments": {"content": content, "accept": accept, "sizes": sizes},
        **report.facts(),
        "counts": {
            "damaged": sum(bool(r["damage"]) for _, r in done),
            "without_end_mark": sum(not r["end_mark"] for _, r in done),
            "changed_in_place": sum(r["changed_in_place"] for _, r in done),
            "missing_samples": sum(r["missing"] for _, r in done),
        },
        "problems": {shard: words for shard, r in done if (words := _problem(r))},
    }
    if dry_run:
        return facts
    if sizes:
        write_sizes({shard: r["samples"] + r["missing"] for shard, r in done})
    write_summary(out, "index", facts)
    report.raise_failures()
    return facts


def _problem(result: dict[str, Any]) -> str:
    """What is wrong with a shard, "" if nothing."""
    if result["changed_in_place"]:
        return result["damage"] or "other bytes"
    return result["damage"] or ("cut" if result["missing"] else result["notes"])


@with_run_options
def index(
    shards: ShardsArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder of summary.json; default: in the cache folder.")
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Hash whole files; again: find changed bytes.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="What the shards hold now is all they should hold.")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Write sizes.json beside the shards, for open_clip.")
    ] = False,
    *,
    run: RunOptions,
) -> None:
    """Write the index beside each shard, and report damaged shards and missing samples."""
    from clipkit.data.content_hash import cache_root
    from clipkit.data.shards import expand_shards, is_table, is_url
    from data_tools.summary import print_summary

    paths = expand_shards(shards, "SHARDS")
    other = next((path for path in paths if is_url(path) or is_table(path)), None)
    if other is not None:
        raise DataError(f"SHARDS: '{other}' is no local tar; copy it to disk")
    if out is None:
        chosen = hashlib.sha256("\n".join(map(os.path.abspath, paths)).encode()).hexdigest()
        out = cache_root() / "index" / "runs" / chosen[:16]
    facts = run_index(paths, out, content=content, accept=accept, sizes=sizes, **run)
    if not run["dry_run"]:
        print_summary("index", facts)
