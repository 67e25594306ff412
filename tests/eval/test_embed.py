"""Every sample once, in order, whatever batch size, cache and world; broken weights are named."""

import pytest
import torch
from PIL import Image

from clipkit.data.wds_folder import open_folder
from clipkit.dist.group import World
from clipkit.eval.base import NonFiniteResult
from clipkit.eval.embed import Embedder, View
from clipkit.eval.feature_cache import FeatureCache
from tests.eval import cells
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set
from tests.fixtures_shards import image_bytes, write_tar

LABELS = [0, 1, 2, 3, 2, 1, 0]


@pytest.fixture
def folder(tmp_path):
    return open_folder(write_color_set(tmp_path, LABELS))


def embedder(model, **options):
    return Embedder(model, World(), **options)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_order_and_batch_size(folder, batch_size):
    calls = []
    features = embedder(color_encoder(calls=calls), batch_size=batch_size).images(folder)
    assert features.shape == (7, 3) and features.dtype == torch.float32
    assert features.argmax(1).tolist()[:3] == [0, 1, 2]
    assert torch.equal(features[0], features[6]) and torch.equal(features[1], features[5])
    assert all(b.num_samples <= batch_size for b in calls)


def test_short_batches_are_padded_to_a_power_of_two(folder):
    calls = []
    embedder(color_encoder(calls=calls), batch_size=4).images(folder)
    assert [b.num_samples for b in calls] == [4, 4]
    calls.clear()
    model = embedder(color_encoder(calls=calls), batch_size=4)
    model.texts(["red"] * 5)
    model.texts(["blue"] * 33)
    assert [b.num_samples for b in calls] == [8, 16, 16, 1]


def test_texts():
    names = [*COLORS] * 3
    features = embedder(color_encoder(), batch_size=1).texts(names)
    assert features.shape == (12, 3)
    assert torch.equal(features[:4], features[8:])


def test_each_set_is_embedded_once(folder):
    calls = []
    model = embedder(color_encoder(calls=calls))
    first = model.images(folder), model.texts(["red", "blue"])
    again = model.images(folder), model.texts(["red", "blue"])
    assert len(calls) == 2 and all(a is b for a, b in zip(first, again))
    model.texts(["blue", "red"])
    assert len(calls) == 3


def test_a_view_changes_pixels_and_is_kept_apart(folder):
    model = embedder(color_encoder())
    plain = model.images(folder)
    black = View("black", lambda image, index: Image.new("RGB", image.size, (0, 0, 9 * index)))
    changed = model.images(folder, black)
    assert not torch.equal(plain, changed) and len(changed.unique(dim=0)) == 7
    assert model.images(folder) is plain


def test_key_order_whatever_the_shards_hold(tmp_path, folder):
    names = list(COLORS)
    members = [
        (
            f"{i:04d}.{kind}",
            image_bytes(COLORS[names[LABELS[i]]]) if kind == "png" else b"%d" % LABELS[i],
        )
        for i in (6, 2, 0, 3, 5, 1, 4)
        for kind in ("png", "cls")
    ]
    other = tmp_path / "shuffled"
    write_tar(other / "test" / "0.tar", members[:4])
    write_tar(other / "test" / "1.tar", members[4:])
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (other / name).write_text((tmp_path / name).read_text())
    shuffled = open_folder(other)
    assert shuffled.keys == folder.keys and shuffled.labels() == folder.labels()
    a, b = (embedder(color_encoder(), batch_size=2).images(f) for f in (folder, shuffled))
    assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_broken_weights_name_the_tower(folder, tmp_path, tower, value):
    def broken(color):
        out = torch.ones_like(color)
        out[0, 1] = value
        return out

    model = color_encoder(**{f"{tower}_features": broken})
    with pytest.raises(
        NonFiniteResult, match=f"the {tower} tower gives NaN or infinity for 1 of"
    ) as caught:
        model = embedder(model, cache=FeatureCache(tmp_path / "cache"))
        model.images(folder) if tower == "image" else model.texts(["red", "blue"])
    assert caught.value.exit_status == 5
    assert not (tmp_path / "cache").exists()


def test_no_gradient_is_kept(folder):
    def learned(color):
        return color * torch.ones((), requires_grad=True)

    assert not embedder(color_encoder(learned)).images(folder).requires_grad


def test_the_cache_spares_the_model(folder, tmp_path):
    calls = []
    cache = FeatureCache(tmp_path / "cache")
    cold = embedder(color_encoder(), cache=cache, batch_size=2).images(folder)
    warm = embedder(color_encoder(calls=calls), cache=cache, batch_size=2).images(folder)
    assert torch.equal(cold, warm) and not calls


@pytest.mark.parametrize("fact", ["weights_hash", "transform_hash", "precision"])
def test_another_model_finds_nothing_in_the_cache(folder, tmp_path, fact):
    calls = []
    cache = FeatureCache(tmp_path / "cache")
    embedder(color_encoder(), cache=cache).images(folder)
    other = color_encoder(calls=calls)
    setattr(other, fact, "other")
    embedder(other, cache=cache).images(folder)
    assert len(calls) == 1


