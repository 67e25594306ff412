"""`clipkit train CONFIG [key=value ...]`, alone, under torchrun, under SLURM."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.config.load import load_config
from clipkit.config.schema import RunConfig
from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    from clipkit.dist.group import AbortWatch


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, e.g. optim.lr=3e-4.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check config, files and arithmetic.")
    ] = False,
) -> None:
    """Train a model. Every setting is in the config; `key=value` overrides it."""
    from clipkit.dist.env import read_env
    from clipkit.engine.preflight import preflight

    env = read_env()
    try:
        run_config = load_config(config, overrides or [])
        warnings = preflight(run_config)
    except ClipkitError as error:  # every rank finds the same mistake; one of them says so
        if env.rank == 0:
            raise
        sys.exit(error.exit_status)
    if env.rank == 0:
        for warning in warnings:
            print(f"clipkit: warning: {warning}", file=sys.stderr)
    if check:
        print(f"{config}: ok")
        return
    # loader workers share the cores: OpenMP threads that spin while they wait halve the speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status = _run(run_config)
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)


def _run(config: RunConfig) -> int:
    """Build and fit; a failure on any rank ends all ranks with the same status."""
    from clipkit.data.loader import worker_lost
    from clipkit.dist import group
    from clipkit.dist.env import read_env
    from clipkit.engine.build import build_run, set_threads
    from clipkit.engine.trainer import fit

    env = read_env()
    set_threads(config, env)
    world = group.setup(env, device=config.train.device, timeout_s=config.engine.timeout_s)
    watch = group.AbortWatch(world)
    log = None
    try:
        run = build_run(config, world)
        log = run.log
        outcome = fit(run)
        log.say(f"{outcome}: step {run.step}, run folder {run.folder}")
        world.barrier()
    except ClipkitError as error:
        return _fail(watch, error)
    except Exception as error:
        lost = worker_lost(error)
        if lost is not None:
            return _fail(watch, lost)
        watch.follow()  # a collective broke because another rank has already said why
        watch.announce(1)
        raise
    finally:
        watch.close()
        if log is not None:
            log.close()
    group.teardown()
    return 0


def _fail(watch: AbortWatch, error: ClipkitError) -> int:
    if watch.is_first():
        print(f"clipkit: {error}", file=sys.stderr, flush=True)
    watch.announce(error.exit_status)
    return error.exit_status
