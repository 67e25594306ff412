"""The commands `clipkit-data dedup exact|perceptual|text|semantic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data_tools.options import (
    DryRunOption,
    OutArgument,
    RunOptions,
    ShardsArgument,
    with_run_options,
)

app = typer.Typer(
    help="Find samples that repeat others, and list those to keep: keep.parquet, and "
    "duplicates.parquet with what each repeats. clipkit-data reshard --keep applies it.",
    no_args_is_help=True,
)


@app.command()
@with_run_options
def exact(
    shards: ShardsArgument,
    out: OutArgument,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Compare decoded pixels, not the bytes of the file.")
    ] = False,
    *,
    run: RunOptions,
) -> None:
    """Equal images; the first in the order of the shards stays.

    Memory of the main process: about 0.6 kB a sample.
    """
    from data_tools.dedup.run import dedup_exact

    _show("exact", dedup_exact(_found(shards), out, pixels=pixels, **run))


@app.command()
@with_run_options
def perceptual(
    shards: ShardsArgument,
    out: OutArgument,
    hash_name: Annotated[
        Literal["dhash", "phash"], typer.Option("--hash", help="Of 8 x 8 bits.")
    ] = "dhash",
    threshold: Annotated[
        int, typer.Option(min=-1, max=64, help="Most bits that two hashes may differ in.")
    ] = 6,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Mirror images look the same, too.")
    ] = False,
    group_by: Annotated[
        str, typer.Option(help="all, shard, key (up to its last separator), or json:<field>.")
    ] = "all",
    separator: Annotated[str, typer.Option(help="Ends the group in a key.")] = "_",
    *,
    run: RunOptions,
) -> None:
    """Images that look alike, greedily in the order of keys within each group.

    The first that is left becomes an exemplar, and all that are within the threshold of it go. With
    --group-by a volume's field or key and the defaults this is Hash-6 of "Less is More".
    """
    from data_tools.dedup.run import dedup_perceptual

    done = dedup_perceptual(
        _found(shards),
        out,
        hash_name=hash_name,
        threshold=threshold,
        mirrored=mirrored,
        group_by=group_by,
        separator=separator,
        **run,
    )
    _show("perceptual", done)


@app.command()
@with_run_options
def text(
    shards: ShardsArgument,
    out: OutArgument,
    threshold: Annotated[
        float, typer.Option(help="1: equal once normalised. Below: least Jaccard similarity.")
    ] = 1.0,
    *,
    run: RunOptions,
) -> None:
    """Captions that say the same; the first in the order of the shards stays.

    Letters are folded, other signs become blanks. Below 1, four-letter runs are compared: pairs
    come from MinHash and are checked exactly, so none is taken wrongly and a few may be missed.
    """
    from data_tools.dedup.run import dedup_text

    _show("text", dedup_text(_found(shards), out, threshold=threshold, **run))


@app.command()
def semantic(
    embeddings: Annotated[Path, typer.Argument(help="Folder of clipkit-data embed.")],
    out: OutArgument,
    eps: Annotated[float, typer.Option(help="Repeats have a cosine above 1 - EPS.")] = 0.05,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Of k-means; default: one per 1,000 samples.")
    ] = None,
    keep: Annotated[
        Literal["hard", "easy", "random"],
        typer.Option(help="Which of a group stay: far from the centroid, near it, any."),
    ] = "hard",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Compare only with samples that stay.")
    ] = False,
    side: Annotated[Literal["image", "text"], typer.Option(help="Features to compare.")] = "image",
    seed: Annotated[int, typer.Option(help="Of k-means and of --keep random.")] = 0,
    dry_run: DryRunOption = False,
) -> None:
    """SemDeDup: samples of nearly the same embedding, within clusters.

    As published, a sample goes if it is like any earlier one, even one that goes itself: of a chain
    A ~ B ~ C both B and C go, though A and C may differ. --greedy keeps C then.
    """
    from data_tools.dedup.run import dedup_semantic

    done = dedup_semantic(
        embeddings,
        out,
        eps=eps,
        clusters=clusters,
        keep=keep,
        greedy=greedy,
        side=side,
        seed=seed,
        dry_run=dry_run,
    )
    _show("semantic", done)
    if done and 2 * done["counts"]["duplicates"] > done["samples"]:
        print(f"warning: more than half of the samples go; a smaller --eps than {eps} keeps more")


def _found(shards: list[str]) -> list[str]:
    from clipkit.data.shard_images import find_shards

    return find_shards(shards)


def _show(kind: str, done: dict[str, Any]) -> None:
    from data_tools.summary import print_summary

    if done:
        print_summary(f"dedup {kind}", done)
