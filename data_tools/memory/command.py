"""The commands `clipkit-data memory build|add|info`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.options import DryRunOption, OutArgument, with_options

if TYPE_CHECKING:
    from data_tools.memory.sources import RowSource

app = typer.Typer(
    help="Image and text features that queries are answered from: embeddings with an index.",
    no_args_is_help=True,
)
EmbeddingsArgument = Annotated[
    list[Path], typer.Argument(help="Folders of clipkit-data embed, all of one checkpoint.")
]
MemoryArgument = Annotated[Path, typer.Argument(help="Folder of clipkit-data memory build.")]
FlatOption = Annotated[
    int,
    typer.Option("--flat-below", min=0, help="Rows below which the index is flat, so exact; from "
                 "there on IVF with 8-bit codes."),
]  # fmt: skip
ListsOption = Annotated[
    int | None, typer.Option("--nlist", min=1, help="Lists of IVF; default: 4 sqrt(rows).")
]
ProbeOption = Annotated[int, typer.Option("--nprobe", min=1, help="Lists searched, at least.")]
MostOption = Annotated[
    int, typer.Option("--max-nprobe", min=1, help="And at most, to reach the target.")
]
TargetOption = Annotated[
    float, typer.Option("--target-recall", help="Recall@10 against flat to reach.")
]
SeedOption = Annotated[int, typer.Option(help="Of k-means and of the rows that measure recall.")]
_with_index_options = functools.partial(
    with_options,
    "index",
    {
        "flat_below": (FlatOption, 1_000_000),
        "nlist": (ListsOption, None),
        "nprobe": (ProbeOption, 8),
        "max_nprobe": (MostOption, 256),
        "target_recall": (TargetOption, 0.95),
        "seed": (SeedOption, 0),
    },
)


@app.command()
@_with_index_options
def build(
    embeddings: EmbeddingsArgument,
    out: OutArgument,
    dry_run: DryRunOption = False,
    *,
    index: dict[str, Any],
) -> None:
    """Write a memory of all rows of the embeddings, and measure the recall of its indexes.

    Held in RAM is the index of one side: 4 bytes times rows times dim where flat, 1 byte with IVF.
    Interrupted, it begins again; done, it is not done again. To swap memories name another folder.
    """
    from data_tools.memory.sources import open_sources

    _write(open_sources(embeddings), out, index, dry_run)


@app.command()
@_with_index_options
def add(
    memory: MemoryArgument,
    embeddings: EmbeddingsArgument,
    out: OutArgument,
    dry_run: DryRunOption = False,
    *,
    index: dict[str, Any],
) -> None:
    """Write a new memory: the rows of an old one under their numbers, then those of embeddings."""
    from data_tools.memory.sources import open_sources

    _write(open_sources(embeddings, memory), out, index, dry_run)


@app.command()
def info(
    memory: MemoryArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files and compare their sha256.")
    ] = False,
) -> None:
    """See that a memory is whole, and print what it holds."""
    from clipkit.retrieval.memory import FolderMemory
    from data_tools.memory import build
    from data_tools.summary import print_summary

    found = FolderMemory(memory)
    for side in found.facts["sides"]:
        found.side(side).index  # noqa: B018 -- opens it
    if verify:
        build.verify(found)
    print_summary(f"memory {memory}", build.summary(found.facts))


def _write(sources: list[RowSource], out: Path, index: dict[str, Any], dry_run: bool) -> None:
    from data_tools.memory.build import IndexOptions, build_memory, summary
    from data_tools.summary import print_summary

    options = IndexOptions(**index)
    if dry_run:
        options.check()
        rows, dim = sum(map(len, sources)), sources[0].facts["dim"]
        print(
            f"{rows} rows of {dim} from {len(sources)} folders into {out}, index of a side: "
            f"{options.kind(rows)}; dry run, nothing is written"
        )
        return
    print_summary(f"memory {out}", summary(build_memory(sources, out, options)))
