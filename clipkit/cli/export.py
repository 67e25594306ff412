"""`clipkit export CHECKPOINT OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
) -> None:
    """Write a checkpoint in open_clip's layout (config json and safetensors)."""
    from clipkit.addons.retrieval_fusion import heads_of
    from clipkit.checkpoint.heads import heads_reader
    from clipkit.loading import export

    folder = export(checkpoint, out)
    print(f'{folder}: open_clip.create_model_and_transforms("local-dir:{folder}") loads it')
    reader = heads_reader(folder)
    if reader and heads_of(reader):
        print(f'refined features: clipkit.load("{folder}", memory=...)')
