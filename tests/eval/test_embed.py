"""Every sample once, in order, whatever the batch size; broken weights are named."""

import pytest
import torch

from clipkit.data.wds_folder import open_folder
from clipkit.dist.group import World
from clipkit.eval.embed import NonFiniteFeatures, embed_images, embed_texts
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set

LABELS = [0, 1, 2, 3, 2, 1, 0]


@pytest.fixture
def folder(tmp_path):
    return open_folder(write_color_set(tmp_path, LABELS))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_order_and_batch_size(folder, batch_size):
    calls = []
    features = embed_images(color_encoder(calls=calls), folder, World(), batch_size)
    assert features.shape == (7, 3) and features.dtype == torch.float32
    assert features.argmax(1).tolist()[:3] == [0, 1, 2]
    assert torch.equal(features[0], features[6]) and torch.equal(features[1], features[5])
    assert torch.cat([b.ids for b in calls]).tolist() == list(range(7))
    assert all(b.num_samples <= batch_size for b in calls)


def test_texts():
    names = [*COLORS] * 3
    features = embed_texts(color_encoder(), names, World(), 5)
    assert features.shape == (12, 3)
    assert torch.equal(features[:4], features[8:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_broken_weights_name_the_tower(folder, tower, value):
    def broken(color):
        out = torch.ones_like(color)
        out[0, 1] = value
        return out

    model = color_encoder(**{f"{tower}_features": broken})
    with pytest.raises(
        NonFiniteFeatures, match=f"the {tower} tower gives NaN or infinity for 1 of"
    ) as caught:
        embed_images(model, folder, World()) if tower == "image" else embed_texts(
            model, ["red", "blue"], World()
        )
    assert caught.value.exit_status == 5


def test_no_gradient_is_kept(folder):
    def learned(color):
        return color * torch.ones((), requires_grad=True)

    assert not embed_images(color_encoder(learned), folder, World()).requires_grad
