"""Command line of the shard tools: `python -m data_tools <tool>` or `clipkit-data <tool>`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import ClipkitError

app = typer.Typer(
    help="Offline work on shards.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def tools() -> None:
    """Offline work on shards."""  # A callback keeps `demo` a subcommand while it is the only one.


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to create; its parents may be missing.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other captions and scenes.")] = 0,
) -> None:
    """Build the demo data sets (digits, shapes, relations) in seconds, without a network."""
    from data_tools.demo import build_demo

    built = build_demo(out, seed=seed)
    print(f"wrote {out}" if built else f"{out} is up to date")


def main() -> None:
    """Run the command line; an error the user can mend becomes one line on stderr."""
    try:
        app()
    except ClipkitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


if __name__ == "__main__":
    main()
