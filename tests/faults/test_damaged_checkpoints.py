"""Rows 3, 4, 16 and 19: bit rot, a bad `latest`, pruning beside damage, late names, odd clocks."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.checkpoint.verify import list_checkpoints, newest_valid, step_of
from clipkit.cli.main import app
from clipkit.dist.group import World
from clipkit.engine.saving import pick_checkpoint
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import assert_same_weights, events, history

FILES = ("rank_00001.safetensors", "rank_00000.safetensors", "index.json", "manifest.json")


def copy_of(reference: Reference, folder: Path) -> Path:
    """The finished run, for damage."""
    return Path(shutil.copytree(reference.run, folder / "r"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def fit_from_here(world: World, config: str, overrides: list[str]) -> str:
    """Resume, train on; the checkpoint it went on from."""
    found, _ = pick_checkpoint(Path(overrides[0].partition("=")[2]) / "r", world)
    fit_in_pool(world, config, [*overrides, "run.resume=auto"])
    return found.name if found else ""


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found_before_anything_is_used(
    tmp_path: Path, reference: Reference, name: str
) -> None:
    run = copy_of(reference, tmp_path)
    damaged = run / "checkpoints" / "step_00000040" / name
    size = damaged.stat().st_size
    for place in (0, size // 3, size - 2):
        flip(damaged, place)
        result = CliRunner().invoke(app, ["verify", str(run)])
        named = "step_00000040" if name == "manifest.json" else name  # whose sums it changes
        assert result.exit_code != 0 and named in str(result.exception), place
        found, skipped = newest_valid(run)
        assert found is not None and step_of(found) == 30
        assert len(skipped) == 1 and named in skipped[0]
        flip(damaged, place)
    assert newest_valid(run)[1] == []


def test_the_run_goes_on_from_the_one_before(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    run = copy_of(reference, tmp_path)
    flip(run / "checkpoints" / "step_00000040" / "rank_00001.safetensors", -1)
    overrides = [f"run.dir={tmp_path}", "data.workers=0"]
    found = ranks(2).run(fit_from_here, str(reference.config), overrides)
    assert found == ["step_00000030"] * 2
    assert history(run) == history(reference.run)
    assert_same_weights(run, reference.run)


LATEST: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "half": lambda path: path.write_text("step_000"),
    "older": lambda path: path.write_text("step_00000030\n"),
    "dangling": lambda path: path.write_text("step_00000099\n"),
    "binary": lambda path: path.write_bytes(b"\xff\x00"),
    "link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("kind", list(LATEST))
def test_latest_decides_nothing(tmp_path: Path, reference: Reference, kind: str) -> None:
    run = copy_of(reference, tmp_path)
    LATEST[kind](run / "checkpoints" / "latest")
    found, skipped = newest_valid(run)
    assert found is not None and step_of(found) == 40 and not skipped


def test_pruning_beside_damage(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    run = copy_of(reference, tmp_path)
    flip(run / "checkpoints" / "step_00000040" / "rank_00000.safetensors", -1)
    overrides = [f"run.dir={tmp_path}", "data.workers=0", "run.resume=auto"]
    more = ["train.total_steps=45", "checkpoint.every=0", "optim.schedule=constant"]
    ranks(2).run(fit_in_pool, str(reference.config), [*overrides, *more])
    assert [step_of(p) for p in list_checkpoints(run)] == [30, 40, 45]  # 40 does not count
    found, skipped = newest_valid(run)
    assert found is not None and step_of(found) == 45 and not skipped
    assert not [e for e in events(run, "pruned") if e["step"] > 40]


def test_a_name_that_shows_late_and_clocks_that_jump(tmp_path: Path, reference: Reference) -> None:
    run = copy_of(reference, tmp_path)
    newest = run / "checkpoints" / "step_00000040"
    hidden = newest.rename(tmp_path / "on its way")
    for stamp, path in zip((1.0, 4e9), (newest.with_name("step_00000030"), hidden)):
        os.utime(path, (stamp, stamp))
    timer = threading.Timer(0.2, lambda: hidden.rename(newest))
    timer.start()
    begin = time.monotonic()
    found, skipped = newest_valid(run)
    timer.join()
    assert found == newest and not skipped and time.monotonic() - begin < 30
