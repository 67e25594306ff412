"""Intervals against published values, normal theory and each other."""

import math

import numpy as np
import pytest

from clipkit.eval.intervals import (
    bootstrap_means,
    jackknife,
    mean_interval,
    numbered,
    wilson,
)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),  # Newcombe 1998 and Brown, Cai & DasGupta 2001 give these
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-5)


def test_nothing_is_known_of_no_samples():
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_numbers_by_first_occurrence():
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(1).normal(3, 2, 400)
    drawn = bootstrap_means(values, resamples=4000)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert np.array_equal(drawn, bootstrap_means(values, resamples=4000))
    assert not np.array_equal(drawn, bootstrap_means(values, resamples=4000, seed=1))


def test_copies_in_a_cluster_add_no_certainty():
    values = np.random.default_rng(2).normal(0, 1, 100)
    alone = mean_interval(values)
    copied = mean_interval(np.repeat(values, 5), np.repeat(np.arange(100), 5))
    assert copied == pytest.approx(alone)
    too_sure = mean_interval(np.repeat(values, 5))
    assert too_sure[1] - too_sure[0] < 0.6 * (alone[1] - alone[0])


def test_clusters_of_unequal_size_are_weighed_by_it():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    clusters = np.array([0, 0, 0, 1])
    drawn = set(bootstrap_means(values, clusters, resamples=200).tolist())
    assert drawn == {0.0, 0.75, 1.0}


def test_macro_means_average_groups():
    values, groups = np.array([1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 0, 1])
    drawn = bootstrap_means(values, groups=groups, resamples=3000)
    assert drawn.max() == 1.0 and drawn.min() == 0.0
    both = np.array([1.0, 0.0] * 500), np.array([0] * 500 + [1] * 500)
    drawn = bootstrap_means(*[both[0]], groups=both[1], resamples=500)
    assert drawn.mean() == pytest.approx(0.5, abs=0.005)
    assert drawn.std() == pytest.approx(math.sqrt(0.25 / 1000), rel=0.1)


def test_equal_values_are_not_called_certain():
    assert mean_interval(np.ones(10)) == wilson(1.0, 10)
    clustered = mean_interval(np.ones(10), np.repeat(np.arange(5), 2))
    assert clustered == wilson(1.0, 5)
    assert mean_interval(np.ones(10), groups=np.repeat([0, 1], 5)) == wilson(1.0, 10)
    assert mean_interval(np.full(10, 0.3)) == (0.3, 0.3)


def test_one_cluster_is_not_called_certain():
    one = np.zeros(4, dtype=np.int64)
    assert mean_interval(np.array([1.0, 0, 1, 1]), one) == wilson(0.75, 1)
    assert mean_interval(np.array([1.0, 0.5, 0, 1]), one) == wilson(0.625, 1)
    groups = np.array([0, 0, 0, 1])
    assert mean_interval(np.array([1.0, 0, 0, 1]), one, groups) == wilson(2 / 3, 1)
    assert mean_interval(np.array([0.25])) == wilson(0.25, 1)
    assert mean_interval(np.array([2.0, 4.0]), one[:2]) == (3.0, 3.0)


def test_the_jackknife_of_a_mean_is_normal_theory():
    values = np.random.default_rng(3).normal(0, 1, 600)
    low, high = jackknife(lambda kept: float(values[kept].mean()), 600, groups=600)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(600)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half))
    blocks = jackknife(lambda kept: float(values[kept].mean()), 600)
    assert blocks[1] - blocks[0] == pytest.approx(2 * half, rel=0.35)


def test_the_jackknife_covers():
    rng, inside = np.random.default_rng(4), 0
    for _ in range(200):
        x = rng.normal(0, 1, 150)
        low, high = jackknife(lambda kept, x=x: float(x[kept].var()), 150)
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.99
    assert jackknife(lambda kept: 7.0, 1) == (7.0, 7.0)
