"""The command `clipkit-data negatives`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import OutArgument, RunOptions, ShardsArgument, with_run_options


@with_run_options
def negatives(
    shards: ShardsArgument,
    out: OutArgument,
    count: Annotated[int, typer.Option(min=1, help="Of a sample at most.")] = 1,
    kinds: Annotated[
        str,
        typer.Option(
            help="Some of object, attribute, color, size, number, relation, spatial, order, split "
            "by commas."
        ),
    ] = "",
    styles: Annotated[str, typer.Option(help="replace, swap or both.")] = "replace,swap",
    forbid: Annotated[
        Path | None,
        typer.Option(
            help='Phrases that none may name: one a line, # before a comment, or JSON "held_out".'
        ),
    ] = None,
    tagger: Annotated[
        bool,
        typer.Option("--tagger", help="Exchange adjectives that no rule knows. Needs textblob."),
    ] = False,
    caption_keys: Annotated[
        str, typer.Option(help="Extensions of captions, or json.<field>, split by commas.")
    ] = "txt",
    caption_lines: Annotated[
        bool, typer.Option("--caption-lines", help="A member holds one caption a line.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Draws among those that there are.")] = 0,
    *,
    run: RunOptions,
) -> None:
    """Copy shards, with "negatives" and "negative_tags" in each sample's json member.

    A negative is a caption of the sample with one thing wrong, told by its tag, kind/style; never
    one of its other captions. All else is copied byte for byte. The same seed and key give the same
    negatives, whatever shard the sample lies in. A sample of whose captions the rules are not sure
    gets none.
    """
    from clipkit.data.shard_images import find_shards
    from data_tools.negatives.run import add_negatives
    from data_tools.summary import print_summary

    facts = add_negatives(
        find_shards(shards),
        out,
        count=count,
        kinds=_names(kinds),
        styles=_names(styles),
        forbid=forbid,
        tagger=tagger,
        caption_keys=_names(caption_keys),
        caption_lines=caption_lines,
        seed=seed,
        **run,
    )
    print_summary("negatives", facts)
    if not run["dry_run"] and not facts["tags"]:
        print("warning: no sample has a negative; compare --caption-keys, --kinds and --styles "
              "with the captions")  # fmt: skip


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
