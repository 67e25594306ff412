"""The command `clipkit-data reshard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import OutArgument, RunOptions, ShardsArgument, with_run_options


@with_run_options
def reshard(
    shards: ShardsArgument,
    out: OutArgument,
    keep: Annotated[
        list[Path] | None, typer.Option(help="Keep-list; repeat it to keep what all of them keep.")
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Most of a shard.")] = 10_000,
    max_shard_mb: Annotated[float, typer.Option(help="Largest tar, in 10^6 bytes.")] = 1000,
    shuffle_seed: Annotated[int | None, typer.Option(help="Draw an order from it.")] = None,
    prefix: Annotated[str, typer.Option(help="Shards are PREFIX-00000.tar, ...")] = "shard",
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Number the samples; else they keep their keys.")
    ] = False,
    *,
    run: RunOptions,
) -> None:
    """Cut shards anew, or write what a keep-list of dedup or filter keeps.

    Members are copied byte for byte. Stopped at any point, the same command goes on.
    Memory of the main process: about 1 kB a sample.
    """
    from clipkit.data.shard_images import find_shards
    from data_tools.reshard.run import reshard as run_reshard
    from data_tools.summary import print_summary

    facts = run_reshard(
        find_shards(shards),
        out,
        keeps=keep or (),
        samples_per_shard=samples_per_shard,
        max_bytes=int(max_shard_mb * 1e6),
        shuffle_seed=shuffle_seed,
        prefix=prefix,
        new_keys=new_keys,
        **run,
    )
    print_summary("reshard", facts)
