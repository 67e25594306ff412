"""`clipkit checkpoint`: what is kept and why, and less of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clipkit.checkpoint import retention
from clipkit.checkpoint.files import only_writer
from clipkit.checkpoint.verify import list_checkpoints, step_of
from clipkit.cli.main import app
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import write_run


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["checkpoint", *map(str, words)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 1 to 4, of which 4 is damaged."""
    folders = [write_run(tmp_path, step) for step in (1, 2, 3, 4)]
    (folders[3] / "state.json").write_text("x")
    (tmp_path / "config.yaml").write_text("checkpoint: {keep: 1, keep_every: 2}\n")
    return tmp_path


def steps(run: Path) -> list[int]:
    return [step_of(p) for p in list_checkpoints(run)]


def test_ls(run: Path) -> None:
    result = call("ls", run)
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line for line in result.output.splitlines() if "MB" in line}
    assert set(rows) == {"1", "2", "3", "4"}
    assert "yes" in rows["1"] and "goes with the next save" in rows["1"]
    assert "every 2" in rows["2"] and "newest" in rows["3"]
    assert "NO" in rows["4"] and "not valid" in rows["4"]


def test_ls_without_a_config(run: Path) -> None:
    for text in ("", "checkpoint: [", "checkpoint: {keep: none}"):
        (run / "config.yaml").write_text(text)
        assert call("ls", run).exit_code == 0
    (run / "config.yaml").unlink()
    assert call("ls", run).exit_code == 0


def test_prune(run: Path) -> None:
    result = call("prune", run, "--keep", 1, "--keep-every", 0, "--dry-run")
    assert result.output.count("would remove") == 2 and steps(run) == [1, 2, 3, 4]
    result = call("prune", run, "--keep", 1)  # what the run keeps for good stays
    assert result.output.splitlines() == [f"removed {run}/checkpoints/step_00000001"]
    assert steps(run) == [2, 3, 4]
    assert call("prune", run, "--keep", 5).output == "nothing to remove\n"
    assert call("prune", run).exit_code == 2  # how many is never guessed


def test_not_while_a_save_is_written(run: Path) -> None:
    with only_writer(run / "checkpoints"):
        result = call("prune", run, "--keep", 1)
    assert isinstance(result.exception, CheckpointError)
    assert "another process is writing checkpoints there" in str(result.exception)
    assert steps(run) == [1, 2, 3, 4]


def test_the_run_may_save_while_checkpoints_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained = retention.explain

    def explain(*words: object) -> tuple[dict[Path, str], list[Path]]:
        with only_writer(run / "checkpoints"):
            return explained(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "explain", explain)
    assert call("prune", run, "--keep", 1).exit_code == 0
    assert steps(run) == [2, 3, 4]


@pytest.mark.parametrize("words", [["ls"], ["prune", "--keep", "1"]])
def test_no_run(tmp_path: Path, words: list[str]) -> None:
    result = call(*words, tmp_path / "absent")
    assert isinstance(result.exception, CheckpointError) and "absent" in str(result.exception)
