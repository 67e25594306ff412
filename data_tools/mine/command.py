"""The command `clipkit-data mine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_tools.options import DryRunOption, finite


def mine(
    embeddings: Annotated[
        Path,
        typer.Argument(help="Folder of clipkit-data embed over the shards of data.train, in order"),
    ],
    out: Annotated[Path, typer.Argument(help="The .npy file for data.hard_batches.neighbours.")],
    by: Annotated[Literal["text", "image"], typer.Option(help="Features to compare.")] = "text",
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of a sample.")] = 8,
    skip_rank: Annotated[
        int, typer.Option(min=0, help="Leave out so many of the nearest: likely the same thing.")
    ] = 0,
    max_similarity: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Leave out those of a larger cosine; which suits depends on the model.",
        ),
    ] = None,
    flat_below: Annotated[
        int, typer.Option(min=0, help="Samples below which the search is exact.")
    ] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of the index where it is not.")] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Find hard negatives of each sample: (samples, k) sample ids, nearest first, -1 for none.

    Samples of an equal caption (case and outer blanks aside) never are, nor is a sample itself.
    Needs room beside OUT for the features and their index while it runs.
    """
    from data_tools.mine.run import MineOptions, mine_neighbours
    from data_tools.summary import print_summary

    options = MineOptions(by, k, skip_rank, max_similarity, flat_below, seed)
    print_summary(f"mine {out}", mine_neighbours(embeddings, out, options, dry_run=dry_run))
    if dry_run:
        print("dry run, nothing is written")
