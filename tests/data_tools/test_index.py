"""`clipkit-data index`: sidecars, sizes.json, what is damaged, and what --accept forgets."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.data.index_sidecar import read_head, stamp_of
from clipkit.data.sources import ShardSource
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from data_tools.__main__ import app
from data_tools.index import index_shard, run_index, write_sizes
from tests.data_tools.in_process import use_serial
from tests.fixtures_shards import write_shards, write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path):
    return write_shards(tmp_path / "shards", [5, 3])


def run(shard, content=False, accept=False):
    return index_shard(shard, Path("/nowhere"), content=content, accept=accept)


def cut(path):
    """Cut the last sample but one off, between two members."""
    os.truncate(path, int(load_index(path).offsets[4]) - 512)


class TestOneShard:
    """index_shard()."""

    def test_a_sidecar_is_written(self, paths):
        facts = run(paths[0])
        assert facts["samples"] == 5 and facts["members"] == 10 and facts["damage"] == ""
        assert facts["missing"] == 0 and facts["end_mark"] and facts["sha256"] == ""
        assert read_head(Path(f"{paths[0]}.idx.npz"), stamp_of(paths[0])).count == 5
        assert json.loads(json.dumps(facts)) == facts

    def test_a_fresh_one_is_left_alone(self, paths):
        run(paths[0])
        sidecar = Path(f"{paths[0]}.idx.npz")
        before = sidecar.stat().st_mtime_ns, sidecar.stat().st_ino
        run(paths[0])
        assert (sidecar.stat().st_mtime_ns, sidecar.stat().st_ino) == before

    def test_a_pipe_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.tar")
        with pytest.raises(DataError, match="it is no regular file"):
            run(str(tmp_path / "pipe.tar"))

    def test_what_is_odd_is_told(self, tmp_path, monkeypatch):
        use_serial(monkeypatch)
        path = write_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("a.txt", b"2")])
        facts = run_index([str(path)], tmp_path / "out", progress=False)
        assert facts["problems"] == {str(path): "1 samples share the key of their neighbour"}
        assert facts["counts"]["damaged"] == 0

    def test_missing_samples_until_they_are_accepted(self, paths):
        run(paths[0])
        cut(paths[0])
        assert run(paths[0])["missing"] == 3 and run(paths[0])["missing"] == 3
        assert ShardSource(paths).lost == [(paths[0], "missing_samples", 3)]
        assert run(paths[0], accept=True)["missing"] == 0
        assert run(paths[0])["missing"] == 0 and ShardSource(paths).lost == []

    def test_accept_overrules_sizes_json(self, paths):
        write_sizes({paths[0]: 5})
        cut(paths[0])
        os.unlink(f"{paths[0]}.idx.npz")
        assert run(paths[0])["missing"] == 3
        assert run(paths[0], accept=True)["missing"] == 0 and ShardSource(paths).lost == []

    def test_lost_again_after_it_was_accepted(self, paths):
        run(paths[0])
        cut(paths[0])
        run(paths[0], accept=True)
        os.truncate(paths[0], int(load_index(paths[0]).offsets[2]) - 512)
        assert run(paths[0])["missing"] == 1

    def test_content_finds_bytes_that_changed_in_place(self, paths):
        facts = run(paths[0], content=True)
        assert facts["sha256"] == hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest()
        assert not run(paths[0], content=True)["changed_in_place"]
        assert run(paths[0])["sha256"] == facts["sha256"]
        stat = os.stat(paths[0])
        with open(paths[0], "r+b") as file:
            file.seek(600)
            file.write(b"rot")
        os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for _ in range(2):
            assert run(paths[0], content=True)["changed_in_place"]
        assert not run(paths[0], content=True, accept=True)["changed_in_place"]
        assert not run(paths[0], content=True)["changed_in_place"]

    def test_nowhere_to_write(self, paths, monkeypatch, cache):
        monkeypatch.setattr("clipkit.data.index_sidecar.write_whole", lambda *a: False)
        with pytest.raises(DataError, match="cannot be written"):
            run(paths[0])

    def test_gone(self):
        with pytest.raises(DataError, match="cannot be read"):
            run("/nowhere/a.tar")


class TestSizes:
    """write_sizes()."""

    def test_merged_per_folder(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        (tmp_path / "a" / "sizes.json").write_text('{"old.tar": 1, "x.tar": 9}')
        write_sizes({f"{tmp_path}/a/x.tar": 2, f"{tmp_path}/b/y.tar": 3})
        assert json.loads((tmp_path / "a" / "sizes.json").read_text()) == {"old.tar": 1, "x.tar": 2}
        assert json.loads((tmp_path / "b" / "sizes.json").read_text()) == {"y.tar": 3}
        assert len(list(tmp_path.rglob("*tmp*"))) == 0

    @pytest.mark.parametrize("text", ["{", "[1]", "3"])
    def test_a_foreign_file_is_left_alone(self, tmp_path, text):
        (tmp_path / "sizes.json").write_text(text)
        with pytest.raises(DataError, match="no JSON object"):
            write_sizes({f"{tmp_path}/x.tar": 2})
        assert (tmp_path / "sizes.json").read_text() == text


class TestCommand:
    """The whole tool."""

    def test_run_goes_on_and_reports(self, paths, tmp_path):
        run(paths[0])
        cut(paths[0])
        facts = run_index(paths, tmp_path / "out", sizes=True, progress=False, workers=1)
        assert facts["samples"] == 5 and facts["counts"]["missing_samples"] == 3
        assert facts["counts"]["without_end_mark"] == 1 and facts["problems"] == {paths[0]: "cut"}
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["tool"] == "index" and summary["counts"] == facts["counts"]
        sizes = json.loads((Path(paths[0]).parent / "sizes.json").read_text())
        assert sizes == {"000.tar": 5, "001.tar": 3}  # what it should hold stays known

    def test_a_failed_shard_does_not_hide_the_others(self, paths, tmp_path, monkeypatch):
        os.unlink(paths[0])
        with pytest.raises(DataError, match="1 of 2 shards failed"):
            run_index(paths, tmp_path / "out", progress=False, workers=1, retries=0)
        assert Path(f"{paths[1]}.idx.npz").exists()
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["samples"] == 3

    def test_dry_run_touches_nothing(self, paths, tmp_path):
        folder = os.path.dirname(paths[0])
        result = CliRunner().invoke(app, ["index", folder, "--dry-run", "--sizes"])
        assert result.exit_code == 0 and "2 shards to do" in result.output
        assert sorted(os.listdir(folder)) == ["000.tar", "001.tar"]
        assert not (tmp_path / "cache").exists()

    def test_command(self, paths, tmp_path):
        folder = os.path.dirname(paths[0])
        result = CliRunner().invoke(app, ["index", folder, "--limit", "1", "--sizes"])
        assert result.exit_code == 0, result.output
        assert os.path.exists(f"{paths[0]}.idx.npz") and not os.path.exists(f"{paths[1]}.idx.npz")
        assert len(list(tmp_path.rglob("summary.json"))) == 1

    def test_a_damaged_shard_is_named(self, paths, monkeypatch):
        use_serial(monkeypatch)
        os.truncate(paths[0], 3000)
        result = CliRunner().invoke(app, ["index", *paths])
        assert result.exit_code == 0, result.exception
        assert f"{paths[0]}: cut short" in result.output

    @pytest.mark.parametrize("shard", ["https://host/a.tar", "{folder}/list.csv"])
    def test_only_local_tars(self, tmp_path, shard):
        (tmp_path / "list.csv").touch()
        result = CliRunner().invoke(app, ["index", shard.format(folder=tmp_path)])
        assert isinstance(result.exception, DataError) and "no local tar" in str(result.exception)
