"""`clipkit train --check`, and mistakes under several ranks are told once."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.runs import finish, start, write_run


def test_check_says_ok_and_starts_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    status, out, err = finish(start(["train", str(config), "--check"]))
    assert (status, out.strip(), err) == (0, f"{config}: ok", "")
    assert not (tmp_path / "runs").exists()


def test_other_ranks_exit_with_the_same_status_and_say_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    for rank, lines in ((0, 1), (1, 0)):
        process = start(["train", str(config), "optim.lrr=1"], RANK=str(rank), WORLD_SIZE="2")
        status, _, err = finish(process)
        assert status == 2
        assert len(err.splitlines()) == lines
