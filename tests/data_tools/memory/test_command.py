"""The command line of `clipkit-data memory`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clipkit.errors import DataError
from clipkit.retrieval.memory import FolderMemory
from data_tools.__main__ import app
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    paths = write_shards(root / "in", [60, 50])
    embed_by_hand(root / "a", paths[:1], features_of(60), features_of(60, seed=1))
    embed_by_hand(root / "b", paths[1:], features_of(50), features_of(50, seed=1))
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["memory", *map(str, arguments)], env={"COLUMNS": "100"})


def test_build_add_info(place: Path, tmp_path: Path) -> None:
    dry = run("build", place / "a", place / "b", tmp_path / "m", "--dry-run")
    assert "110 rows of 8 from 2 folders" in dry.output and "flat; dry run" in dry.output
    assert not (tmp_path / "m").exists()
    built = run("build", place / "a", tmp_path / "m", "--flat-below", 0, "--nlist", 4, "--nprobe",
                2, "--target-recall", 0)  # fmt: skip
    assert built.exit_code == 0, built.output + str(built.exception)
    assert "ivf_sq8, 2 of 4 lists" in built.output and "image recall@10 for text" in built.output
    added = run("add", tmp_path / "m", place / "b", tmp_path / "grown")
    assert added.exit_code == 0 and len(FolderMemory(tmp_path / "grown")) == 110
    info = run("info", tmp_path / "grown")
    assert info.exit_code == 0 and "110" in info.output and "recall@10" in info.output
    again = run("build", place / "a", tmp_path / "grown")
    assert isinstance(again.exception, DataError)
    assert run("info", tmp_path / "grown", "--verify").exit_code == 0
    path = tmp_path / "grown" / "rows.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert "parquet: is not" in str(run("info", tmp_path / "grown", "--verify").exception)
    path = tmp_path / "grown" / "text.faiss"
    path.write_bytes(path.read_bytes()[:-4])
    assert "text.faiss: holds" in str(run("info", tmp_path / "grown").exception)
