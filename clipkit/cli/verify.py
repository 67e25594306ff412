"""`clipkit verify RUN|CHECKPOINT|URL`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import CheckpointError


def verify(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Run folder, checkpoint, exported folder, or the URL of a run's remote copy."
        ),
    ],
) -> None:
    """Check every file of a checkpoint (all checkpoints of a run folder) against its manifest."""
    from clipkit.checkpoint.remote import is_url

    jobs = _remote_jobs(checkpoint) if is_url(checkpoint) else _local_jobs(Path(checkpoint))
    problems = []
    for name, check in jobs:
        try:
            print(f"{name}: ok, {check()} files")
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))


def _local_jobs(path: Path) -> list[tuple[str, Callable[[], int]]]:
    from clipkit.checkpoint.verify import list_checkpoints, verify_checkpoint

    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; give a run folder, a checkpoint or an exported folder"
        )

    def check(folder: Path) -> Callable[[], int]:
        return lambda: len(verify_checkpoint(folder)["files"])

    return [(str(folder), check(folder)) for folder in list_checkpoints(path) or [path]]


def _remote_jobs(url: str) -> list[tuple[str, Callable[[], int]]]:
    from clipkit.checkpoint.remote import open_remote, verify_remote

    folder, steps = open_remote(url)

    def check(step: int) -> Callable[[], int]:
        return lambda: verify_remote(folder, step)

    return [(f"{folder.url}/step_{step:08d}", check(step)) for step in steps]
