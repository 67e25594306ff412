"""`clipkit verify`: every checkpoint of a run, every problem named."""

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import write_run


def verify(path):
    return CliRunner().invoke(app, ["verify", str(path)])


def test_a_run_and_a_single_checkpoint(tmp_path):
    first, second = write_run(tmp_path, 1), write_run(tmp_path, 2)
    result = verify(tmp_path)
    assert result.exit_code == 0
    assert [line.split(": ")[0] for line in result.output.splitlines()] == [str(first), str(second)]
    assert verify(first).output == f"{first}: ok, 4 files\n"


def test_all_damaged_ones_are_named_and_the_others_still_checked(tmp_path):
    folders = [write_run(tmp_path, step) for step in (1, 2, 3)]
    (folders[0] / "state.json").write_text("x")
    (folders[2] / "index.json").unlink()
    result = verify(tmp_path)
    assert isinstance(result.exception, CheckpointError)
    text = str(result.exception)
    assert "step_00000001/state.json" in text and "step_00000003/index.json is missing" in text
    assert "step_00000002: ok" in result.output


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_nothing_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    result = verify(tmp_path / name)
    assert isinstance(result.exception, CheckpointError) and name in str(result.exception)


def test_a_remote_copy(tmp_path):
    far = tmp_path / "far"
    first, second = write_run(tmp_path, 1), write_run(tmp_path, 2)
    far.mkdir()
    for folder in (first, second):
        folder.rename(far / folder.name)
    result = verify(f"file://{far}")
    assert result.exit_code == 0
    lines = [line.partition(": ok, 4")[0].rpartition("/")[2] for line in result.output.splitlines()]
    assert lines == ["step_00000001", "step_00000002"]
    text = (far / "step_00000002" / "state.json").read_text()
    (far / "step_00000002" / "state.json").write_text(text.replace("3", "4"))
    result = verify(f"file://{far}")
    assert "sha256 differs" in str(result.exception) and "step_00000001: ok" in result.output
    assert verify(f"file://{far}/step_00000001").exit_code == 0
    for url in (f"file://{tmp_path}/absent", f"file://{far}/step_00000009"):
        assert isinstance(verify(url).exception, CheckpointError)
    assert "nope://" in str(verify("nope://x").exception)
