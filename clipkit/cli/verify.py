"""`clipkit verify CHECKPOINT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import CheckpointError


def verify(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder or exported folder.")
    ],
) -> None:
    """Check every file of a checkpoint (all checkpoints of a run folder) against its manifest."""
    from clipkit.checkpoint.verify import list_checkpoints, verify_checkpoint

    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{checkpoint}: no such folder; give a run folder, a checkpoint or an exported folder"
        )
    folders = list_checkpoints(checkpoint) or [checkpoint]
    problems = []
    for folder in folders:
        try:
            manifest = verify_checkpoint(folder)
            print(f"{folder}: ok, {len(manifest['files'])} files")
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("; ".join(problems))
