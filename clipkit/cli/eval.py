"""`clipkit eval run`: evaluate a checkpoint on folders in CLIP_benchmark's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Evaluate a checkpoint.")


@app.callback()
def _group() -> None:
    """Evaluate a checkpoint."""


@app.command("run")
def run(
    checkpoint: Annotated[
        Path, typer.Option(help="Run folder, checkpoint folder or exported folder.")
    ],
    data: Annotated[list[Path], typer.Option(help="Evaluation set; repeat for several.")],
    split: Annotated[str, typer.Option(help="Folder or file prefix of the shards.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Zero-shot classification or retrieval, as the folder's dataset_type.txt says."""
    from rich.console import Console

    from clipkit.dist import group
    from clipkit.eval.table import results_table
    from clipkit.eval.tasks import task_for_folder
    from clipkit.loading import load_encoder

    tasks = [task_for_folder(str(folder), split) for folder in data]
    for task in tasks:
        task.check()
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None
    world = group.setup(device=device)
    encoder = load_encoder(checkpoint, device=world.device)
    results = [task.run(encoder, world) for task in tasks]
    if world.is_main:
        Console().print(results_table(results))
        if out is not None:
            from clipkit.checkpoint.files import write_text

            write_text(out, json.dumps([r.to_json() for r in results], indent=1))
    group.teardown()
