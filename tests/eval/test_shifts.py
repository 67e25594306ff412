"""Shifts change images, more at higher severity, and always alike."""

import numpy as np
import pytest
from PIL import Image

from clipkit.eval.shifts import CHANGES, augmented, make_shifts, shift


def picture(side=48, seed=0):
    """Soft shapes in colour: neither flat nor noise, and not centred."""
    y, x = np.mgrid[0:side, 0:side] / side
    rng = np.random.default_rng(seed)
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


def distance(a, b):
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("kind", sorted(CHANGES))
@pytest.mark.parametrize("size", [(48, 48), (40, 300), (1, 1)])
def test_size_and_mode_stay_and_the_given_image_too(kind, size):
    image = picture().resize(size)
    before = image.tobytes()
    for severity in (0.0, 0.5, 1.0):
        changed = shift(kind, severity).change(image, 0)
        assert (changed.size, changed.mode) == (image.size, "RGB")
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", sorted(CHANGES))
def test_severity_grows(kind):
    image = picture()
    found = [distance(image, shift(kind, s).change(image, 0)) for s in (0.02, 0.5, 0.98)]
    assert found[0] < found[1] and found[2] > found[0]
    assert found[2] > 5  # a change that can be seen


@pytest.mark.parametrize("kind", ["noise", "occlusion"])
def test_random_changes_are_a_function_of_seed_and_index(kind):
    image = picture()
    same = [shift(kind, 0.5, seed=1).change(image, 3).tobytes() for _ in range(2)]
    assert same[0] == same[1]
    assert shift(kind, 0.5, seed=1).change(image, 4).tobytes() != same[0]
    assert shift(kind, 0.5, seed=2).change(image, 3).tobytes() != same[0]
    assert shift(kind, 0.5, seed=2).name != shift(kind, 0.5, seed=1).name


def test_noise_survives_the_shrinking_of_a_large_image():
    image = Image.new("RGB", (1200, 1200), (120, 120, 120))
    noisy = shift("noise", 0.5).change(image, 0).resize((224, 224), Image.Resampling.BOX)
    assert np.asarray(noisy).std() > 30


def test_a_meta_set_has_all_kinds_and_severities():
    shifts = make_shifts(20, seed=0)
    kinds = [view.name.split(":")[0] for view in shifts]
    severities = sorted(float(view.name.split(":")[1]) for view in shifts)
    assert sorted(set(kinds)) == sorted(CHANGES) and len({v.name for v in shifts}) == 20
    assert severities == pytest.approx([(k + 0.5) / 20 for k in range(20)])
    assert [v.name for v in make_shifts(20, seed=0)] == [v.name for v in shifts]
    assert [v.name for v in make_shifts(20, seed=1)] != [v.name for v in shifts]


def test_two_views_differ_and_each_is_always_the_same():
    image = picture()
    views = [augmented(which, seed=0) for which in (0, 1)]
    pixels = [v.change(image, 5).tobytes() for v in views]
    assert pixels[0] != pixels[1] and pixels[0] == views[0].change(image, 5).tobytes()
    assert views[0].change(image, 6).tobytes() != pixels[0]
    assert augmented(0, seed=1).change(image, 5).tobytes() != pixels[0]


def test_views_are_made_of_the_shifted_image():
    image = picture()
    dark = shift("darkness", 1.0)
    bright, dim = (augmented(0, 0, before).change(image, 2) for before in (None, dark))
    assert np.asarray(dim).mean() < 0.4 * np.asarray(bright).mean()
    names = {augmented(w, s, b).name for w in (0, 1) for s in (0, 1) for b in (None, dark)}
    assert len(names) == 8


def test_views_of_tiny_and_grey_images():
    for image in (Image.new("RGB", (1, 1)), Image.new("L", (7, 3))):
        for index in range(20):
            assert augmented(1, 0).change(image, index).mode == "RGB"
