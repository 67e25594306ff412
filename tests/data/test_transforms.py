"""Crop and flip: torchvision's distribution, our generator."""

import numpy as np
import pytest
import torch

from clipkit.data.transforms import TrainTransform


def rng(seed=0):
    return np.random.default_rng(seed)


def ramp(height, width):
    return (torch.arange(3 * height * width) % 251).to(torch.uint8).view(3, height, width)


@pytest.mark.parametrize("shape", [(8, 8), (5, 300), (300, 5), (1, 1), (1, 1000), (31, 17)])
@pytest.mark.parametrize("size", [(8, 8), (16, 4)])
def test_size_and_type(shape, size):
    for seed in range(5):
        out = TrainTransform(size, (0.05, 1.0), flip=0.5)(ramp(*shape), rng(seed))
        assert out.shape == (3, *size) and out.dtype == torch.uint8


def test_values_stay_in_range_of_the_image():
    flat = torch.full((3, 40, 30), 77, dtype=torch.uint8)
    for seed in range(20):
        assert (TrainTransform((16, 16), (0.1, 1.0))(flat, rng(seed)) == 77).all()


def test_deterministic_by_generator():
    transform = TrainTransform((16, 16), (0.2, 1.0), flip=0.5)
    image = ramp(40, 50)
    assert torch.equal(transform(image, rng(3)), transform(image, rng(3)))
    different = {transform(image, rng(s)).numpy().tobytes() for s in range(20)}
    assert len(different) == 20


def test_identity_when_there_is_nothing_to_do():
    image = ramp(16, 16)
    out = TrainTransform((16, 16), (1.0, 1.0), (1.0, 1.0))(image, rng())
    assert out is image


def test_flip_rate_and_that_it_mirrors():
    image = ramp(8, 8)
    transform = TrainTransform((8, 8), (1.0, 1.0), (1.0, 1.0), flip=0.25)
    flipped = 0
    for seed in range(400):
        out = transform(image, rng(seed))
        mirrored = torch.equal(out, image.flip(-1))
        assert mirrored or torch.equal(out, image)
        flipped += mirrored
    assert 70 <= flipped <= 130
    assert torch.equal(
        TrainTransform((8, 8), (1.0, 1.0), (1.0, 1.0), flip=1.0)(image, rng()), image.flip(-1)
    )


def test_boxes_have_the_wanted_area_and_aspect():
    transform = TrainTransform((8, 8), (0.3, 0.6), (0.5, 2.0))
    for seed in range(300):
        top, left, height, width = transform._box(400, 600, rng(seed))
        assert 0 <= top <= 400 - height and 0 <= left <= 600 - width
        assert 0.29 < height * width / (400 * 600) < 0.61
        assert 0.49 < width / height < 2.02


@pytest.mark.parametrize(
    ("shape", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
)
def test_extreme_images_get_a_central_crop(shape, box):
    assert TrainTransform((8, 8))._box(*shape, rng()) == box