def test_other_pixels_find_nothing_in_the_cache(folder, tmp_path):
    calls = []
    cache = FeatureCache(tmp_path / "cache")
    embedder(color_encoder(), cache=cache).images(folder)
    changed = open_folder(write_color_set(tmp_path, [1, *LABELS[1:]]))
    embedder(color_encoder(calls=calls), cache=cache).images(changed)
    assert len(calls) == 1


def test_an_interrupted_pass_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clipkit.eval.embed._PART", 1)
    cache, calls = FeatureCache(tmp_path / "cache"), []

    def stops(color):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return color

    with pytest.raises(KeyboardInterrupt):
        embedder(color_encoder(stops, calls=calls), cache=cache, batch_size=2).images(folder)
    calls.clear()
    rest = embedder(color_encoder(lambda c: c, calls=calls), cache=cache, batch_size=2)
    features = rest.images(folder)
    assert len(calls) == 2
    assert torch.equal(features, embedder(color_encoder(lambda c: c), batch_size=2).images(folder))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_two_ranks_equal_one(folder, ranks, tmp_path, size):
    alone = cells.features(World(), str(folder.root), size, str(tmp_path / "a"))
    cold = ranks(2).run(cells.features, str(folder.root), size, str(tmp_path / "b"))
    warm = ranks(2).run(cells.features, str(folder.root), size, str(tmp_path / "b"))
    for images, texts in (*cold, *warm):
        assert torch.equal(images, alone[0]) and torch.equal(texts, alone[1])


def test_a_view_is_kept_apart_on_disk(folder, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    plain = embedder(color_encoder(), cache=cache).images(folder)
    black = View("black", lambda image, index: Image.new("RGB", image.size))
    assert not torch.equal(plain, embedder(color_encoder(), cache=cache).images(folder, black))
    assert torch.equal(plain, embedder(color_encoder(), cache=cache).images(folder))


def test_texts_with_odd_characters_are_told_apart():
    model = embedder(color_encoder())
    first = model.texts(["red\0circle", "blue"])
    assert not torch.equal(first, model.texts(["red", "circle\0blue"])[:2])
    assert torch.equal(model.texts(["red\ud800", "blue"]), model.texts(["red", "blue"]))


class Plus:
    """Not its own inverse, not idempotent, and does not commute: once and in order is seen."""

    def __init__(self, by, side=None):
        self.by, self.side, self.name = by, side, f"plus {by}"
        self.calls = []

    def image(self, features):
        self.calls.append("image")
        return features * self.by + 1

    def text(self, features):
        self.calls.append("text")
        return features * self.by - 1


def test_features_are_refined_once_and_in_order(folder):
    first, second = Plus(3), Plus(5)
    plain = embedder(color_encoder())
    refined = embedder(color_encoder(), refinements=[first, second])
    for _ in range(2):
        images, texts = refined.images(folder), refined.texts(["red", "blue"])
    assert torch.equal(images, (plain.images(folder) * 3 + 1) * 5 + 1)
    assert torch.equal(texts, (plain.texts(["red", "blue"]) * 3 - 1) * 5 - 1)
    assert first.calls == second.calls == ["image", "text"]
    view = View("black", lambda image, index: Image.new("RGB", image.size))
    expected = (plain.images(folder, view) * 3 + 1) * 5 + 1
    assert torch.equal(refined.images(folder, view), expected)


@pytest.mark.parametrize("first", ["plain", "refined"])
def test_plain_and_refined_share_a_cache_of_what_the_towers_gave(folder, tmp_path, first):
    calls, cache = [], FeatureCache(tmp_path / "cache")
    kinds = {"plain": (), "refined": [Plus(3)]}
    found = {}
    for name in (first, *({*kinds} - {first})):
        model = embedder(color_encoder(calls=calls), cache=cache, refinements=kinds[name])
        found[name] = model.images(folder), model.texts(["red", "blue"])
    assert len(calls) == 2  # the second embedder has computed nothing
    assert torch.equal(found["refined"][0], found["plain"][0] * 3 + 1)
    assert torch.equal(found["refined"][1], found["plain"][1] * 3 - 1)
    again = embedder(color_encoder(calls=calls), cache=cache)
    assert torch.equal(again.images(folder), found["plain"][0]) and len(calls) == 2


def test_the_same_model_refined_otherwise(folder, tmp_path):
    calls, cache = [], FeatureCache(tmp_path / "cache")
    model = embedder(color_encoder(calls=calls), cache=cache, batch_size=3, refinements=[Plus(3)])
    refined = model.images(folder)
    computed = len(calls)
    plain = model.refined_by(())
    assert torch.equal(refined, plain.images(folder) * 3 + 1) and len(calls) == computed
    assert (plain.batch_size, plain.world, plain.progress) == (3, model.world, False)
    assert [r.by for r in model.refinements] == [3]
