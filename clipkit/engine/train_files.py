"""The files that `data.train` or `data.sources` name: found and checked without torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

from clipkit.config.data_section import DataSection
from clipkit.config.schema import RunConfig
from clipkit.data.plain_files import check_plain
from clipkit.data.shards import check_deal, is_table, is_url, resolve_shards
from clipkit.data.table_source import TableSource
from clipkit.data.tar_index import load_index
from clipkit.dist.env import read_env
from clipkit.errors import DataError


def resolve_sources(data: DataSection) -> list[tuple[str, list[str]]]:
    """(name, paths) of each source; `data.train` is one.

    Raises:
        DataError: A pattern matches nothing, a file is missing.
    """
    if not data.sources:
        return [("data.train", _resolved(data, data.train, "data.train"))]
    return [
        (s.name or f"data.sources.{i}", _resolved(data, s.shards, f"data.sources.{i}.shards"))
        for i, s in enumerate(data.sources)
    ]


def _resolved(data: DataSection, patterns: tuple[str, ...], where: str) -> list[str]:
    remote = data.cache_dir is not None
    return resolve_shards(patterns, data.mode, where, remote=remote, allow_pipe=data.allow_pipe)


def open_table(data: DataSection, path: str) -> TableSource:
    """A list of image files, its columns as set."""
    return TableSource(
        path, data.image_column, data.caption_columns, data.image_root, data.table_separator
    )


def check_train_files(config: RunConfig) -> None:
    """Files exist, hold images and captions, and suffice for one global batch.

    Stops reading as soon as that is known; remote shards are not fetched.

    Raises:
        DataError: Names the shard, the member or the count.
    """
    data = config.data
    sources = resolve_sources(data)
    if data.mode == "streaming":
        check_deal(len(sources[0][1]), read_env().world_size, data.workers)
    for name, paths in sources:
        alone = len(sources) == 1 and data.mode == "indexed"
        _check_source(data, name, paths, config.train.global_batch_size if alone else 1)
    if data.hard_batches and not Path(data.hard_batches.neighbours).is_file():
        raise DataError(
            f"data.hard_batches.neighbours: no such file: {data.hard_batches.neighbours}"
        )


def _check_source(data: DataSection, name: str, paths: list[str], needed: int) -> None:
    count, members, damaged, unseen = 0, Counter[str](), [], False
    for path in paths:
        if is_url(path) or (data.mode == "streaming" and _is_gzipped(path)):
            unseen = True
            continue
        if is_table(path):
            count += int(open_table(data, path).counts.sum())
            members.update((*data.image_keys, "txt", "json"))
        else:
            index = load_index(path, write=False)
            count += len(index)
            members.update(index.extensions)
            if index.damage and not len(index):
                damaged.append(f"{path}: {index.damage}")
        if count >= needed and not _missing(data, members):
            return
    if unseen:
        return
    if not count:
        first = damaged[0] if damaged else paths[0]
        raise DataError(f"{name}: no sample in {len(paths)} shards; first: {first}")
    if missing := _missing(data, members):
        what, keys = missing
        found = ", ".join(f".{k}" for k, _ in members.most_common(6))
        raise DataError(
            f"data.{what}_keys={list(keys)}: no sample of {name} has such a member; "
            f"the shards hold {found}"
        )
    raise DataError(
        f"{name} holds {count} samples, fewer than one global batch of {needed}; "
        f"lower train.global_batch_size or add shards"
    )


def _is_gzipped(path: str) -> bool:
    with contextlib.suppress(OSError):
        check_plain(path)
        with open(path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"
    return False


def _missing(data: DataSection, members: Counter[str]) -> tuple[str, tuple[str, ...]] | None:
    """("image" or "caption", its keys), if no member is one of them."""
    for what, keys in (("image", data.image_keys), ("caption", data.caption_keys)):
        if not any(("json" if k.startswith("json.") else k) in members for k in keys):
            return what, keys
    return None
