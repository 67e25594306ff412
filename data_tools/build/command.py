"""The command `clipkit-data build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from data_tools.options import OutArgument, RunOptions, with_run_options

Format = Literal["folder", "csv", "tsv", "parquet", "jsonl", "img2dataset"]


@with_run_options
def build(
    source: Annotated[Path, typer.Argument(help="Folder of images, table, or img2dataset output.")],
    out: OutArgument,
    form: Annotated[
        Format | None, typer.Option("--format", help="What SOURCE is; else told by its look.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Of paths or of image bytes.")] = None,
    caption_columns: Annotated[
        str | None,
        typer.Option(help="Columns, or fields of .json files, split by commas; first is the txt."),
    ] = None,
    key_column: Annotated[str | None, typer.Option(help="Of given keys; else numbers.")] = None,
    separator: Annotated[str | None, typer.Option(help="Between columns of text.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the images a table names; else the table's.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="Caption of <class>/ folders without captions.")
    ] = "a photo of a {c}.",
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Most of a shard.")] = 10_000,
    max_shard_mb: Annotated[float, typer.Option(help="Largest tar, in 10^6 bytes.")] = 1000,
    shuffle_seed: Annotated[int | None, typer.Option(help="Draw an order from it.")] = None,
    prefix: Annotated[str, typer.Option(help="Shards are PREFIX-00000.tar, ...")] = "shard",
    check: Annotated[
        Literal["decode", "header"], typer.Option(help="How far each image is read to check it.")
    ] = "decode",
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Larger share of rejects is an error.")
    ] = 0.01,
    *,
    run: RunOptions,
) -> None:
    """Pack images and captions into tar shards; the same source gives the same bytes.

    A folder has <name>.txt or <name>.json beside <name>.jpg, or <class>/ folders. A table has one
    row a sample. Images are copied as they are. What cannot be used is listed in rejects.parquet,
    and tried again when the same command runs again; stopped at any point, it goes on.
    """
    from data_tools.build.rows import Columns
    from data_tools.build.run import build as run_build
    from data_tools.summary import print_summary

    captions = tuple(name for name in (caption_columns or "").split(",") if name)
    facts = run_build(
        source,
        out,
        kind=form,
        columns=Columns(image_column, captions, key_column),
        separator=separator,
        root=root,
        template=template,
        samples_per_shard=samples_per_shard,
        max_shard_mb=max_shard_mb,
        shuffle_seed=shuffle_seed,
        prefix=prefix,
        check=check,
        max_bad_fraction=max_bad_fraction,
        **run,
    )
    print_summary("build", facts)
