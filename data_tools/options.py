"""Options that the tools share, for signatures of typer commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ShardsArgument = Annotated[
    list[str],
    typer.Argument(help="Brace patterns, globs, files or folders of tars, in quotes."),
]
OutArgument = Annotated[Path, typer.Argument(help="Folder of the results.")]
EngineOption = Annotated[
    Literal["process", "ray", "spark"],
    typer.Option(
        "--engine",
        help="process: this machine. ray and spark (extras of clipkit): this machine, or the "
        "cluster that RAY_ADDRESS or SPARK_MASTER names.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Shards at once; default: one for each CPU."),
]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="Further tries for a shard that failed.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many shards.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and touch nothing.")
]
