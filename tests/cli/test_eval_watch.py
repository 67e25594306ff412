"""`clipkit eval watch`: each checkpoint once, damaged ones told, an end when the run is still."""

import fcntl
import shutil
import threading
import time

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.dist import group
from clipkit.engine.run_folder import is_live
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.eval.results import read_results
from tests.fixtures_encoder import write_color_set
from tests.fixtures_trained import write_trained_run


@pytest.fixture(autouse=True)
def _alone():
    yield
    group.teardown()


@pytest.fixture
def data(tmp_path):
    return write_color_set(tmp_path / "colors", [0, 1, 2, 3])


def watch(run, data, *options):
    words = ["eval", "watch", run, "--data", data, "--device", "cpu", "--every", "0.1", *options]
    return CliRunner().invoke(app, [str(w) for w in words])


def steps(folder):
    return sorted(r.data["step"] for r in read_results(folder))


def test_every_checkpoint_is_judged_once(tmp_path, data):
    run = tmp_path / "run"
    for step in (2, 4):
        write_trained_run(run, step)
    result = watch(run, data, "--patience", 0)
    assert result.exit_code == 0, result.exception
    assert steps(run / "eval") == [2, 4] and "2 checkpoints looked at" in result.output
    group.teardown()
    again = watch(run, data, "--patience", 0)
    assert again.output.count("finished before") == 2


def test_a_damaged_checkpoint_is_told_and_passed_over(tmp_path, data):
    run = tmp_path / "run"
    for step in (2, 4):
        write_trained_run(run, step)
    weights = next((run / "checkpoints" / "step_00000002").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    result = watch(run, data, "--patience", 0)
    assert result.exit_code == 0, result.exception
    assert "step_00000002 left out" in result.output and steps(run / "eval") == [4]


def test_a_live_run_is_waited_for(tmp_path, data):
    run, ready = tmp_path / "run", tmp_path / "ready"
    write_trained_run(ready, 6)
    (run / "checkpoints").mkdir(parents=True)
    lock = open(run / ".lock", "w")  # noqa: SIM115  (held until the thread ends the run)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert is_live(run)

    def later():
        time.sleep(1.0)
        shutil.move(ready / "checkpoints" / "step_00000006", run / "checkpoints")
        lock.close()

    thread = threading.Thread(target=later)
    thread.start()
    result = watch(run, data, "--patience", 0, "--out", tmp_path / "out")
    thread.join()
    assert result.exit_code == 0, result.exception
    assert steps(tmp_path / "out") == [6] and not is_live(run)


def test_mistakes(tmp_path, data):
    (tmp_path / "file").write_text("")
    assert isinstance(watch(tmp_path / "file", data).exception, ConfigError)
    assert isinstance(watch(tmp_path / "run", tmp_path / "absent").exception, DataError)


def test_a_run_that_never_was_is_told(tmp_path, data):
    result = watch(tmp_path / "nowhere", data, "--patience", 0, "--out", tmp_path / "out")
    assert isinstance(result.exception, CheckpointError)
    assert "nowhere: no checkpoint appeared" in str(result.exception)
