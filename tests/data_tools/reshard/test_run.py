"""What is kept is what the lists keep, byte for byte; a list of other shards is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset

import data_tools.map_shards as mapping
from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from clipkit.errors import DataError
from data_tools.engines.task import run_task
from data_tools.reshard.run import reshard
from data_tools.tables import shard_names, write_keep
from tests.fixtures_shards import noise_bytes, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Three shards of 5 samples: png, txt and every second one a member that training skips."""
    paths = []
    for shard in range(3):
        members = []
        for i in range(5 * shard, 5 * shard + 5):
            members += [(f"k{i}.txt", b"t%d" % i), (f"k{i}.png", noise_bytes(i))]
            members += [(f"k{i}.seg.npy", bytes(700 * i))] * (i % 2)
        paths.append(str(write_tar(tmp_path / "in" / "abc"[shard] / "0.tar", members)))
    return paths


def content(paths: list[str] | Path) -> list[tuple[str, dict[str, bytes]]]:
    paths = paths if isinstance(paths, list) else [str(p) for p in sorted(paths.glob("*.tar"))]
    return [(s.key, s.members) for path in paths for s in iter_samples(build_index(path))]


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def keep(path: Path, shards: list[str], chosen: list[int]) -> Path:
    names = shard_names(shards)
    where = [names[i // 5] for i in chosen]
    write_keep(path, where, [i % 5 for i in chosen], [f"k{i}" for i in chosen], "test")
    return path


def test_all_samples_cut_anew(tmp_path: Path, shards: list[str]) -> None:
    out = tmp_path / "out"
    facts = reshard(shards, out, samples_per_shard=4, prefix="p")
    assert facts["samples"] == 15 and list(tars(out)) == [f"p-0000{i}.tar" for i in range(4)]
    assert content(out) == content(shards)
    sizes = json.loads((out / "sizes.json").read_text())
    assert list(sizes.values()) == [4, 4, 4, 3]
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == 15


def test_several_lists_keep_what_all_keep(tmp_path: Path, shards: list[str]) -> None:
    one = keep(tmp_path / "a.parquet", shards, [13, 0, 1, 2, 7, 9])
    two = keep(tmp_path / "b.parquet", shards, [1, 2, 3, 9, 13])
    facts = reshard(shards, tmp_path / "out", keeps=[one, two])
    everything = content(shards)
    assert content(tmp_path / "out") == [everything[i] for i in (1, 2, 9, 13)]
    assert facts["counts"]["samples given"] == 15 and facts["counts"]["samples kept"] == 4


def test_the_size_limit_holds(tmp_path: Path, shards: list[str]) -> None:
    long = [(f"{'x' * 120}{i}.txt", b"t") for i in range(60)]
    shards = [*shards, str(write_tar(tmp_path / "in/d/0.tar", long, tar_format=1))]
    reshard(shards, tmp_path / "out", max_bytes=41_000)
    assert content(tmp_path / "out") == content(shards)
    sizes = [len(data) for data in tars(tmp_path / "out").values()]
    assert len(sizes) > 2 and max(sizes) <= 41_000


def test_shuffled_by_seed_and_repeatable(tmp_path: Path, shards: list[str]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        reshard(shards, tmp_path / name, samples_per_shard=6, shuffle_seed=seed)
    assert tars(tmp_path / "a") == tars(tmp_path / "b") != tars(tmp_path / "c")
    expected = np.random.default_rng(1).permutation(15)
    assert [key for key, _ in content(tmp_path / "a")] == [f"k{i}" for i in expected]
    assert sorted(content(tmp_path / "c")) == sorted(content(shards))


def test_what_was_interrupted_goes_on(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reshard(shards, tmp_path / "whole", samples_per_shard=4)
    load = mapping.load_engine

    def stopped(tasks, workers):
        yield 0, run_task(tasks[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(mapping, "load_engine", lambda name: stopped)
    with pytest.raises(KeyboardInterrupt):
        reshard(shards, tmp_path / "out", samples_per_shard=4)
    monkeypatch.setattr(mapping, "load_engine", load)
    assert reshard(shards, tmp_path / "out", samples_per_shard=4)["done_before"] == 1
    assert tars(tmp_path / "out") == tars(tmp_path / "whole")


def test_a_list_of_other_shards_is_refused(tmp_path: Path, shards: list[str]) -> None:
    path, out = tmp_path / "keep.parquet", tmp_path / "out"
    keep(path, shards, [0, 7])
    with pytest.raises(DataError, match="names the shard 'b/0.tar', which is not among"):
        reshard([shards[0], shards[2]], out, keeps=[path])
    write_keep(path, ["b/0.tar"], [2], ["k8"], "test")
    with pytest.raises(DataError, match="row 2 of b/0.tar is 'k8' there and 'k7' in the shard"):
        reshard(shards, out, keeps=[path])
    for row in (5, -1):
        write_keep(path, ["b/0.tar"], [row], ["k8"], "test")
        with pytest.raises(DataError, match=f"row {row} of b/0.tar, which has 5 samples"):
            reshard(shards, out, keeps=[path])
    keep(path, shards, [])
    with pytest.raises(DataError, match="no samples"):
        reshard(shards, out, keeps=[path])
    assert not out.exists()


def test_equal_keys_are_numbered_on_demand(tmp_path: Path) -> None:
    paths = [str(write_tar(tmp_path / name / "0.tar", [("k.txt", name.encode())])) for name in "ab"]
    with pytest.raises(DataError, match="key 'k'; give --new-keys"):
        reshard(paths, tmp_path / "out")
    reshard(paths, tmp_path / "out", new_keys=True)
    assert content(tmp_path / "out") == [
        ("000000000", {"txt": b"a"}), ("000000001", {"txt": b"b"})
    ]  # fmt: skip


def test_damage_is_counted_and_dry_runs_write_nothing(tmp_path: Path, shards: list[str]) -> None:
    data = Path(shards[1]).read_bytes()
    Path(shards[1]).write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    left = len(build_index(shards[1]))
    assert 0 < left < 5
    assert reshard(shards, out, dry_run=True)["counts"]["samples kept"] == 10 + left
    assert not out.exists()
    facts = reshard(shards, out)
    assert facts["counts"]["damaged shards"] == 1 and facts["samples"] == 10 + left
