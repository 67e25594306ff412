"""The command line: names, and errors in one line."""

from __future__ import annotations

import sys

import typer

from clipkit.cli import (
    bench,
    calibrate,
    checkpoint,
    embed,
    export,
    list_parts,
    patch,
    search,
    status,
    train,
    verify,
)
from clipkit.cli import eval as eval_command
from clipkit.errors import ClipkitError

app = typer.Typer(
    name="clipkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact, lean, restartable CLIP pretraining on webdataset shards.",
)
app.command("train")(train.train)
app.command("export")(export.export_command)
app.command("patch")(patch.patch)
app.command("embed")(embed.embed)
app.command("calibrate")(calibrate.calibrate)
app.command("search")(search.search)
app.command("status")(status.status)
app.command("verify")(verify.verify)
app.command("list")(list_parts.list_parts)
app.add_typer(eval_command.app, name="eval")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of `clipkit` and `python -m clipkit`."""
    try:
        app()
    except ClipkitError as error:
        print(f"clipkit: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
