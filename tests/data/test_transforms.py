"""Crop and flip: torchvision's distribution and pixels, our generator."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from clipkit.data.transforms import Crop, TrainTransform


def rng(seed=0):
    return np.random.default_rng(seed)


def ramp(height, width):
    return (torch.arange(3 * height * width) % 251).to(torch.uint8).view(3, height, width)


def in_hwc_memory(image):
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(8, 8), (5, 300), (300, 5), (1, 1), (1, 1000), (31, 17)])
@pytest.mark.parametrize("size", [(8, 8), (16, 4)])
def test_size_and_type(shape, size):
    for seed in range(5):
        out = TrainTransform(size, (0.05, 1.0), flip=0.5)(ramp(*shape), rng(seed))
        assert out.shape == (3, *size) and out.dtype == torch.uint8


@pytest.mark.parametrize("layout", [in_hwc_memory, torch.Tensor.contiguous])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_pixels_are_torchvisions(layout, flip):
    image = layout(torch.from_numpy(rng(5).integers(0, 256, (3, 61, 83), dtype=np.uint8)))
    for size in ((16, 16), (24, 9), (61, 83), (90, 70)):
        transform = TrainTransform(size, (0.1, 1.0), flip=flip)
        for seed in range(10):
            top, left, height, width, _ = transform.draw(61, 83, rng(seed))
            expected = tv.resized_crop(
                image, top, left, height, width, list(size), InterpolationMode.BICUBIC, True
            )
            got = transform(image, rng(seed))
            assert torch.equal(got, expected.flip(-1) if flip else expected)


def test_the_result_is_in_hwc_memory():
    out = TrainTransform((16, 16))(in_hwc_memory(ramp(40, 50)), rng())
    assert out.permute(1, 2, 0).is_contiguous()


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
        top, left, height, width, _ = transform.draw(400, 600, rng(seed))
        assert 0 <= top <= 400 - height and 0 <= left <= 600 - width
        assert 0.29 < height * width / (400 * 600) < 0.61
        assert 0.49 < width / height < 2.02


@pytest.mark.parametrize(
    ("shape", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
)
def test_extreme_images_get_a_central_crop(shape, box):
    assert TrainTransform((8, 8)).draw(*shape, rng())[:4] == box


class TestSmallerDecode:
    """The same crop, on a decode of fewer pixels."""

    @pytest.mark.parametrize("full", [(480, 640), (97, 333), (512, 512)])
    def test_enough_is_the_least_that_keeps_the_crop_large_enough(self, full):
        transform = TrainTransform((32, 40), (0.2, 1.0))
        for seed in range(50):
            crop = transform.draw(*full, rng(seed))
            sizes = zip(transform.enough(crop, *full), full, (crop.height, crop.width), (32, 40))
            for least, whole, side, wanted in sizes:
                assert side * least >= (wanted + 1) * whole or least == whole
                assert side * (least - 1) < (wanted + 1) * whole

    def test_the_crop_never_falls_short_nor_leaves_the_image(self, monkeypatch):
        sizes = []

        def look(box, size, **options):
            sizes.append(tuple(box.shape[2:]))
            return torch.zeros(1, 3, *size, dtype=torch.uint8)

        monkeypatch.setattr("clipkit.data.transforms.interpolate", look)
        transform = TrainTransform((32, 40), (0.2, 1.0))
        for seed in range(200):
            full = tuple(int(x) for x in rng(seed).integers(100, 700, 2))
            crop = transform.draw(*full, rng(seed))
            for eighths in range(1, 8):
                small = tuple(-(-side * eighths // 8) for side in full)
                least = transform.enough(crop, *full)
                if small[0] < least[0] or small[1] < least[1]:
                    continue
                transform.apply(torch.zeros(3, *small, dtype=torch.uint8), crop, full)
                assert sizes[-1][0] >= 32 and sizes[-1][1] >= 40
                break
        assert len(sizes) > 150

    def test_the_box_is_scaled(self):
        """On a ramp of positions the centre of the crop is found again at half the size."""
        x = torch.arange(256).to(torch.uint8).expand(3, 256, 256).contiguous()
        transform = TrainTransform((32, 32))
        crop = Crop(top=40, left=100, height=80, width=120, flip=False)
        whole = transform.apply(x, crop)
        half = transform.apply(x[:, ::2, ::2].contiguous(), crop, (256, 256))
        assert (whole.float() - half.float()).abs().max() <= 2

    def test_a_full_decode_is_cut_exactly(self):
        image = in_hwc_memory(ramp(60, 50))
        transform = TrainTransform((16, 16), (0.3, 1.0))
        crop = transform.draw(60, 50, rng())
        assert torch.equal(transform.apply(image, crop, (60, 50)), transform.apply(image, crop))
