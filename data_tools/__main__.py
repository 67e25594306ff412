"""Command line of the shard tools: `python -m data_tools <tool>` or `clipkit-data <tool>`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import ClipkitError
from data_tools.build.command import build
from data_tools.dedup.command import app as dedup
from data_tools.embed import embed
from data_tools.filter.command import filter_command
from data_tools.holdout import holdout_command
from data_tools.index import index
from data_tools.memory.command import app as memory
from data_tools.mine.command import mine
from data_tools.mixed import mixed
from data_tools.negatives.command import negatives
from data_tools.neighbours.command import neighbours
from data_tools.questions import questions
from data_tools.reshard.command import reshard
from data_tools.scenes.command import scenes
from data_tools.selection_formats import SOURCES
from data_tools.stats.command import stats
from data_tools.validate.command import validate

app = typer.Typer(
    help="Offline work on shards.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def tools() -> None:
    """Offline work on shards."""


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder to create; its parents may be missing.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other captions and scenes.")] = 0,
) -> None:
    """Build the demo data sets (digits, shapes, relations) in seconds, without a network."""
    from data_tools.demo import build_demo

    built = build_demo(out, seed=seed)
    print(f"wrote {out}" if built else f"{out} is up to date")


@app.command()
def wds(
    source: Annotated[
        Path, typer.Argument(help="Holds train/<class>/ and test/<class>/, or <class>/ folders.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create; its parents may be missing.")],
    template: Annotated[
        list[str] | None, typer.Option(help='Prompt with {c}; repeat it. Else "a photo of a {c}."')
    ] = None,
    train_share: Annotated[
        float, typer.Option(help="Share of each class cut off as train, from <class>/ folders.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Draws that share.")] = 0,
) -> None:
    """Turn folders of images, one folder a class, into an evaluation set of tar shards."""
    from data_tools.wds import TEMPLATES, write_wds

    templates = tuple(template or TEMPLATES)
    counts = write_wds(source, out, templates=templates, train_share=train_share, seed=seed)
    print(f"wrote {out}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))


@app.command(
    help="Turn a published compositional benchmark into a selection set.\n\n\b\nBenchmark: source\n"
    + "\n".join(f"{name}: {source}" for name, source in SOURCES.items())
)
def selection(
    benchmark: Annotated[
        str,
        typer.Argument(help="One of those above."),
    ],
    source: Annotated[Path, typer.Argument(help="Its file or folder, as above.")],
    out: Annotated[Path, typer.Argument(help="Folder of the selection set.")],
    images: Annotated[
        Path, typer.Option(help="Folder of the images; copied unless it lies below OUT.")
    ],
    split: Annotated[str, typer.Option(help="Folder of the items below OUT.")] = "test",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out items without their images.")
    ] = False,
    min_votes: Annotated[
        int, typer.Option(help="valse: keep items whose caption so many annotators chose.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="order: draws the shuffles.")] = 0,
) -> None:
    """Turn a published compositional benchmark into a selection set."""
    from data_tools.selection import convert
    from data_tools.selection_formats import Options

    done = convert(
        benchmark,
        source,
        images,
        out,
        split=split,
        allow_missing=allow_missing,
        options=Options(min_votes, seed),
    )
    left = f"; left out {done.left_out} items without their images" if done.left_out else ""
    print(f"wrote {out / split}: {done.items} items over {done.images} images{left}")
    if done.note:
        print(f"note: {done.note}")


app.command()(build)
app.command()(index)
app.command()(validate)
app.command()(reshard)
app.add_typer(dedup, name="dedup")
app.command()(embed)
app.add_typer(memory, name="memory")
app.command()(mine)
app.command()(mixed)
app.command()(negatives)
app.command()(neighbours)
app.command("filter")(filter_command)
app.command("holdout")(holdout_command)
app.command()(stats)
app.command()(scenes)
app.command()(questions)


def main() -> None:
    """Run the command line; an error the user can mend becomes one line on stderr."""
    try:
        app()
    except ClipkitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


if __name__ == "__main__":
    main()
