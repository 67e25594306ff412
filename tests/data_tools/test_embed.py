"""`clipkit-data embed` writes what `clipkit embed` writes, and its rows join with tables."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from clipkit.cli.embed import embed as embed_of_cli
from clipkit.data.shard_images import find_shards
from clipkit.data.tar_index import load_index
from clipkit.dist import group
from clipkit.errors import ConfigError, DataError
from data_tools.__main__ import app
from data_tools.embeddings import table_of
from data_tools.tables import shard_names
from tests.fixtures_shards import write_shards
from tests.fixtures_trained import write_trained_run

peer = typer.Typer()
peer.command("embed")(embed_of_cli)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    write_trained_run(root / "run")
    write_shards(root / "shards" / "a", [5, 4], bad=(3,))
    write_shards(root / "shards" / "b", [3])
    return root


def run(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments), "--device", "cpu"])


def test_the_folder_is_that_of_clipkit_embed(place: Path, tmp_path: Path) -> None:
    shards = (place / "shards" / "a", place / "shards" / "b")
    found = run(place / "run", *shards, tmp_path / "one", "--max-bad-fraction", 0.2)
    assert found.exit_code == 0, found.output + str(found.exception)
    assert "11 rows of 8, 11 with a caption; skipped: 1 unreadable_image" in found.output
    arguments = [place / "run", *shards, tmp_path / "two", "--max-bad-fraction", 0.2, "--no-cache"]
    assert CliRunner().invoke(peer, [*map(str, arguments), "--device", "cpu"]).exit_code == 0
    group.teardown()
    files = {
        root: {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    }
    one, two = files.values()
    summary = json.loads(one.pop("summary.json"))
    assert one == two
    assert summary["counts"]["rows"] == 11 and summary["counts"]["unreadable_image"] == 1
    assert summary["shards"] == 3 and summary["tool"] == "embed"
    again = run(place / "run", *shards, tmp_path / "one", "--max-bad-fraction", 0.2)
    assert again.exit_code == 0 and "up to date" in again.output


def test_rows_join_with_tables_of_the_same_shards(place: Path, tmp_path: Path) -> None:
    shards = (str(place / "shards" / "a"), str(place / "shards" / "b"))
    run(place / "run", *shards, tmp_path / "out", "--max-bad-fraction", 0.2)
    paths = find_shards(shards)
    by_name = {name: load_index(path) for name, path in zip(shard_names(paths), paths)}
    assert list(by_name) == ["a/000.tar", "a/001.tar", "b/000.tar"]
    found = [tuple(row.values()) for row in table_of(tmp_path / "out").to_pylist()]
    assert len(found) == 11
    for shard, row, key in found:
        assert by_name[shard].keys[row] == key
    assert {(shard, row) for shard, row, _ in found} == {
        (name, row) for name, index in by_name.items() for row in range(len(index))
    } - {("a/000.tar", 3)}


def test_limit_and_dry_run(place: Path, tmp_path: Path) -> None:
    shards = place / "shards" / "b", place / "shards" / "a"
    found = run(place / "run", *shards, tmp_path / "out", "--limit", 1, "--dry-run")
    assert found.exit_code == 0 and "3 samples of 1 shards with" in found.output
    assert "step_00000003" in found.output and not (tmp_path / "out").exists()
    found = run(place / "run", *shards, tmp_path / "out", "--limit", 1)
    assert "3 rows of 8" in found.output
    other = run(place / "run", *shards, tmp_path / "out", "--limit", 2, "--max-bad-fraction", 1)
    assert isinstance(other.exception, ConfigError) and "--overwrite" in str(other.exception)
    other = run(place / "run", *shards, tmp_path / "out", "--overwrite", "--max-bad-fraction", 1)
    assert other.exit_code == 0 and "11 rows" in other.output


def test_refusals(place: Path, tmp_path: Path, monkeypatch) -> None:
    found = run(place / "run", place / "shards" / "a", tmp_path / "o", "--precision", "fp8")
    assert isinstance(found.exception, ConfigError) and "fp8" in str(found.exception)
    found = run(place / "run", tmp_path / "nowhere", tmp_path / "o")
    assert isinstance(found.exception, DataError)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "x"),
                        ("MASTER_PORT", 1), ("LOCAL_WORLD_SIZE", 2)):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    found = run(place / "run", place / "shards" / "a", tmp_path / "o")
    assert isinstance(found.exception, ConfigError) and "clipkit embed" in str(found.exception)
