"""`clipkit checkpoint ls|prune`: what a run keeps, and less of it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from clipkit.checkpoint.retention import Retention

app = typer.Typer(no_args_is_help=True, help="List and remove the checkpoints of a run.")

RunFolder = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command("ls")
def ls(run: RunFolder) -> None:
    """Step, size, age and whether it is valid of every checkpoint, and why it is kept.

    Every file is read and compared with its manifest. The rules are those of the run's config.yaml.
    """
    from rich.table import Table
    from rich.text import Text

    from clipkit.checkpoint.retention import is_valid, read_scores
    from clipkit.checkpoint.verify import step_of
    from clipkit.cli.console import table_console
    from clipkit.eval.plain_text import printable

    folders, rules = {step_of(folder): folder for folder in _folders(run)}, _rules(run)
    valid = {step: is_valid(folder) for step, folder in folders.items()}
    stay = rules.reasons(list(valid), lambda step: valid[step], read_scores(run, rules.best))
    table = Table("step", "size", "age", "valid", "kept because", title=Text(printable(str(run))))
    for step, folder in folders.items():
        with contextlib.suppress(FileNotFoundError):  # removed by the run meanwhile
            words = _size(folder), _age(folder), "yes" if valid[step] else "NO"
            table.add_row(str(step), *words, stay.get(step, "goes with the next save"))
    table_console().print(table)


@app.command("prune")
def prune(
    run: RunFolder,
    keep: Annotated[int, typer.Option(min=1, help="Newest valid checkpoints that stay.")],
    keep_every: Annotated[
        int | None,
        typer.Option(min=0, help="Multiples of this step stay too; 0: none. Default: as the run."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove old checkpoints, the best one of checkpoint.best excepted; damaged ones never count.

    Safe while the run goes on.
    """
    from dataclasses import replace

    from clipkit.checkpoint.files import only_writer
    from clipkit.checkpoint.retention import explain, read_scores
    from clipkit.checkpoint.write import discard

    _folders(run)
    rules = replace(_rules(run), keep=keep)
    if keep_every is not None:
        rules = replace(rules, keep_every=keep_every)
    try:
        # all are read before the lock is taken: meanwhile the run may save
        _, go = explain(run, rules, read_scores(run, rules.best))
        with contextlib.nullcontext() if dry_run else only_writer(run / "checkpoints"):
            for folder in filter(Path.exists, go):
                if not dry_run:
                    discard(folder)
                print(f"{'would remove' if dry_run else 'removed'} {folder}")
    except OSError as error:
        raise CheckpointError(f"{run}: not pruned: {error.strerror or error}") from None
    if not go:
        print("nothing to remove")


def _folders(run: Path) -> list[Path]:
    from clipkit.checkpoint.verify import list_checkpoints

    folders = list_checkpoints(run)
    if not folders:
        raise CheckpointError(f"{run}: no checkpoints there; give a run folder")
    return folders


def _rules(run: Path) -> Retention:
    """The run's own rules, by its config.yaml; the defaults without one."""
    from clipkit.checkpoint.retention import Retention
    from clipkit.config.load import read_yaml
    from clipkit.config.schema import CheckpointSection

    try:
        section = CheckpointSection.model_validate(read_yaml(run / "config.yaml")["checkpoint"])
    except (ConfigError, ValueError, KeyError, TypeError):
        section = CheckpointSection()
    return Retention(section.keep, section.keep_every, section.best, section.best_mode)


def _size(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) / 1e6:,.1f} MB"


def _age(folder: Path) -> str:
    minutes = (time.time() - folder.stat().st_mtime) / 60
    for unit, length in (("d", 1440), ("h", 60)):
        if minutes >= length:
            return f"{minutes / length:.1f} {unit}"
    return f"{max(0, minutes):.0f} min"
