"""Exact search against a plain product and sort; ties in order; broken queries named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.dist.group import World
from clipkit.errors import CheckpointError, DataError
from clipkit.eval import embedding_folder
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import open_embeddings
from clipkit.eval.embedding_search import encode_image, encode_text, open_query_image, search
from tests.eval.test_embedding_folder import write_folder
from tests.fixtures_encoder import color_encoder
from tests.fixtures_shards import image_bytes


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(50, 6))


@pytest.fixture(params=[3, 16_384])
def _block_size(request, monkeypatch):
    real = embedding_folder.EmbeddingFolder.blocks
    monkeypatch.setattr(
        embedding_folder.EmbeddingFolder, "blocks", lambda s, side: real(s, side, request.param)
    )


@pytest.mark.usefixtures("_block_size")
@pytest.mark.parametrize("k", [1, 7, 50, 99])
def test_equals_a_plain_sort(tmp_path, rows, k):
    texts = np.random.default_rng(1).normal(size=rows.shape)
    folder = open_embeddings(write_folder(tmp_path, rows, texts, lengths=[20, 0, 29, 1]))
    query = np.random.default_rng(2).normal(size=6)
    for side, features in (("image", rows), ("text", texts)):
        half = features.astype(np.float16).astype(np.float64)
        cosines = half @ query / np.linalg.norm(half, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosines)[:k]
        hits = search(folder, torch.from_numpy(query), k, side)
        assert [h.sample for h in hits] == order.tolist()
        assert [h.rank for h in hits] == list(range(1, len(order) + 1))
        np.testing.assert_allclose([h.score for h in hits], cosines[order], atol=1e-6)
        assert hits[0].key == f"k{order[0]}" and hits[0].caption == f"caption {order[0]}"
        assert hits[0].shard == f"/shards/{order[0]}.tar"


def test_each_stored_row_finds_itself(tmp_path, rows):
    folder = open_embeddings(write_folder(tmp_path, rows, lengths=[25, 25]))
    for i, row in enumerate(rows):
        hit = search(folder, torch.from_numpy(row), 1)[0]
        assert hit.sample == i and abs(hit.score - 1) < 1e-5


@pytest.mark.usefixtures("_block_size")
def test_equal_rows_come_in_their_order(tmp_path, rows):
    repeated = np.concatenate([rows[:4], np.repeat(rows[4:5], 8, axis=0), rows[5:9]])
    folder = open_embeddings(write_folder(tmp_path, repeated, lengths=[6, 10]))
    hits = search(folder, torch.from_numpy(rows[4]), 5)
    assert [h.sample for h in hits] == [4, 5, 6, 7, 8] and len({h.score for h in hits}) == 1


def test_samples_without_a_caption_are_not_found_on_the_text_side(tmp_path, rows):
    captions = ["" if i % 3 else f"c{i}" for i in range(50)]
    folder = open_embeddings(write_folder(tmp_path, rows, rows, captions, lengths=[20, 30]))
    found = [h.sample for h in search(folder, torch.from_numpy(rows[1]), 50, "text")]
    assert sorted(found) == list(range(0, 50, 3))
    everywhere = [h.sample for h in search(folder, torch.from_numpy(rows[1]), 50)]
    assert everywhere[0] == 1 and [i for i in everywhere if i % 3 == 0] == found


def test_another_dimension(tmp_path, rows):
    folder = open_embeddings(write_folder(tmp_path, rows))
    with pytest.raises(CheckpointError, match="dimension 6, the checkpoint gives 5"):
        search(folder, torch.ones(5), 1)


def test_queries_are_encoded_as_the_samples_were(tmp_path):
    model = Embedder(color_encoder(), World(), batch_size=1)
    text = encode_text(model, "a green thing")
    image = encode_image(model, Image.new("RGB", (8, 8), (10, 250, 10)))
    assert text.shape == (3,) and torch.allclose(text, image)


def test_query_images_that_cannot_be_read(tmp_path):
    (tmp_path / "good.png").write_bytes(image_bytes())
    assert open_query_image(tmp_path / "good.png").mode == "RGB"
    (tmp_path / "bad.png").write_bytes(b"x")
    for name in ("bad.png", "absent.png", "."):
        with pytest.raises(DataError, match="--image"):
            open_query_image(tmp_path / name)
