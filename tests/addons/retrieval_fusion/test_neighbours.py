"""The folder of neighbours: rows by sample, and whose it is."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from clipkit.addons.retrieval_fusion import neighbours as module
from clipkit.addons.retrieval_fusion.head import FusionSettings
from clipkit.addons.retrieval_fusion.neighbours import Neighbours
from clipkit.data.numbering import Shard
from clipkit.errors import DataError
from tests.addons.retrieval_fusion.memories import PlainMemory, write_neighbours

COUNTS = [5, 3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_neighbours(tmp_path / "n", PlainMemory(), COUNTS)


def test_rows_of_a_sample(folder: Path) -> None:
    own = Neighbours(folder)
    assert (own.k, own.search, own.shards[0]) == (4, "uni", ("0.tar", 5, ""))
    for side in ("image", "text"):
        table = np.load(folder / f"{side}.npy")
        assert all((own.rows(side, i, 3) == table[i, :3]).all() for i in range(8))
    assert isinstance(own._rows["image"], np.memmap)
    copy = pickle.loads(pickle.dumps(own))
    assert not copy._rows and (copy.rows("text", 7, 4) == own.rows("text", 7, 4)).all()


@pytest.mark.parametrize(
    ("settings", "memory", "message"),
    [
        ({"search": "cross"}, PlainMemory(), "found by search=uni, the add-on has search=cross"),
        ({"k": 5}, PlainMemory(), "holds 4 neighbours of a sample, k is 5"),
        ({}, PlainMemory(41), "of another memory"),
        ({}, PlainMemory(weights_hash="other"), "of another memory"),
    ],
)
def test_neighbours_that_do_not_fit(
    folder: Path, settings: dict[str, object], memory: PlainMemory, message: str
) -> None:
    own = Neighbours(folder)
    own.check(FusionSettings(16, k=4), PlainMemory())
    with pytest.raises(DataError, match=message):
        own.check(FusionSettings(16, **{"k": 4, **settings}), memory)  # type: ignore[arg-type]


def test_other_shards(tmp_path: Path) -> None:
    told = [{"path": f"/here/{i}.tar", "rows": n, "index": f"x{i}"} for i, n in enumerate(COUNTS)]
    own = Neighbours(write_neighbours(tmp_path / "n", PlainMemory(), COUNTS, shards=told))
    own.check_shards([Shard("0.tar", 5, "x0"), Shard("1.tar", 3, "")])
    for shards, message in [
        ([Shard("0.tar", 5, "x0")], "counts 2 shards, the run has 1"),
        ([Shard("0.tar", 5, "x1"), Shard("1.tar", 3, "x0")], "shard 0 is another 0.tar"),
    ]:
        with pytest.raises(DataError, match=f"other data: .*{message}.*clipkit-data neighbours"):
            own.check_shards(shards)


@pytest.mark.parametrize("row", [40, -2])
def test_rows_that_the_memory_has_not(
    folder: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 3)
    rows = np.load(folder / "text.npy")
    rows[7, 3] = row
    np.save(folder / "text.npy", rows)
    message = f"text.npy: names row {row}, the memory has rows 0 to 39"
    with pytest.raises(DataError, match=message):
        Neighbours(folder).check(FusionSettings(16, k=4), PlainMemory())


def test_damage(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neighbours.json: cannot be read .No such file"):
        Neighbours(tmp_path / "nowhere")
    np.save(folder / "text.npy", np.zeros((8, 5), dtype=np.int64))
    with pytest.raises(DataError, match=r"text.npy: holds int64 \(8, 5\), not int64 \(8, 4\)"):
        Neighbours(folder).rows("text", 0, 4)
    (folder / "image.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match="image.npy: cannot be read"):
        Neighbours(folder).rows("image", 0, 4)
    (folder / "neighbours.json").write_text('{"k": 4}')
    with pytest.raises(DataError, match="neighbours.json: is damaged"):
        Neighbours(folder)
