"""`clipkit eval ls` and `validate`: which tasks and data sets there are, and are they whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[list[Path], typer.Option(help="Evaluation set, or a folder of them; repeat.")]
Split = Annotated[list[str], typer.Option(help="Folder or file prefix of the shards; repeat.")]


def ls(
    data: Data = [],  # noqa: B006  (typer reads the default)
    split: Split = ["test"],  # noqa: B006
) -> None:
    """List tasks and what they read; with --data, the sets there and the tasks that fit them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipkit.cli.eval import sets_of
    from clipkit.config.parts import list_kinds, read_part
    from clipkit.eval.tasks import types_read

    console = Console()
    kinds = {kind: types_read(kind) for kind in list_kinds("eval")}
    if not data:
        table = Table("task", "reads", "what it measures")
        for kind, reads in kinds.items():
            table.add_row(kind, ", ".join(reads), read_part("eval", kind).doc)
        console.print(table)
        return
    table = Table("data set", "types", "tasks that read it", "folder")
    for place in sets_of(data, split):
        fitting = [kind for kind, reads in kinds.items() if set(reads) & set(place.types)]
        cells = (place.name, ", ".join(place.types), ", ".join(fitting), str(place.root))
        table.add_row(*map(Text, cells))
    console.print(table)


def validate(
    data: Data,
    split: Split = ["test"],  # noqa: B006
    tasks: Annotated[
        list[str], typer.Option(help="Also check that these kinds, globs or YAML files fit.")
    ] = [],  # noqa: B006
    extensions: Annotated[
        list[str], typer.Option(help="Package whose tasks may be named; repeat.")
    ] = [],  # noqa: B006
) -> None:
    """Read all images, labels and captions of sets without a model; exit 3 if one is not whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipkit.cli.eval import plan_jobs, sets_of
    from clipkit.errors import DataError
    from clipkit.eval.validate import validate_set

    console, bad = Console(), 0
    table = Table("data set", "type", "samples", "state")
    for place in sets_of(data, split):
        for kind in place.types:
            found = validate_set(place, kind)
            bad += bool(found.problems)
            state = found.problems[0] if found.problems else "whole"
            if len(found.problems) > 1:
                state += f" (and {len(found.problems) - 1} more)"
            table.add_row(*map(Text, (place.name, kind, str(found.samples), state)))
    console.print(table)
    if bad:
        raise DataError(f"{bad} of the data sets above are not whole")
    if tasks:
        plan_jobs(data, split, tasks, None, extensions)
