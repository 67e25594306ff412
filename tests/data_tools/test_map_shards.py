"""Every shard is done once, marked, resumed, retried or reported: what holds for every engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipkit.errors import ConfigError, DataError
from data_tools import map_shards as tool
from data_tools.engines.task import Outcome, Task, run_task
from data_tools.map_shards import MapReport, map_shards
from tests.data_tools import shard_functions as functions

ALL = ["a.tar", "b.tar", "c.tar", "d.tar", "e.tar"]


def serial(tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[int, Outcome]]:
    """The smallest engine, here and last task first: the order of the answers is free."""
    for number in reversed(range(len(tasks))):
        yield number, run_task(tasks[number])


@pytest.fixture(autouse=True)
def _serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "load_engine", lambda name: serial)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ALL:
        (folder / name).write_bytes(b"tar")
    return [str(folder / name) for name in ALL]


def calls(out: Path) -> list[str]:
    """Shards that were worked on since the last look."""
    if not (out / "calls").exists():
        return []
    text = (out / "calls").read_text()
    (out / "calls").unlink()
    return sorted(text.split())


def test_results_stand_in_the_order_of_the_shards(tmp_path: Path, shards: list[str]) -> None:
    report = map_shards(functions.count_calls, shards, out=tmp_path / "out", params={})
    assert [result and result["name"] for result in report.results] == ALL
    assert (report.skipped, report.failures, report.shards) == (0, [], shards)
    assert report.facts()["samples"] == 10 and report.facts()["failures"] == []
    assert calls(tmp_path / "out") == ALL
    report.raise_failures()


def test_what_is_done_is_not_done_again(tmp_path: Path, shards: list[str]) -> None:
    out = tmp_path / "out"
    first = map_shards(functions.count_calls, shards[:3], out=out, params={})
    calls(out)
    second = map_shards(functions.count_calls, shards, out=out, params={})
    assert calls(out) == ["d.tar", "e.tar"]
    assert second.skipped == 3 and second.results[:3] == first.results
    map_shards(functions.count_calls, shards[:1], out=out, params={}, resume=False)
    assert calls(out) == ["a.tar"]


def test_a_changed_shard_parameter_or_code_brings_the_work_back(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    map_shards(functions.count_calls, shards, out=out, params={})
    calls(out)
    os.utime(shards[0], ns=(1, 1))
    map_shards(functions.count_calls, shards, out=out, params={})
    assert calls(out) == ["a.tar"]
    map_shards(functions.count_calls, shards, out=out, params={"tries": 8})
    assert calls(out) == ALL
    map_shards(functions.count_calls, shards, out=out, params={})  # its outputs were replaced
    assert calls(out) == ALL
    monkeypatch.setattr(tool, "code_hash", lambda module: "other source")
    map_shards(functions.count_calls, shards, out=out, params={})
    assert calls(out) == ALL


def test_two_functions_keep_their_own_marks(tmp_path: Path, shards: list[str]) -> None:
    out = tmp_path / "out"
    map_shards(functions.count_calls, shards, out=out, params={})
    map_shards(functions.misbehave, shards, out=out, params={"how": {}})
    calls(out)
    assert map_shards(functions.count_calls, shards, out=out, params={}).skipped == 5


def test_transient_failures_are_retried_and_the_rest_reported(
    tmp_path: Path, shards: list[str]
) -> None:
    out = tmp_path / "out"
    params = {"fail": ["b.tar", "d.tar"], "tries": 2}
    assert map_shards(functions.count_calls, shards, out=out, params=params).failures == []
    assert calls(out) == sorted([*ALL, "b.tar", "b.tar", "d.tar", "d.tar"])

    report = map_shards(functions.count_calls, shards, out=out, params={**params, "tries": 3})
    reason = "OSError: connection to b.tar was reset by peer"
    assert report.failures[0] == (shards[1], reason) and len(report.failures) == 2
    assert [result is None for result in report.results] == [False, True, False, True, False]
    assert report.facts()["failures"][0] == {"shard": shards[1], "reason": reason}
    with pytest.raises(DataError) as caught:
        report.raise_failures()
    for part in ("2 of 5 shards", shards[1], shards[3], reason, "run the same command to retry"):
        assert part in str(caught.value)

    calls(out)  # the count of calls starts anew, so that the failed ones now fail once
    done = map_shards(functions.count_calls, shards, out=out, params={**params, "tries": 3})
    assert done.skipped == 3 and len(done.failures) == 2 and set(calls(out)) == {"b.tar", "d.tar"}


def test_an_error_of_the_user_is_not_tried_again(tmp_path: Path, shards: list[str]) -> None:
    out = tmp_path / "out"
    report = map_shards(
        functions.misbehave, shards, out=out, params={"how": {"c.tar": "data"}}, retries=5
    )
    assert report.failures == [(shards[2], f"{shards[2]}: is broken")]
    assert (out / "calls").read_text() == "x"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("quit", "SystemExit"),
        ("set", "not JSON"),
        ("lost", "nowhere.bin"),
    ],
)
def test_a_broken_function_is_reported_not_marked_done(
    tmp_path: Path, shards: list[str], how: str, reason: str
) -> None:
    params = {"how": {"a.tar": how}}
    for _ in range(2):
        report = map_shards(functions.misbehave, shards, out=tmp_path, params=params, retries=0)
        assert len(report.failures) == 1 and reason in report.failures[0][1]


def test_limit_takes_the_first_shards(tmp_path: Path, shards: list[str]) -> None:
    report = map_shards(functions.count_calls, shards, out=tmp_path, params={}, limit=2)
    assert report.shards == shards[:2] and calls(tmp_path) == ALL[:2]


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(
    tmp_path: Path, shards: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    map_shards(functions.count_calls, shards, out=out, params={}, dry_run=True, label="count")
    assert "count: 5 shards to do, 0 done" in capsys.readouterr().out and not out.exists()
    map_shards(functions.count_calls, shards[:2], out=out, params={})
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    report = map_shards(functions.count_calls, shards, out=out, params={}, dry_run=True)
    assert "3 shards to do, 2 done" in capsys.readouterr().out
    assert [result is None for result in report.results] == [False, False, True, True, True]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_shard_named_twice_or_an_out_that_is_a_file_is_an_error(
    tmp_path: Path, shards: list[str]
) -> None:
    with pytest.raises(DataError, match=r"a\.tar.*twice"):
        map_shards(functions.count_calls, [*shards, shards[0]], out=tmp_path, params={})
    with pytest.raises(DataError, match="cannot be made"):
        map_shards(functions.count_calls, shards, out=Path(shards[0]), params={})


def test_an_interrupt_keeps_what_is_done_and_ends_the_engine(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def engine(tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[int, Outcome]]:
        try:
            yield from ((number, run_task(task)) for number, task in enumerate(tasks))
        finally:
            closed.append(True)

    @contextmanager
    def interrupted(*_: object) -> Iterator[Callable[[Outcome], None]]:
        def tick(outcome: Outcome) -> None:
            if outcome.result and outcome.result["name"] == "b.tar":
                raise KeyboardInterrupt

        yield tick

    with monkeypatch.context() as patch:
        patch.setattr(tool, "load_engine", lambda name: engine)
        patch.setattr(tool, "_bar", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            map_shards(functions.count_calls, shards, out=tmp_path, params={})
        assert closed and caught  # while its frames are still alive
    assert calls(tmp_path) == ALL[:2]
    map_shards(functions.count_calls, shards, out=tmp_path, params={})
    assert calls(tmp_path) == ALL[2:]


def test_a_report_names_three_failures_at_most() -> None:
    report = MapReport(list("abcdef"), [None] * 6, [(name, f"why {name}") for name in "abcde"])
    with pytest.raises(DataError, match=r"5 of 6 shards failed: a, b, c, \.\.\. \(why a\)"):
        report.raise_failures()


def test_an_unknown_engine_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="'dask'.*process, ray, spark"):
        map_shards(functions.count_calls, ["a"], out=tmp_path, params={}, engine="dask")
