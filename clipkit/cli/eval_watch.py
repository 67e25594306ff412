"""`clipkit eval watch`: evaluate each new checkpoint of a live run, from another process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.on_ranks import run_on_ranks
from clipkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from clipkit.cli.eval import Settings
    from clipkit.dist.group import World
    from clipkit.towers.dual import FeatureEncoder


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder; may be empty yet.")],
    data: Annotated[list[Path], typer.Option(help="Evaluation set, or a folder of them; repeat.")],
    tasks: Annotated[list[str], typer.Option(help="Kind, glob or YAML file; repeat.")] = [],  # noqa: B006
    split: Annotated[list[str], typer.Option(help="Folder or prefix of the shards; repeat.")] = [  # noqa: B006
        "test"
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for results; default RUN/eval.")] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 30,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds without training and new checkpoints to the end.")
    ] = 600,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the towers.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once per rank.")] = 64,
    extensions: Annotated[
        list[str], typer.Option(help="Package whose tasks may be named; repeat.")
    ] = [],  # noqa: B006
) -> None:
    """Evaluate checkpoints as they appear; ends when the run has been still for --patience."""
    from clipkit.cli.eval import Settings, plan_jobs, writable
    from clipkit.eval.suite import checkpoint_facts

    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is no run folder")
    settings = Settings(out or run / "eval", None, precision, batch_size)

    def work(world: World) -> None:
        jobs = plan_jobs(data, split, tasks, world, extensions)
        writable(settings.out)
        if world.is_main:
            typer.echo(f"watching {run} for checkpoints; results: {settings.out}", err=True)
        done: set[int] = set()
        while (step := _next_step(run, done, every, patience, world)) is not None:
            done.add(step)
            folder, encoder = _load(settings, run, step, world)
            if encoder is not None:
                settings.evaluate(encoder, checkpoint_facts(folder), jobs, world)
        if not done:
            raise CheckpointError(f"{run}: no checkpoint appeared in {patience:g} s")
        if world.is_main:
            text = f"{run}: still for {patience:g} s; {len(done)} checkpoints looked at"
            typer.echo(text, err=True)

    run_on_ranks(work, device)


def _next_step(
    run: Path, done: set[int], every: float, patience: float, world: World
) -> int | None:
    """The oldest checkpoint not looked at, the same on all ranks; None when the run is still."""
    from clipkit.checkpoint.verify import list_checkpoints, step_of
    from clipkit.engine.run_folder import is_live

    still = time.monotonic()
    while True:
        live = is_live(run)  # asked first: what a run wrote before it ended is then seen below
        still = time.monotonic() if live else still
        new = [s for s in map(step_of, list_checkpoints(run)) if s not in done]
        ended = not live and not new and time.monotonic() - still >= patience
        step = world.broadcast_int(new[0] if new else -2 if ended else -1)
        if step >= 0:
            return step
        if step == -2:
            return None
        time.sleep(every)


def _load(
    settings: Settings, run: Path, step: int, world: World
) -> tuple[Path, FeatureEncoder | None]:
    """The model of a checkpoint; None, said so, where a rank finds it damaged or pruned."""
    from clipkit.checkpoint.verify import checkpoint_folder

    folder, encoder, reason = checkpoint_folder(run, step), None, ""
    try:
        encoder = settings.load(str(folder), world)
    except CheckpointError as error:
        reason = str(error)
    if world.max_int(int(encoder is None)):
        typer.echo(f"{folder.name} left out: {reason or 'another rank cannot read it'}", err=True)
        return folder, None
    return folder, encoder
