"""The command line of `clipkit-data mine`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from data_tools.__main__ import app
from data_tools.mine.run import MineOptions, mine_neighbours
from tests.data_tools.memory.cells import embed_by_hand, features_of
from tests.fixtures_shards import write_shards


def test_options_reach_the_search(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [12])
    emb = embed_by_hand(tmp_path / "emb", paths, features_of(12), features_of(12, seed=1))

    def run(*options: object) -> str:
        words = ["mine", emb, tmp_path / "out.npy", *options]
        found = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "100"})
        assert found.exit_code == 0, found.output + str(found.exception)
        return found.output

    assert "dry run" in run("--dry-run") and not (tmp_path / "out.npy").exists()
    output = run("--by", "image", "--k", 3, "--skip-rank", 2, "--max-similarity", 0.5)
    assert "with 3 neighbours" in output and "with none" in output
    words = ["mine", str(emb), str(tmp_path / "n.npy"), "--max-similarity", "nan"]
    refused = CliRunner().invoke(app, words)
    assert "--max-similarity nan: give a number" in str(refused.exception)
    options = MineOptions("image", 3, 2, 0.5)
    mine_neighbours(emb, tmp_path / "same.npy", options)
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "same.npy"))
