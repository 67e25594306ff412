"""Digits as tar members: split, pixels, captions that agree with the label."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_tools.demo_digits import CLASSNAMES, TEMPLATES, load_digit_samples

Samples = list[dict[str, bytes]]


@pytest.fixture(scope="module")
def samples() -> tuple[Samples, Samples]:
    return load_digit_samples(seed=0)


def test_split_is_stratified_and_disjoint(samples: tuple[Samples, Samples]) -> None:
    train, test = samples
    assert (len(train), len(test)) == (1437, 360)
    per_class = Counter(sample["cls"] for sample in test)
    assert set(per_class) == {str(label).encode() for label in range(10)}
    assert max(per_class.values()) - min(per_class.values()) <= 3
    assert {s["png"] for s in train}.isdisjoint(s["png"] for s in test)


def test_images_are_rgb_32(samples: tuple[Samples, Samples]) -> None:
    for sample in samples[1][:20]:
        image = Image.open(io.BytesIO(sample["png"]))
        assert (image.mode, image.size) == ("RGB", (32, 32))
        assert np.ptp(np.asarray(image)) > 200  # full contrast, not the raw range of 0 to 16


def test_captions_name_the_label_in_several_ways(samples: tuple[Samples, Samples]) -> None:
    used = Counter()
    for sample in samples[0]:
        name = CLASSNAMES[int(sample["cls"])]
        matching = [t for t in TEMPLATES if t.format(c=name) == sample["txt"].decode()]
        assert len(matching) == 1
        used.update(matching)
    assert len(used) == len(TEMPLATES)


def test_seed_draws_captions_only(samples: tuple[Samples, Samples]) -> None:
    train, test = load_digit_samples(seed=1)
    assert test == samples[1]
    assert [s["png"] for s in train] == [s["png"] for s in samples[0]]
    assert [s["txt"] for s in train] != [s["txt"] for s in samples[0]]
