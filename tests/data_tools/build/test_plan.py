"""Cuts keep their limits, and a plan is taken up again or refused."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from clipkit.data.shard_writer import write_shard
from clipkit.errors import DataError
from data_tools.build.plan import cut, save_plan, shuffled, tar_bytes, write_sizes
from data_tools.tables import read_table


def slow_cut(sizes: list[int], samples: int, limit: int) -> list[tuple[int, int]]:
    out, start, size = [], 0, 0
    for i, own in enumerate(sizes):
        if i > start and (i - start == samples or size + own + 10_240 > limit):
            out.append((start, i))
            start, size = i, 0
        size += own
    return [*out, (start, len(sizes))] if sizes else []


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_those_of_a_walk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30_000, rng.integers(0, 60))
    samples, limit = int(rng.integers(1, 12)), int(rng.integers(1, 150_000))
    assert cut(sizes, samples, limit) == slow_cut(sizes.tolist(), samples, limit)


def test_limits_must_be_positive() -> None:
    with pytest.raises(DataError, match="above 0"):
        cut(np.ones(3), 0, 10)


def test_tar_bytes_are_those_of_a_tar(tmp_path: Path) -> None:
    sizes = np.array([0, 1, 512, 513, 40_000])
    members = {f"x{i}": b"a" * size for i, size in enumerate(sizes)}
    facts = write_shard(tmp_path / "a.tar", [("k", members)])
    assert facts.bytes - 10_240 <= tar_bytes(sizes).sum() + 1024 <= facts.bytes
    out = io.BytesIO()
    tarfile.open(fileobj=out, mode="w").close()
    assert len(out.getvalue()) == 10_240


def rows(count: int = 10, txt: str = "t") -> pyarrow.Table:
    return pyarrow.table({"key": [str(i) for i in range(count)], "txt": [txt] * count})


def test_a_shuffle_is_a_permutation_of_its_seed() -> None:
    one, two = shuffled(rows(), 1)["key"].to_pylist(), shuffled(rows(), 2)["key"].to_pylist()
    assert one == shuffled(rows(), 1)["key"].to_pylist() != two
    assert sorted(one) == sorted(two) == shuffled(rows(), None)["key"].to_pylist()


def save(out: Path, table: pyarrow.Table, spans: object = ((0, 4), (4, 10)), **facts: int) -> list:
    return save_plan(out, table, spans, facts, ("key",))


def test_a_plan_is_kept_and_only_changed_files_are_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = [Path(f) for f in save(out, rows(), seed=1)]
    assert [f.name for f in files] == ["00000.parquet", "00001.parquet"]
    assert read_table(files[1]).equals(rows().slice(4))
    times = [f.stat().st_mtime_ns for f in files]
    (out / "shard-00000.tar").touch()
    (out / ".shard-00001.tar.tmp-7").touch()
    # other spans: those that are there stay
    assert save(out, rows(), ((0, 10),), seed=1) == [str(f) for f in files]
    assert [f.stat().st_mtime_ns for f in files] == times
    assert {p.name for p in out.iterdir()} == {".plan", "shard-00000.tar"}
    mended = rows().set_column(1, "txt", [["t"] * 9 + ["new"]])
    save(out, mended, seed=1)
    assert files[0].stat().st_mtime_ns == times[0]
    assert read_table(files[1])["txt"].to_pylist()[-1] == "new"


def test_another_plan_and_other_content_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(out, rows(), seed=1)
    for table, seed, message in ((rows(9), 1, "other samples"), (rows(), 2, "seed 1 and not 2")):
        with pytest.raises(DataError, match=message):
            save(out, table, seed=seed)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(DataError, match="full exists"):
        save(tmp_path / "full", rows(), seed=1)
    with pytest.raises(DataError, match="no samples"):
        save(tmp_path / "none", rows(0), (), seed=1)


def test_planning_that_was_interrupted_starts_over(tmp_path: Path) -> None:
    save(tmp_path / "out", rows(), seed=1)
    (tmp_path / "out/.plan/plan.json").write_text("{")
    assert len(save(tmp_path / "out", rows(8), ((0, 8),), seed=2)) == 1
    assert not (tmp_path / "out/.plan/00001.parquet").exists()


def test_sizes_hold_what_is_done(tmp_path: Path) -> None:
    plans = [f"{tmp_path}/.plan/{i:05d}.parquet" for i in range(3)]
    write_sizes(tmp_path, "a", plans, [{"samples": 3}, None, {"samples": 0}])
    assert (tmp_path / "sizes.json").read_text() == '{\n "a-00000.tar": 3\n}\n'
