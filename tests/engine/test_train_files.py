"""Training files are found and checked without torch; messages are held in tests/cli too."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from clipkit.config.load import load_config
from clipkit.config.schema import RunConfig
from clipkit.data.shard_store import ShardStore
from clipkit.engine import train_files
from clipkit.engine.train_files import check_train_files, resolve_sources
from clipkit.errors import DataError
from tests.e2e.runs import write_run
from tests.fixtures_shards import noise_bytes, write_shards, write_tar


def with_data(tmp_path: Path, **data: object) -> RunConfig:
    """A run whose data section says this instead of data.train."""
    return load_config(write_run(tmp_path, data={"train": [], **data}))


def test_reading_stops_as_soon_as_the_batch_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_run(tmp_path))
    read = []
    load = train_files.load_index
    monkeypatch.setattr(
        train_files, "load_index", lambda p, write: read.append(p) or load(p, write)
    )
    check_train_files(config)
    assert len(read) == 1


def test_each_source_has_a_name_and_its_paths(tmp_path: Path) -> None:
    one, two = (write_shards(tmp_path / n, [3, 4]) for n in ("one", "two"))
    sources = [{"shards": [str(tmp_path / "one")], "name": "web"}, {"shards": two[0]}]
    config = with_data(tmp_path, sources=sources)
    assert resolve_sources(config.data) == [("web", one), ("data.sources.1", [two[0]])]
    check_train_files(config)  # 10 samples for a batch of 16: a mixture goes round
    with pytest.raises(DataError, match="holds 3 samples, fewer than one global batch of 16"):
        check_train_files(with_data(tmp_path / "b", sources=sources[1:]))


def test_every_source_is_checked(tmp_path: Path) -> None:
    good = write_shards(tmp_path / "good", [20])[0]
    only = str(write_tar(tmp_path / "only.tar", [(f"{i}.png", b"x") for i in range(20)]))
    with pytest.raises(DataError, match=r"no sample of data.sources.1 .*the shards hold \.png"):
        check_train_files(with_data(tmp_path, sources=[{"shards": good}, {"shards": only}]))


def test_captions_may_lie_in_the_json_member(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", b"{}") for i in range(20) for e in ("png", "json")]
    path = str(write_tar(tmp_path / "a.tar", members))
    check_train_files(with_data(tmp_path, train=path, caption_keys=["json.caption"]))
    with pytest.raises(DataError, match=r"data.caption_keys=\['txt'\]"):
        check_train_files(with_data(tmp_path, train=path))


def test_lists_of_files_count(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise_bytes(1))
    table = tmp_path / "list.tsv"
    table.write_text("filepath\ttitle\n" + "a.png\tcaption 1\n" * 20)
    check_train_files(with_data(tmp_path, train=str(table)))
    with pytest.raises(DataError, match="text"):
        check_train_files(with_data(tmp_path, train=str(table), caption_columns="text"))


def test_remote_shards_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardStore, "local", lambda self, url: pytest.fail("fetched"))
    cached = {"cache_dir": str(tmp_path / "cache"), "train": "memory://b/{0..3}.tar"}
    check_train_files(with_data(tmp_path, **cached))


def test_streaming_needs_a_shard_for_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "s", [20, 20])
    with pytest.raises(DataError, match="2 shards cannot be dealt to 1 ranks x 3 workers"):
        check_train_files(with_data(tmp_path, mode="streaming", train=shards, workers=3))


def test_gzipped_shards_are_streamed_unseen(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [20, 20])
    for path in shards:
        Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
    check_train_files(with_data(tmp_path, mode="streaming", train=shards))
    with pytest.raises(DataError, match="no sample in 2 shards"):
        check_train_files(with_data(tmp_path / "b", train=shards))
