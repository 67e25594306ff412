"""Functions over shards for workers of the engines; heavy imports inside, to start at once."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from clipkit.errors import DataError


def digest(shard: str, out: Path, salt: str = "") -> dict[str, Any]:
    """A table of the sha256 of each sample."""
    from clipkit.data.shard_reader import iter_samples
    from clipkit.data.tar_index import build_index
    from data_tools.tables import table_path, write_table

    samples = list(iter_samples(build_index(shard)))
    digests = [
        hashlib.sha256(salt.encode() + b"".join(s.members[e] for e in sorted(s.members)))
        for s in samples
    ]
    path = table_path(out / "tables", os.path.basename(shard))
    write_table(path, {"key": [s.key for s in samples], "sha256": [d.hexdigest() for d in digests]})
    return {"samples": len(samples), "outputs": f"tables/{path.name}"}


def count_calls(shard: str, out: Path, fail: list[str] = [], tries: int = 9) -> dict[str, Any]:  # noqa: B006
    """Notes each call in OUT/calls; those named in `fail` raise in their first `tries` calls."""
    name = os.path.basename(shard)
    with (out / "calls").open("a") as file:
        file.write(f"{name}\n")
    calls = (out / "calls").read_text().split().count(name)
    if name in fail and calls <= tries:
        raise OSError(f"connection to {name} was reset\nby peer")
    return {"samples": 2, "name": name}


def misbehave(shard: str, out: Path, how: dict[str, str]) -> dict[str, Any]:
    """What `how` says for the shard: dies, quits, raises, or answers with what is not JSON."""
    way = how.get(os.path.basename(shard), "")
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "exit":
        os._exit(0)
    if way == "quit":
        raise SystemExit(3)
    if way == "data":
        with (out / "calls").open("a") as file:
            file.write("x")
        raise DataError(f"{shard}: is broken")
    if way == "set":
        return {"x": {1}}
    if way == "lost":
        return {"outputs": ["nowhere.bin"]}
    time.sleep(0.05)
    deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"pid": os.getpid(), "deaf to Ctrl-C since it began": deaf}


def sleep(shard: str, out: Path, seconds: float) -> dict[str, Any]:
    """Writes its pid, then sleeps if the shard says so."""
    (out / f"{os.path.basename(shard)}.pid").write_text(str(os.getpid()))
    if "slow" in shard:
        time.sleep(seconds)
    return {}
