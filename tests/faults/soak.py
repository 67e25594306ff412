"""python -m tests.faults.soak [--seed 0]: a thousand crash points, 45 real faults, at most an hour.

(a) the save and resume protocol in one process, (b) two gloo processes with engine.strategy=torch,
(c) the same under DeepSpeed, (d) over damaged shards, against a faultless run over the same shards.
Ends with status 1 at the first difference; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tests.faults import soak_crashes, soak_processes
from tests.fixtures_shards import write_shards

BAD = (3, 17, 50, 51, 77)


def crashes(folder: Path, seed: int, trials: int, console: Console) -> dict[str, Any]:
    """(a)"""
    begin = time.monotonic()
    steps = iter(track(range(trials), "crash points", console=console))
    next(steps, None)
    counts = soak_crashes.soak(
        folder, seed=seed, trials=trials, tell=lambda done: next(steps, None) and None
    )
    return {**counts, "seconds": round(time.monotonic() - begin)}


def processes(
    folder: Path, seed: int, faults: int, strategy: str, console: Console, **data: Any
) -> dict[str, Any]:
    """(b), (c), (d)"""
    report = soak_processes.soak(
        folder, seed=seed, faults=faults, strategy=strategy, tell=console.print, **data
    )
    return {
        **report.faults,
        "lives": report.lives,
        "steps": report.steps,
        "seconds": round(report.seconds),
    }


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--deepspeed", type=int, default=5)
    parser.add_argument("--data-faults", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="Folder of the runs, kept; else a temporary one.")
    asked = parser.parse_args()
    console, result = Console(stderr=True), {"seed": asked.seed}
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.keep or Path(temporary)
        if asked.crashes:
            result["crash points"] = crashes(root / "crashes", asked.seed, asked.crashes, console)
        for name, count in (("torch", asked.faults), ("deepspeed", asked.deepspeed)):
            if count:
                console.rule(f"{count} faults, engine.strategy={name}")
                result[name] = processes(root / name, asked.seed, count, name, console)
        if asked.data_faults:
            console.rule("damaged shards")
            shards = root / "damaged_shards"
            write_shards(shards, [40, 24, 36], bad=BAD)
            result["damaged shards"] = processes(
                root / "damaged", asked.seed, asked.data_faults, "torch", console,
                train=[str(shards / "*.tar")], max_bad_fraction=0.5,
            )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
