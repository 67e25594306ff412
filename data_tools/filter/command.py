"""The command line of `clipkit-data filter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import DryRunOption, OutArgument


def filter_command(
    tables: Annotated[
        list[Path],
        typer.Argument(
            help="Parquet tables of samples, or folders of them (what stats, dedup or filter "
            "wrote), joined on shard and row: a sample must be in all; a column that several "
            "have is the first one's. Then OUT."
        ),
    ],
    out: OutArgument,
    where: Annotated[
        str | None,
        typer.Option(help="SQL condition over the columns: \"width >= 64 and caption <> ''\"."),
    ] = None,
    emb: Annotated[
        Path | None, typer.Option(help="Folder written by embed: scores samples by CLIP.")
    ] = None,
    top_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the scored samples that stays, exactly; ties by --seed."),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Cosine from which samples stay.")] = None,
    balance: Annotated[
        Path | None, typer.Option(help="Entries, one a line, to balance captions by (MetaCLIP).")
    ] = None,
    t: Annotated[
        int, typer.Option("--t", help="Captions of an entry up to which all of them stay.")
    ] = 20_000,
    random: Annotated[float | None, typer.Option(help="Share that stays, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws others.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first so many samples.")
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Choose samples by their tables, CLIP scores and captions; writes a keep-list for reshard.

    The stages run in the order of the options --where, --emb, --balance, --random. OUT holds
    keep.parquet, summary.json, and scores.parquet or balance.parquet where they were made.
    """
    from data_tools.filter.run import Rules, filter_tables
    from data_tools.summary import print_summary

    rules = Rules(where, emb, top_fraction, min_score, balance, t, random, seed)
    facts = filter_tables(tables, out, rules, limit=limit, dry_run=dry_run)
    print_summary("filter", facts)
    if dry_run:
        print("dry run, nothing is written")
