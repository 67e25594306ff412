"""The command line of `clipkit-data stats`."""

from __future__ import annotations

from typing import Annotated

import typer

from data_tools.options import OutArgument, RunOptions, ShardsArgument, with_run_options


@with_run_options
def stats(
    shards: ShardsArgument,
    out: OutArgument,
    split: Annotated[str, typer.Option(help="Of a folder that is an evaluation set.")] = "test",
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image, not only read its header.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Samples on the page.")] = 24,
    seed: Annotated[int, typer.Option(help="Draws those samples.")] = 0,
    *,
    run: RunOptions,
) -> None:
    """Describe shards: a table with one line a sample, and a page to look at.

    OUT holds tables/ (a parquet file for each shard, which filter and dedup read), stats.parquet
    (the sums), stats.html and summary.json. Run again, only new and changed shards are read.
    """
    from clipkit.data.shard_images import find_shards
    from data_tools.stats.run import command_line, write_stats
    from data_tools.summary import print_summary

    facts = write_stats(
        find_shards(shards, split), out, decode=decode, show=show, seed=seed,
        command=command_line(shards, out, decode), **run,
    )  # fmt: skip
    if facts:
        print_summary("stats", facts)
        print(f"page: {out / 'stats.html'}")
