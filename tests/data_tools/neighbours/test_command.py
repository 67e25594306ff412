"""The command line of `clipkit-data neighbours`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from data_tools.__main__ import app
from data_tools.memory.build import build_memory
from data_tools.memory.sources import open_sources
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards


def test_options_reach_the_search(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [12])
    emb = embed_by_hand(tmp_path / "emb", paths, np.abs(features_of(12)), features_of(12, seed=1))
    build_memory(open_sources([emb]), tmp_path / "m")

    def run(out: str, *options: object) -> str:
        words = ["neighbours", emb, tmp_path / "m", tmp_path / out, *options]
        found = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "100"})
        assert found.exit_code == 0, found.output + str(found.exception)
        return found.output

    assert "dry run" in run("a", "--k", 3, "--dry-run") and not (tmp_path / "a").exists()
    assert "warning" not in run("a", "--k", 3, "--max-similarity", 2)
    said = run("b", "--k", 3)
    assert "share of samples with near-duplicates" in said and "hint" not in said
    assert "hint: many samples have near-duplicates" in run("e", "--k", 1, "--max-similarity", 0.8)
    assert "warning: most samples have fewer than 3" in run("c", "--k", 3, "--max-similarity", -1)
    run("d", "--k", 3, "--allow-self")
    words = ["neighbours", str(emb), str(tmp_path / "m"), str(tmp_path / "n")]
    refused = CliRunner().invoke(app, [*words, "--max-similarity", "nan"])
    assert "--max-similarity nan: give a number" in str(refused.exception)
    rows = {name: np.load(tmp_path / name / "image.npy") for name in "abcd"}
    assert (rows["a"] >= 0).all() and (rows["c"] == -1).all()
    assert (rows["d"][:, 0] == np.arange(12)).all()
    assert not (rows["a"] == np.arange(12)[:, None]).any()
