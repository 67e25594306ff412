"""`clipkit eval run`: evaluate a checkpoint on folders in CLIP_benchmark's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
    from clipkit.dist import group
    from clipkit.eval.tasks import task_for_folder
    from clipkit.loading import load_encoder

    world = group.setup(device=device)
    encoder = load_encoder(checkpoint, device=world.device)
    results = [task_for_folder(str(folder), split).run(encoder, world).to_json() for folder in data]
    if world.is_main:
        _print(results)
        if out is not None:
            from clipkit.checkpoint.files import write_text

            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(results, indent=1))
    group.teardown()


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("data set", "metric", "value", "95 % interval")
    for result in results:
        for metric, value in result["metrics"].items():
            interval = result["intervals"].get(metric)
            shown = f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else ""
            table.add_row(
                result["dataset"],
                metric,
                f"{value:.4f}" if isinstance(value, float) else str(value),
                shown,
            )
    Console().print(table)
