"""The data part of a run: sources, their order, what is made of a sample, the loader over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clipkit.addons.base import AddOn
from clipkit.config.data_section import DataSection, ViewSection
from clipkit.config.schema import RunConfig
from clipkit.data.hard_batches import HardBatches, check_shards
from clipkit.data.loader import IndexedLoader
from clipkit.data.mixture import Mixture, order_for_mixture
from clipkit.data.open_source import open_source
from clipkit.data.order import Order
from clipkit.data.samples import SampleReader
from clipkit.data.shard_store import ShardStore
from clipkit.data.shards import is_url
from clipkit.data.sources import Source
from clipkit.data.streaming import StreamingLoader
from clipkit.data.token_cache import TokenCache
from clipkit.data.transforms import TrainTransform
from clipkit.dist.group import World
from clipkit.engine.train_files import open_table, resolve_sources
from clipkit.errors import DataError
from clipkit.towers.build import Towers

Loader = IndexedLoader | StreamingLoader
_PREFETCH_STEPS = 32


def build_loader(config: RunConfig, towers: Towers, addons: list[AddOn], world: World) -> Loader:
    """The loader of this rank, at position 0.

    Raises:
        DataError: Shards are missing, damaged or too small.
    """
    d = config.data
    reader = build_reader(d, towers.image_size, addons)
    tokenizer: Callable[[list[str]], Tensor] = towers.tokenizer
    if d.token_cache:
        tokenizer = TokenCache(tokenizer, d.token_cache)
    shared: dict[str, Any] = {
        "rank": world.rank,
        "world_size": world.world_size,
        "workers": d.workers,
        "max_bad_fraction": d.max_bad_fraction,
    }
    lists = resolve_sources(d)
    remote = any(is_url(path) for _, paths in lists for path in paths)
    store = build_store(d) if remote else None
    if d.mode == "streaming":
        return StreamingLoader(
            lists[0][1],
            reader,
            tokenizer,
            seed=config.run.seed,
            buffer=d.shuffle_buffer,
            global_batch_size=config.train.global_batch_size,
            virtual_epoch=d.virtual_epoch,
            store=store,
            allow_pipe=d.allow_pipe,
            **shared,
        )
    sources = [open_source(paths, name, partial(open_table, d), store) for name, paths in lists]
    mixture = build_mixture(config, sources)
    ahead = _PREFETCH_STEPS if remote else 0
    return IndexedLoader(sources, mixture, reader, tokenizer, prefetch_steps=ahead, **shared)


def build_reader(d: DataSection, image_size: tuple[int, int], addons: list[AddOn]) -> SampleReader:
    """What one sample is made of."""
    main = ViewSection()
    views = {
        name: TrainTransform(
            image_size if v.size is None else (v.size, v.size),
            d.crop_scale if v.crop_scale is None else v.crop_scale,
            d.crop_ratio if v.crop_ratio is None else v.crop_ratio,
            d.flip if v.flip is None else v.flip,
        )
        for name, v in {"image": main, **d.views}.items()
    }
    return SampleReader(
        views,
        image_keys=d.image_keys,
        caption_keys=d.caption_keys,
        caption_rule=d.caption_rule,
        caption_weights=d.caption_weights,
        caption_lines=d.caption_lines,
        image_members=d.image_members,
        decode=d.decode,
        exif=d.exif,
        max_pixels=d.limits.max_pixels,
        max_bytes=d.limits.max_bytes,
        hooks=[a.sample for a in addons if type(a).sample is not AddOn.sample],
    )


def build_store(d: DataSection) -> ShardStore | None:
    """The local cache of remote shards, where there is to be one."""
    if d.cache_dir is None:
        return None
    return ShardStore(Path(d.cache_dir), int(d.cache_gb * 1e9), d.retries)


def build_mixture(config: RunConfig, sources: list[Source]) -> Mixture:
    """The order over all sources."""
    d, batch, seed = config.data, config.train.global_batch_size, config.run.seed
    if len(sources) == 1:
        orders = [
            Order(
                sources[0].counts,
                seed=seed,
                global_batch_size=batch,
                streams=d.streams,
                window=d.window,
            )
        ]
    else:
        orders = [
            order_for_mixture(
                source.counts, seed=seed, number=number, streams=d.streams, window=d.window
            )
            for number, source in enumerate(sources)
        ]
    weights = [s.weight for s in d.sources if s.weight is not None]
    return Mixture(
        orders,
        seed=seed,
        global_batch_size=batch,
        weights=weights or None,
        hard=build_hard_batches(config, sources),
    )


def build_hard_batches(config: RunConfig, sources: Sequence[Source]) -> HardBatches | None:
    """Neighbours as asked for.

    Raises:
        DataError: The file is missing, no array, or of other shards.
    """
    h = config.data.hard_batches
    if h is None:
        return None
    try:
        neighbours = np.load(h.neighbours, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # on hostile headers numpy's parser raises a dozen kinds
        raise DataError(
            f"data.hard_batches.neighbours: '{h.neighbours}' cannot be read as .npy: {error}"
        ) from None
    if not isinstance(neighbours, np.ndarray):
        raise DataError(
            f"data.hard_batches.neighbours: '{h.neighbours}' holds several arrays; give one .npy"
        )
    check_shards(h.neighbours, sources)
    return HardBatches(neighbours, group=h.group, batches=h.batches, seed=config.run.seed)
