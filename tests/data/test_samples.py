"""One sample from its members, or why not; collation."""

import numpy as np
import pytest
import torch

from clipkit.data.bad_samples import BadSample
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.transforms import TrainTransform
from tests.fixtures_shards import image_bytes, number_tokenizer, small_reader

PNG = image_bytes()


def rng():
    return np.random.default_rng(0)


def test_a_sample():
    sample = small_reader().read({"png": PNG, "txt": b" caption 3\n"}, 7, rng())
    assert sample.images["image"].shape == (3, 8, 8) and sample.texts == {"text": ["caption 3"]}
    assert sample.id == 7 and sample.masks == {} and sample.meta == {}


def test_keys_in_order_of_preference():
    reader = SampleReader(TrainTransform((8, 8)), ("webp", "png"), ("cap", "txt"))
    assert reader.wanted == ("webp", "png", "cap", "txt", "json")
    sample = reader.read(
        {"png": b"no image", "webp": PNG, "txt": b"second", "cap": b"first"}, 0, rng()
    )
    assert sample.texts["text"] == ["first"]


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"txt": b"a"}, "no_image"),
        ({"gif": PNG, "txt": b"a"}, "no_image"),
        ({"png": PNG}, "no_caption"),
        ({"png": PNG, "txt": b"\xff\xfe"}, "caption_not_utf8"),
        ({"png": PNG, "txt": b" \n"}, "empty_caption"),
        ({"png": b"", "txt": b"a"}, "unreadable_image"),
    ],
)
def test_bad_samples_have_a_cause(members, cause):
    with pytest.raises(BadSample) as caught:
        small_reader().read(members, 0, rng())
    assert caught.value.cause == cause


def test_limits_reach_the_decoder():
    reader = SampleReader(TrainTransform((8, 8)), max_pixels=10)
    with pytest.raises(BadSample, match="8 x 8"):
        reader.read({"png": PNG, "txt": b"a"}, 0, rng())


def test_hooks_run_in_order_with_metadata_and_the_samples_generator():
    seen = []

    def first(sample, generator):
        seen.append((sample.meta, generator.random()))
        sample.texts["negative"] = ["caption 1", "caption 2"]
        return sample

    def second(sample, generator):
        seen.append(list(sample.texts))
        return sample

    reader = SampleReader(TrainTransform((8, 8)), hooks=(first, second))
    reader.read({"png": PNG, "txt": b"a", "json": b'{"source": "x"}'}, 0, rng())
    assert seen[0][0] == {"source": "x"} and seen[1] == ["text", "negative"]
    again = list(seen)
    seen.clear()
    reader.read({"png": PNG, "txt": b"a", "json": b'{"source": "x"}'}, 0, rng())
    assert seen == again


@pytest.mark.parametrize("meta", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_broken_metadata_is_no_metadata(meta):
    reader = SampleReader(TrainTransform((8, 8)), hooks=(lambda s, _: s,))
    assert reader.read({"png": PNG, "txt": b"a", "json": meta}, 0, rng()).meta == {}


def test_collate_stacks_everything_by_sample():
    samples = [
        Sample(
            {"image": torch.full((3, 2, 2), i, dtype=torch.uint8)},
            {"text": [f"caption {i}"], "negative": [f"caption {i}0", f"caption {i}1"]},
            {"negative": [True, i == 1]},
            {"score": torch.tensor([float(i)])},
            id=i + 10,
        )
        for i in range(3)
    ]
    batch = collate(samples, number_tokenizer)
    assert batch.images["image"][:, 0, 0, 0].tolist() == [0, 1, 2] and batch.ids.tolist() == [
        10,
        11,
        12,
    ]
    assert batch.texts["text"].tolist() == [[[0]], [[1]], [[2]]]
    assert batch.texts["negative"].tolist() == [[[0], [1]], [[10], [11]], [[20], [21]]]
    assert batch.masks["negative"].tolist() == [[True, False], [True, True], [True, False]]
    assert batch.extras["score"].shape == (3, 1)
