"""Rows of embeddings carry the ids that the loader gives their samples."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest

from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from clipkit.eval.embedding_folder import open_embeddings
from data_tools.memory.sources import EmbeddedRows
from data_tools.sample_ids import SampleIds, base_names, sample_ids
from tests.data.indexed_loaders import make, take
from tests.data_tools.memory.cells import embed_by_hand
from tests.fixtures_shards import write_shards


def ids_of(emb: Path) -> tuple[SampleIds, pyarrow.Table]:
    folder = open_embeddings(emb)
    table = pyarrow.concat_tables(EmbeddedRows(folder).tables())
    return sample_ids(folder, table), table


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 3, 0, 1]])
def test_ids_are_those_of_the_loader(tmp_path: Path, order: list[int]) -> None:
    shards = write_shards(tmp_path / "in", [4, 1, 3, 8])
    paths = [shards[i] for i in order]
    found, table = ids_of(embed_by_hand(tmp_path / "emb", paths, skip={1, 7, 11}))
    assert found.total == 16 and [s["rows"] for s in found.shards] == [
        [4, 1, 3, 8][i] for i in order
    ]
    assert [s["path"] for s in found.shards] == paths
    # sample 7 has the caption "caption 7", which is token 7, and the key 000007
    batches = take(make(paths, batch=4), 4)
    keys = {
        int(i): f"{int(token):06d}"
        for batch in batches
        for i, token in zip(batch.ids, batch.texts["text"][:, 0, 0])
    }
    assert len(keys) == 16
    expected = {i: key for i, key in keys.items() if i not in (1, 7, 11)}
    assert dict(zip(found.ids.tolist(), table["key"].to_pylist())) == expected


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [2, 2])
    emb = embed_by_hand(tmp_path / "emb", paths)
    facts = json.loads((emb / "index.json").read_text())
    for shards, named in (
        ([], "lists no shards"),
        ([{"path": paths[0]}], "lists no shards"),
        ([{"path": paths[0], "samples": 2}], "not of the shards"),
        ([{"path": p, "samples": 1} for p in paths], "not of the shards"),
    ):
        (emb / "index.json").write_text(json.dumps({**facts, "shards": shards}))
        with pytest.raises(DataError, match=named):
            ids_of(emb)


def test_shards_carry_the_digest_of_their_index(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "in", [2, 3])
    emb = embed_by_hand(tmp_path / "emb", paths)
    digests = [load_index(path).checksum for path in paths]
    assert [s["index"] for s in ids_of(emb)[0].shards] == digests
    Path(paths[1]).unlink()  # the embeddings were moved to where the shards are not
    assert [s["index"] for s in ids_of(emb)[0].shards] == [digests[0], ""]
    Path(paths[1]).write_bytes(Path(paths[0]).read_bytes())
    with pytest.raises(DataError, match="001.tar.* changed since it was embedded; embed it anew"):
        ids_of(emb)


def test_base_names() -> None:
    paths = pyarrow.chunked_array([["/a/0.tar", "s3://b/c/1.tar"], ["0.tar", "/a/0.tar"]])
    assert base_names(paths).to_pylist() == ["0.tar", "1.tar", "0.tar", "0.tar"]
