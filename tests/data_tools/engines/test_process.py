"""Worker processes: one that dies takes only its shard with it, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.map_shards import map_shards
from tests.data_tools import shard_functions as functions


def make_shards(folder: Path, names: str) -> list[str]:
    folder.mkdir()
    paths = [folder / name for name in names.split()]
    for path in paths:
        path.write_bytes(b"")
    return [str(path) for path in paths]


def test_a_dead_worker_breaks_only_its_shard(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "in", "a b c d e f g")
    how = {"b": "kill", "e": "exit", "g": "data"}
    report = map_shards(
        functions.misbehave, shards, out=tmp_path / "out", params={"how": how}, workers=2, retries=1
    )
    assert [result is not None for result in report.results] == [n not in how for n in "abcdefg"]
    assert [Path(shard).name for shard, _ in report.failures] == ["b", "e", "g"]
    assert all("worker process died" in reason for _, reason in report.failures[:2])
    assert all(result["deaf to Ctrl-C since it began"] for result in report.done)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pids = {result["pid"] for result in report.done}
    assert os.getpid() not in pids and not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from pathlib import Path
from data_tools.map_shards import map_shards
from tests.data_tools import shard_functions as functions
try:
    map_shards(functions.sleep, sys.argv[2:], out=Path(sys.argv[1]), params={"seconds": 60},
               workers=3, progress=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, stop: signal.Signals) -> None:
    out = tmp_path / "out"
    shards = make_shards(tmp_path / "in", "quick slow1 slow2")
    command = [sys.executable, "-c", SCRIPT, str(out), *shards]
    parent = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    try:
        assert until(lambda: len(list(out.glob("slow*.pid"))) == 2)
        assert until(lambda: all(path.read_text() for path in out.glob("slow*.pid")))
        assert until(lambda: any((out / ".done").glob("quick*.json")))  # its worker is idle now
        pids = [int(path.read_text()) for path in out.glob("slow*.pid")]
        if stop == signal.SIGINT:  # as a terminal does: all of the group get it
            os.killpg(parent.pid, stop)
        else:
            parent.send_signal(stop)
        code = parent.wait(20)
        assert code == (130 if stop == signal.SIGINT else -stop)
        assert until(lambda: not any(alive(pid) for pid in pids))
        assert b"Traceback" not in (parent.stderr.read() if parent.stderr else b"")
        assert [path.name.split(".")[0] for path in (out / ".done").iterdir()] == ["quick"]
    finally:
        parent.kill()


WORKER = """
import multiprocessing, os, signal, time
from data_tools.engines.process import _start_worker
reader, writer = multiprocessing.Pipe(duplex=False)
_start_worker(reader)
os.kill(os.getpid(), signal.SIGINT)
print("alive", os.environ["OMP_NUM_THREADS"], flush=True)
writer.close()
time.sleep(20)
"""


def test_a_worker_ignores_ctrl_c_and_follows_its_lifeline() -> None:
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", WORKER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (1, "alive 1\n", "")
