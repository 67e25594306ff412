"""Fusion and centring: closed forms, and what must not change a ranking."""

import pytest
import torch
import torch.nn.functional as F

from clipkit.retrieval.calibration import ModalityMeans, fit_means, fuse


@pytest.fixture
def features():
    """(texts, images): two cones far apart, as CLIP's are."""
    rng = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(60, 8, generator=rng) + torch.eye(8)[0] * 5, dim=1)
    images = F.normalize(torch.randn(60, 8, generator=rng) + torch.eye(8)[1] * 5, dim=1)
    return texts, images


def plain(texts, images, a):
    """One item at a time."""
    rows = []
    for text, image, weight in zip(texts, images, a.tolist()):
        mixed = weight * text.double() + (1 - weight) * image.double()
        rows.append(mixed / mixed.norm())
    return torch.stack(rows).float()


def test_fused_rows_are_weighted_sums_of_unit_length(features):
    weight = torch.linspace(0, 1, 60, dtype=torch.float64)
    fused = fuse(*features, weight)
    assert fused.dtype == torch.float32
    assert torch.allclose(fused, plain(*features, weight), atol=1e-7)
    assert torch.allclose(fused.norm(dim=1), torch.ones(60), atol=1e-6)


def test_weight_one_is_the_text_and_zero_the_image(features):
    texts, images = features
    means = fit_means(texts, images)
    for subtracted in (None, means):
        one, zero = torch.ones(60), torch.zeros(60)
        text = fuse(texts, images, one, subtracted)
        assert torch.equal(text, fuse(texts, torch.zeros_like(images), one, subtracted))
        image = fuse(texts, images, zero, subtracted)
        assert torch.equal(image, fuse(torch.zeros_like(texts), images, zero, subtracted))
    assert torch.allclose(fuse(texts, images, torch.ones(60)), texts, atol=1e-6)
    assert torch.allclose(
        fuse(texts, images, torch.zeros(60), means),
        F.normalize(images - images.mean(dim=0), dim=1),
        atol=1e-6,
    )


def test_zero_means_leave_every_bit(features):
    zero = ModalityMeans(torch.zeros(8).double(), torch.zeros(8).double())
    weight = torch.tensor([0.0, 0.5, 1.0]).repeat(20)
    assert torch.equal(fuse(*features, weight, zero), fuse(*features, weight))


def test_centring_makes_the_centroids_coincide(features):
    texts, images = features
    means = fit_means(texts, images)
    assert float((texts.mean(dim=0) - images.mean(dim=0)).norm()) > 1
    centred = [texts.double() - means.text, images.double() - means.image]
    for rows in centred:
        assert float(rows.mean(dim=0).norm()) < 1e-12
    # the unit rows of the fused function are those rows, renormalised; at any alpha
    for alpha in (0.0, 0.3, 1.0):
        weight = torch.full((60,), alpha)
        w = float(weight.double()[0])
        expected = F.normalize(w * centred[0] + (1 - w) * centred[1], dim=1)
        assert torch.allclose(fuse(texts, images, weight, means).double(), expected, atol=1e-7)


def test_half_the_gap_on_both_sides_closes_it(features):
    """Mind the Gap: moving each side by half the gap vector makes the centroids coincide."""
    texts, images = (rows.double() for rows in features)
    means = fit_means(texts, images)
    gap = means.image - means.text
    assert torch.allclose((texts + gap / 2).mean(0), (images - gap / 2).mean(0), atol=1e-12)


def test_means_of_nothing_are_zero():
    means = fit_means(torch.zeros(0, 4), torch.ones(3, 4))
    assert means.text.tolist() == [0.0] * 4 and means.image.tolist() == [1.0] * 4


def test_a_row_that_is_the_mean_becomes_zero_not_nan():
    rows = torch.tensor([[1.0, 0.0]])
    assert fuse(rows, rows, torch.ones(1), fit_means(rows, rows)).tolist() == [[0.0, 0.0]]


def test_equal_items_stay_equal(features):
    texts, images = features
    texts[7], images[7] = texts[3], images[3]
    fused = fuse(texts, images, torch.full((60,), 0.4), fit_means(texts, images))
    assert torch.equal(fused[7], fused[3])
