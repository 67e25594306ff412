"""The command `clipkit-data neighbours`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_tools.options import DryRunOption, OutArgument, finite

_MANY = 0.2  # share of samples with near-duplicates above which the border is likely too low


def neighbours(
    embeddings: Annotated[
        Path, typer.Argument(help="Folder of clipkit-data embed over the training shards.")
    ],
    memory: Annotated[
        str, typer.Argument(help="Folder of clipkit-data memory build, or a glob of several.")
    ],
    out: OutArgument,
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of a sample.")] = 10,
    search: Annotated[
        Literal["uni", "cross"],
        typer.Option(help="uni: images find images, captions captions. cross: each the other."),
    ] = "uni",
    max_similarity: Annotated[
        float,
        typer.Option(
            callback=finite, help="Leave out rows whose image is nearer to the sample's; 2: none."
        ),
    ] = 0.98,
    allow_self: Annotated[
        bool,
        typer.Option(
            "--allow-self",
            help="Leave out nothing. Only to show what the leak does: "
            "heads trained so read the answer from the memory.",
        ),
    ] = False,
    engine: Annotated[
        Literal["process", "ray"],
        typer.Option(help="Of several memories: one by one, or each in a Ray task."),
    ] = "process",
    dry_run: DryRunOption = False,
) -> None:
    """Find the neighbours that a retrieval head is trained with.

    Writes image.npy and text.npy, (samples, k) rows of the memory by sample id, -1 for none: for
    the sample's image and for its caption. Of a sample itself and of its near-duplicates no row
    comes back. Which similarity that is depends on the model: the share of samples that have
    near-duplicates is printed, of the first 1,024 embedded samples at most.
    """
    from data_tools.neighbours.run import NeighbourOptions, find_neighbours
    from data_tools.summary import print_summary

    options = NeighbourOptions(k, search, max_similarity, allow_self)
    facts = find_neighbours(embeddings, memory, out, options, engine=engine, dry_run=dry_run)
    print_summary(f"neighbours {out}", facts)
    if dry_run:
        print("dry run, nothing is written")
    elif facts["counts"]["image: samples with fewer"] > facts["samples"] // 2:
        print(f"warning: most samples have fewer than {k} neighbours; raise --max-similarity, or "
              f"take a larger memory")  # fmt: skip
    elif facts.get("share of samples with near-duplicates", 0) > _MANY:
        print("hint: many samples have near-duplicates, so features of this model lie close and "
              "real neighbours may be left out with them; raise --max-similarity")  # fmt: skip
