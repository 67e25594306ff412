"""Noise of the right length, the same for the same seed, and none for sigma 0."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.retrieval.noise import add_noise


def unit(rows: int, dim: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return F.normalize(torch.randn(rows, dim, generator=g, dtype=torch.float64), dim=-1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.04, 0.08, 0.12])
def test_cosines_and_length_of_the_noise(sigma: float) -> None:
    dim, rows = 768, unit(2000, 768)
    noisy = add_noise(rows, sigma, seeded())
    torch.testing.assert_close(noisy.norm(dim=-1), torch.ones(2000, dtype=torch.float64))
    expected = 1 / math.sqrt(1 + sigma**2 * dim)
    cosines = (rows * noisy).sum(-1)
    assert float(cosines.mean()) == pytest.approx(expected, abs=0.005)
    # unit length hides the noise's own: x + noise = x' * |x + noise|, and |x + noise|^2 is
    # 1 + sigma^2 D + 2 x.noise, while x.noise = cos * |x + noise| - 1
    noise = torch.empty_like(rows).normal_(generator=seeded()) * sigma
    assert float(noise.square().sum(-1).mean()) == pytest.approx(sigma**2 * dim, rel=0.01)
    torch.testing.assert_close(noisy, F.normalize(rows + noise, dim=-1))


def test_the_published_cosines_at_768_dimensions() -> None:
    found = [1 / math.sqrt(1 + s**2 * 768) for s in (0.04, 0.08, 0.12)]
    assert found == pytest.approx([0.67, 0.41, 0.29], abs=0.005)


def test_equal_length_in_another_dimension_gives_equal_cosines() -> None:
    means = []
    for dim in (64, 1024):
        rows = unit(3000, dim)
        noisy = add_noise(rows, 1.0 / math.sqrt(dim), seeded())
        means.append(float((rows * noisy).sum(-1).mean()))
    assert means[0] == pytest.approx(means[1], abs=0.01)


def test_seeds_and_no_noise() -> None:
    rows = unit(5, 8).float()
    assert add_noise(rows, 0.0, seeded()) is rows
    one, two = (add_noise(rows, 0.1, seeded(3)) for _ in range(2))
    assert torch.equal(one, two) and one.dtype == torch.float32
    assert not torch.equal(one, add_noise(rows, 0.1, seeded(4)))
    generator = seeded(3)
    first = add_noise(rows, 0.1, generator)
    assert torch.equal(first, one) and not torch.equal(add_noise(rows, 0.1, generator), one)
