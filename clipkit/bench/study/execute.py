"""Runs the commands that are not done, one process each; a failed one ends its chain.

OUT/.done/<mark>.json says that a command is done, and after which others; OUT/logs/<mark>.log holds
what it said. A command is run again when its line or a config it names has changed, or when one
that it was run after was changed or run since.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from clipkit.bench.measure import machine
from clipkit.bench.study.commands import Chain, Command, Places
from clipkit.checkpoint.files import write_text
from clipkit.errors import ClipkitError

_LAST_LINES = 5


class StudyFailed(ClipkitError):
    """Commands of a study failed; the others were run."""

    exit_status = 6


def read_marker(command: Command) -> dict[str, Any] | None:
    """What the marker of a command says; None if there is none."""
    return _read(_marker(command))


def is_done(command: Command) -> bool:
    """Whether the command has run, and after the last run of those it was run after."""
    own = read_marker(command)
    if own is None:
        return False
    before = [_read(_marker(command).with_name(f"{mark}.json")) for mark in own.get("after", ())]
    return all(n is not None and n["finished"] <= own["finished"] for n in before)


def _read(marker: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(marker.read_text(encoding="utf-8"))
        return note if isinstance(note["finished"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(places: Places, chains: Sequence[Chain]) -> None:
    """Remove the markers of what is no command of the study any more.

    What such a command wrote may be replaced; were it to come back, it would not be done.
    """
    known = {f"{command.mark}.json" for chain in chains for command in chain.commands}
    for marker in (places.out / ".done").glob("*.json"):
        if marker.name not in known:
            marker.unlink()


def _marker(command: Command) -> Path:
    return command.out / ".done" / f"{command.mark}.json"


def _log(command: Command) -> Path:
    return command.out / "logs" / f"{command.mark}.log"


@dataclass
class _Runner:
    """Shared by the threads that run chains.

    Attributes:
        environment: Of the processes.
        facts: Of the machine, for the markers.
        failures: Lines for the user.
    """

    environment: dict[str, str]
    facts: dict[str, Any]
    progress: Progress
    task: Any
    failures: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    locks: dict[str, Lock] = field(default_factory=dict)

    def run(self, chain: Chain) -> bool:
        """Run a chain; False if one of its commands failed."""
        before: list[str] = []
        for command in chain.commands:
            with self.locks[command.mark]:  # rows share commands
                if command.mark in self.failed:
                    self.failures.append(f"{chain.name}: needs what failed")
                    return False
                fine = is_done(command) or self._run(chain.name, command, before)
            self.progress.advance(self.task)
            if not fine:
                return False
            before.append(command.mark)
        return True

    def _run(self, name: str, command: Command, before: Sequence[str]) -> bool:
        log, begin = _log(command), time.perf_counter()
        with log.open("w", encoding="utf-8") as stream:
            stream.write(f"$ {command.shown}\n")
            stream.flush()
            status = subprocess.run(  # noqa: S603  (our own programs, no shell)
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
            ).returncode
        seconds = time.perf_counter() - begin
        say = self.progress.console.print
        say(f"{name}: {seconds:.1f} s: {escape(command.shown)}", highlight=False)
        if status == 0:
            note = {"command": command.shown, "seconds": round(seconds, 1), **self.facts}
            note |= {"after": list(before), "finished": time.time_ns()}
            write_text(_marker(command), json.dumps(note))
            return True
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")[1:]
        for line in [x for x in lines if x.strip()][-_LAST_LINES:]:
            say(f"  {escape(line)}", highlight=False)
        self.failed.add(command.mark)
        self.failures.append(f"{name}: '{command.shown}' ended with {status}; see {log}")
        return False


def run_chains(setup: Chain, chains: Sequence[Chain], places: Places, jobs: int = 1) -> None:
    """Run the setup, then the chains, `jobs` at once.

    Raises:
        StudyFailed: A command failed; all that did not need it has been run.
    """
    for folder in (".done", "logs"):
        (places.out / folder).mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if places.data is not None:
        environment["CLIPKIT_DATA"] = str(places.data.absolute())
    every = [command for chain in (setup, *chains) for command in chain.commands]
    columns = (TextColumn("study"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True)) as progress:
        task = progress.add_task("study", total=len(every))
        runner = _Runner(environment, machine(1, "cpu"), progress, task)
        runner.locks = {command.mark: Lock() for command in every}
        if runner.run(setup):
            with ThreadPoolExecutor(jobs) as pool:
                try:
                    list(pool.map(runner.run, chains))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    if runner.failures:
        raise StudyFailed(f"{len(runner.failures)} chains failed; first, {runner.failures[0]}")
