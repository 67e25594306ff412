"""`clipkit train CONFIG [key=value ...]`, alone, under torchrun, under SLURM."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from clipkit.config.load import load_config
from clipkit.config.redact import redact
from clipkit.config.schema import RunConfig
from clipkit.errors import ClipkitError

_TO_BUILD = 6.0  # group time-outs that building a run may take


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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    # The interpreter's own way out aborts where a thread is still in the store, and may hang on
    # what a crash left behind.
    os._exit(status)


def _run(config: RunConfig) -> int:
    """Build and fit; a failure on any rank ends all ranks with the same status.

    However it ends, status.json says so: what starts runs again reads it there.
    """
    from clipkit.dist import group
    from clipkit.dist.env import read_env
    from clipkit.dist.watchdog import end_if_stuck, group_timeout
    from clipkit.engine.build import build_run, set_threads
    from clipkit.engine.preflight import run_folder
    from clipkit.engine.status import StatusFile
    from clipkit.engine.trainer import fit

    env = read_env()
    set_threads(config, env)
    timeout_s = group_timeout(config.engine.timeout_s)
    world = group.setup(env, device=config.train.device, timeout_s=timeout_s)
    status, run = StatusFile(run_folder(config), main=world.is_main), None

    def failed(exit_status: int, why: str) -> None:
        status.finish("failed", exit_status=exit_status, error=why)
        if run is not None:
            run.log.event("failed", run.step, error=why, exit_status=exit_status)

    watch = group.AbortWatch(world, on_leave=failed)
    # in what is built, where a first look at all shards may take hours; the watchdog sets it anew
    end_if_stuck(_TO_BUILD * timeout_s)
    try:
        run = build_run(config, world)
        status = run.status
        outcome = fit(run)
        world.barrier()
        run.log.event(outcome, run.step, f"{outcome}, run folder {run.folder}")
        status.finish(outcome, step=run.step)
        run.saver.close()  # what is still on its way to checkpoint.remote
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            watch.follow()  # a collective broke because another rank has already said why
        exit_status = 1 if mistake is None else mistake.exit_status
        why = (f"{type(error).__name__}: {error}" if mistake is None else str(mistake))[:2000]
        failed(exit_status, why)
        if mistake is None:
            _say(traceback.format_exc())
        elif watch.is_first():
            _say(f"clipkit: {mistake}\n")
        watch.announce(exit_status, why)
        return exit_status
    except BaseException:  # Ctrl-C twice
        failed(130, "interrupted")
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        watch.close()
        if run is not None:
            run.log.close()
    group.teardown()
    return 0


def _say(text: str) -> None:
    """To people, if anyone still listens; secrets masked."""
    with contextlib.suppress(OSError):
        print(redact(text), end="", file=sys.stderr, flush=True)


def _mistake(error: Exception) -> ClipkitError | None:
    """The user's own mistake behind an error, to be told in one line; None: a crash."""
    from clipkit.data.loader import worker_lost

    return error if isinstance(error, ClipkitError) else worker_lost(error)
