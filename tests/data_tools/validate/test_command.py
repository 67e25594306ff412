"""The command: exit status, summary, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.errors import ConfigError, DataError
from data_tools import map_shards as mapping
from data_tools.__main__ import app
from data_tools.engines.task import Outcome, Task, run_task
from tests.fixtures_shards import noise_bytes, write_tar


def serial(tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[int, Outcome]]:
    for number, task in enumerate(tasks):
        yield number, run_task(task)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in "ab":
        members = []
        for i in range(3):
            members += [(f"{i}.jpg", noise_bytes(i, "JPEG", 24)), (f"{i}.txt", b"a dog")]
        write_tar(tmp_path / "in" / f"{shard}.tar", members)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _serial(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(mapping, "load_engine", lambda name: serial)


def run(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["validate", *map(str, arguments)])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_clean_shards_exit_with_0(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(shards, out)[0] == 0
    facts = summary(out)
    assert (facts["tool"], facts["samples"], facts["good"]) == ("validate", 6, 6)
    assert facts["arguments"]["max_pixels"] == 50_000_000
    assert run(shards, out)[0] == 0 and summary(out)["done_before"] == 2


def test_bad_samples_exit_with_1_each_time_and_the_copy_is_clean(
    shards: Path, tmp_path: Path
) -> None:
    bad = [("8.jpg", b"GIF89a"), ("8.txt", b"a cat"), ("9.jpg", noise_bytes(0, "JPEG", 24))]
    write_tar(shards / "b.tar", bad)
    out, clean = tmp_path / "out", tmp_path / "clean"
    for _ in range(2):
        code, shown = run(shards, out, "--repair", clean)
        assert code == 1 and "rejects: no_caption" in shown.replace("no caption", "no_caption")
    assert summary(out)["rejects"] == {"unreadable_image": 1, "no_caption": 1}
    assert sorted(path.name for path in clean.iterdir()) == ["a.tar"]
    (clean / "a.tar").unlink()
    assert run(shards, out, "--repair", clean)[0] == 1
    assert (clean / "a.tar").exists()
    assert run(clean, tmp_path / "again")[0] == 0


def test_the_summary_counts_notes_by_shard(shards: Path, tmp_path: Path) -> None:
    png = noise_bytes(0, "PNG", 24)
    write_tar(shards / "b.tar", [("8.jpg", png), ("8.txt", b"a cat"), ("8.exe", b"MZ")])
    assert run(shards, tmp_path / "out")[0] == 0
    facts = summary(tmp_path / "out")
    counts = {"unknown_member": 1, "format_mismatch": 1}
    assert facts["notes"] == counts and len(facts["noted"]) == 1
    assert facts["noted"][0]["shard"].endswith("b.tar") and facts["noted"][0]["notes"] == counts


def test_a_damaged_shard_exits_with_1_and_is_named(shards: Path, tmp_path: Path) -> None:
    data = (shards / "b.tar").read_bytes()
    (shards / "b.tar").write_bytes(data[:3000])
    code, shown = run(shards, tmp_path / "out")
    assert code == 1 and "b.tar: cut short" in shown.replace("\n", "")
    assert summary(tmp_path / "out")["damaged"][0]["shard"].endswith("b.tar")


def test_a_shard_that_cannot_be_checked_is_a_failure(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.validate import check

    def broken(path: str) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(check, "scan_tar", broken)
    with pytest.raises(DataError, match="2 of 2 shards failed"):
        run(shards, tmp_path / "out")
    assert len(summary(tmp_path / "out")["failures"]) == 2


def test_a_dry_run_and_a_limit(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown = run(shards, out, "--dry-run", "--repair", tmp_path / "clean")
    assert code == 0 and "2 shards to do" in shown
    assert not out.exists() and not (tmp_path / "clean").exists()
    run(shards, out, "--limit", 1)
    assert summary(out)["samples"] == 3


def test_options_reach_the_samples(shards: Path, tmp_path: Path) -> None:
    for options, cause in (
        (("--min-side", 25), "too_small"),
        (("--max-pixels", 500), "too_many_pixels"),
        (("--max-bytes", 100), "too_many_bytes"),
        (("--caption-keys", "json.Text"), "no_caption"),
        (("--image-keys", ".PNG, webp"), "no_image"),
    ):
        assert run(shards, tmp_path / "out", *options)[0] == 1
        assert summary(tmp_path / "out")["rejects"] == {cause: 6}
    assert summary(tmp_path / "out")["arguments"]["image_keys"] == ["png", "webp"]


def test_what_cannot_be_meant_is_refused(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="would replace"):
        run(shards, tmp_path / "out", "--repair", shards)
    with pytest.raises(DataError, match="is remote"):
        run("s3://bucket/a.tar", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "no.tar", tmp_path / "out")
    with pytest.raises(ConfigError, match="--image-keys"):
        run(shards, tmp_path / "out", "--image-keys", ",")
    with pytest.raises(ConfigError, match=r"json\.<field>"):
        run(shards, tmp_path / "out", "--caption-keys", "json")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install simplejpeg"):
        run(shards, tmp_path / "out", "--strict")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_worker_processes_do_the_same(shards: Path, tmp_path: Path) -> None:
    assert run(shards, tmp_path / "out", "--repair", tmp_path / "clean", "--workers", 2)[0] == 0
    assert len(list((tmp_path / "clean").iterdir())) == 2
