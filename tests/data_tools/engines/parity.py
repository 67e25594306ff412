"""One run of a cluster engine against worker processes, in a Python of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fixtures_shards import write_shards

_SCRIPT = """
import json, sys
from pathlib import Path
from data_tools.map_shards import map_shards
from tests.data_tools import shard_functions as functions
if __name__ == "__main__":
    engine, out, shards = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    options = {"out": out, "engine": engine, "workers": 2, "retries": 1, "progress": False}
    digest = map_shards(functions.digest, shards, params={"salt": "s"}, **options)
    again = map_shards(functions.digest, shards, params={"salt": "s"}, **options)
    how = {"001.tar": "kill", "002.tar": "data"}
    broken = map_shards(functions.misbehave, shards, params={"how": how}, **options)
    print("RESULT" + json.dumps([digest.results, digest.failures, again.skipped, broken.failures]))
"""


def check_parity(engine: str, folder: Path, death: str) -> None:
    """`engine` gives results and files of worker processes; a dead worker says `death`."""
    shards = write_shards(folder / "in", [3, 5, 2, 4])
    script = folder / "script.py"
    script.write_text(_SCRIPT)
    answers, digests = [], []
    for name in ("process", engine):
        out = folder / name
        command = [sys.executable, str(script), name, str(out), *shards]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
        assert engine != "spark" or done.stderr == ""  # Java greets with half a page
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert lines, done.stderr[-2000:]
        answers.append(json.loads(lines[0].removeprefix("RESULT")))
        files = sorted(path for path in (out / "tables").iterdir())
        digests.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1] and len(digests[0]) == 4
    (results, failures, skipped, broken), (other, other_failures, again, other_broken) = answers
    assert results == other and [r["samples"] for r in results] == [3, 5, 2, 4]
    assert failures == other_failures == [] and skipped == again == 4
    assert [shard for shard, _ in broken] == [shard for shard, _ in other_broken] == shards[1:3]
    assert death in other_broken[0][1] and other_broken[1][1].endswith("is broken")
