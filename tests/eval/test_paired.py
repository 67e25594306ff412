"""Paired differences against closed forms, scipy, published examples and simulated nulls."""

import math

import numpy as np
import pytest
from scipy import stats

from clipkit.eval.base import Column
from clipkit.eval.intervals import bootstrap_means
from clipkit.eval.paired import Pairs, bootstrap_differences, difference, holm, match, mcnemar


def pairs(a, b, clusters=None, groups=None):
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    clusters = None if clusters is None else np.asarray(clusters)
    groups = None if groups is None else np.asarray(groups)
    return Pairs(a, b, clusters, groups, np.arange(len(a)))


def table(both, only_a, only_b, neither):
    """0/1 pairs with these counts."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return pairs(a, b)


def column(names, values, clusters=None, groups=None, unit="image"):
    keys = [(unit, name) for name in names]
    clusters = None if clusters is None else np.array(clusters)
    groups = None if groups is None else np.array(groups)
    return Column(keys, np.array(values, dtype=float), clusters, groups)


# McNemar


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(3, 11), (11, 3), (0, 1), (7, 7), (0, 40), (50, 71)]
)
def test_mcnemar_is_the_binomial_tail_twice(only_a, only_b):
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)
    assert mcnemar(only_a, only_b) == stats.binomtest(only_a, n, 0.5).pvalue


def test_mcnemar_of_a_published_table():
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)  # 2 (1 + 8) / 256
    assert mcnemar(0, 0) == 1.0


def test_independent_shares_are_tested_by_mcnemar_and_nothing_else_is():
    found = difference(table(40, 3, 11, 20))
    assert (found.test, found.only_a, found.only_b, found.n) == ("mcnemar_exact", 3, 11, 74)
    assert found.p == stats.binomtest(3, 14).pvalue
    assert found.value == pytest.approx((11 - 3) / 74)
    a, b = [1, 1, 0, 0] * 5, [1, 0, 1, 0] * 5
    clustered = difference(pairs(a, b, clusters=[i // 2 for i in range(20)]))
    macro = difference(pairs(a, b, groups=[i % 3 for i in range(20)]))
    assert clustered.test == macro.test == "paired_bootstrap"
    assert (clustered.only_a, clustered.only_b) == (5, 5)
    numbers = difference(pairs([0.2, 0.4, 0.1], [0.3, 0.1, 0.2]))
    assert (numbers.test, numbers.only_a) == ("paired_bootstrap", None)


# Holm


def test_holm_of_a_worked_example():
    """0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_familys_error():
    rng = np.random.default_rng(0)
    false = sum(min(holm(rng.random(20).tolist())) < 0.05 for _ in range(2000)) / 2000
    assert 0.03 < false < 0.07


# agreement


def test_where_all_pairs_agree_there_is_no_difference():
    found = difference(table(40, 0, 0, 60))
    assert (found.value, found.p) == (0.0, 1.0)
    low, high = found.interval
    assert high == -low == pytest.approx(1.959964**2 / (100 + 1.959964**2))  # Tango 1998
    numbers = difference(pairs([0.1, 0.7], [0.1, 0.7]))
    assert (numbers.value, numbers.p) == (0.0, 1.0)


def test_few_samples_that_all_differ_prove_nothing():
    assert difference(table(0, 1, 0, 0)).interval[1] > 0
    assert difference(pairs([0.1], [0.9])).p == 1.0
    assert difference(pairs([0.1, 0.1], [0.9, 0.9])).p == 0.5
    assert difference(pairs([0.1] * 3 + [0] * 97, [0.9] * 3 + [0] * 97)).p >= 0.25
    one = [1] * 50 + [0] * 50
    assert difference(pairs([0] * 100, one, clusters=[0] * 50 + list(range(1, 51)))).p == 1.0


# the interval


@pytest.mark.parametrize(
    ("a", "b", "clusters"),
    [
        ([0.9], [0.5], None),
        ([0.9, 0.8], [0.5, 0.4], None),  # equal but for their last digit
        ([0.1, 0.7], [0.1, 0.7], None),
        ([0.0], [0.0], None),
        ([3.0, 9.0, 3.0, 9.0], [4.0, 5.0, 4.0, 5.0], [0, 0, 1, 1]),
    ],
)
def test_few_clusters_that_differ_by_the_same_leave_it_open_whether_there_is_a_difference(
    a, b, clusters
):
    low, high = difference(pairs(a, b, clusters)).interval
    assert low < 0 < high


def test_many_numbers_that_differ_by_the_same_are_as_sure_as_shares():
    """The rule of three: what 1000 samples do not show is rarer than 3.8 in 1000."""
    low, high = difference(pairs([20.0] * 1000, [18.0] * 1000)).interval
    rare = 1.959964**2 / (1000 + 1.959964**2)
    assert (low, high) == pytest.approx((-2 - 18 * rare, -2 + 22 * rare))


def test_all_lost_gives_the_score_interval():
    low, high = difference(table(0, 10, 0, 0)).interval
    assert low == -1.0
    assert high == pytest.approx(-(10 - 1.959964**2) / (10 + 1.959964**2))  # Tango 1998


def test_two_models_at_70_percent_with_10_percent_discordant():
    n = 50_000
    half = n * 5 // 100
    found = difference(table(n * 65 // 100, half, half, n * 25 // 100))
    assert found.a == found.b == pytest.approx(0.70)
    paired = (found.interval[1] - found.interval[0]) / (2 * 1.96)
    unpaired = math.sqrt(2 * 0.7 * 0.3 / n)
    assert unpaired == pytest.approx(0.0029, abs=5e-5)
    assert paired == pytest.approx(0.0014, abs=1e-4)
    assert paired / unpaired == pytest.approx(0.49, abs=0.03)


def test_independent_numbers_agree_with_the_paired_t_test():
    rng = np.random.default_rng(1)
    a = rng.normal(size=200)
    b = a + rng.normal(0.08, 0.5, size=200)
    found = difference(pairs(a, b))
    reference = stats.ttest_rel(b, a)
    bounds = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue, rel=0.15)
    assert found.interval == pytest.approx((bounds.low, bounds.high), abs=0.01)


def test_equal_draws_of_equal_clusters_follow_the_same_law_as_the_plain_bootstrap():
    rng = np.random.default_rng(2)
    gap = rng.choice([-1.0, 0.0, 1.0], size=300, p=[0.1, 0.7, 0.2])
    for clusters in (None, np.arange(300) // 3):
        fast = bootstrap_differences(gap, clusters, resamples=4000)
        slow = bootstrap_means(gap, clusters, resamples=4000, seed=5)
        assert fast.std() == pytest.approx(slow.std(), rel=0.05)
        assert np.percentile(fast, [2.5, 50, 97.5]) == pytest.approx(
            np.percentile(slow, [2.5, 50, 97.5]), abs=0.008
        )


def test_copies_of_a_sample_in_its_cluster_add_nothing():
    rng = np.random.default_rng(3)
    a, b = (rng.random(120) < 0.5).astype(float), (rng.random(120) < 0.6).astype(float)
    alone = difference(pairs(a, b))
    fivefold = [np.repeat(x, 5) for x in (a, b)]
    clustered = difference(pairs(*fivefold, clusters=np.repeat(np.arange(120), 5)))
    blind = difference(pairs(*fivefold))
    width = [d.interval[1] - d.interval[0] for d in (alone, clustered, blind)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] < 0.6 * width[0]
    assert clustered.p > 10 * blind.p


def test_a_cluster_weighs_by_its_size():
    gap = np.array([1.0] * 3 + [-1.0] + [0.0] * 2 + [1.0])
    clusters = np.array([0, 0, 0, 1, 2, 2, 3])
    fast = bootstrap_differences(gap, clusters, resamples=4000)
    slow = bootstrap_means(gap, clusters, resamples=4000, seed=5)
    assert np.quantile(fast, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(slow, [0.1, 0.5, 0.9]), abs=0.02
    )
    assert set(np.round(fast, 9)) == set(np.round(slow, 9))


def test_a_macro_difference_is_the_mean_over_groups():
    a = [1, 1, 1, 0, 0, 1]
    b = [1, 0, 1, 0, 1, 1]
    groups = [0, 0, 0, 0, 1, 1]
    found = difference(pairs(a, b, groups=groups))
    assert found.a == pytest.approx((0.75 + 0.5) / 2)
    assert found.value == pytest.approx((-0.25 + 0.5) / 2)
    weights = difference(pairs(a * 50, b * 50, groups=groups * 50))
    assert weights.interval[0] < found.value < weights.interval[1]
    assert weights.interval[0] > 0  # the plain mean's difference is 0
    assert difference(pairs(a * 50, b * 50)).value == 0.0


def test_the_same_data_give_the_same_interval():
    rng = np.random.default_rng(4)
    a, b = rng.random(500), rng.random(500)
    assert difference(pairs(a, b)) == difference(pairs(a, b))


# simulations: equal models, and a known difference


def _coins(rng, n, a, b):
    """Two models of those accuracies whose samples share a difficulty."""
    shift = rng.normal(size=n)
    limits = stats.norm.ppf([a, b])
    return [(shift * 0.8 + rng.normal(size=n) * 0.6 < limit).astype(float) for limit in limits]


def test_equal_coins_are_told_apart_5_times_in_100():
    rng = np.random.default_rng(5)
    found = [difference(pairs(*_coins(rng, 400, 0.6, 0.6))) for _ in range(300)]
    assert 0.01 <= np.mean([d.p < 0.05 for d in found]) <= 0.07  # the exact test stays below 5 %
    excluded = np.mean([d.interval[0] > 0 or d.interval[1] < 0 for d in found])
    assert 0.02 <= excluded <= 0.09


def test_equal_clustered_models_are_told_apart_5_times_in_100():
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(40), 5)
    found = []
    for _ in range(300):
        gap = np.repeat(rng.normal(size=40), 5) + rng.normal(size=200)
        found.append(difference(pairs(np.zeros(200), gap, clusters)).p < 0.05)
    assert 0.02 <= np.mean(found) <= 0.09


def test_the_interval_covers_a_known_difference():
    rng = np.random.default_rng(7)
    found = [difference(pairs(*_coins(rng, 500, 0.6, 0.68))).interval for _ in range(300)]
    assert 0.91 <= np.mean([low <= 0.08 <= high for low, high in found]) <= 0.98


# matching


def test_samples_are_paired_by_id_and_not_by_place():
    a = column(["x", "y", "z", "only a"], [0, 1, 1, 0])
    b = column(["z", "only b", "x", "y", "b too"], [0, 1, 1, 1, 0])
    found = match(a, b)
    assert found.a.tolist() == [0, 1, 1]
    assert found.b.tolist() == [1, 1, 0]
    assert found.rows.tolist() == [0, 1, 2]
    assert (found.only_a, found.only_b, found.same_groups) == (1, 2, True)


def test_an_image_and_a_caption_of_one_id_are_two_samples():
    found = match(column(["x"], [1]), column(["x"], [1], unit="caption"))
    assert (len(found.a), found.only_a, found.only_b) == (0, 1, 1)


def test_groups_and_clusters_come_along_without_gaps():
    a = column(["p", "q", "r", "s"], [0, 1, 1, 0], [0, 0, 1, 1], [2, 1, 1, 0])
    b = column(["s", "q", "p"], [1, 1, 1], [1, 0, 0], [0, 1, 2])
    found = match(a, b)
    assert found.clusters.tolist() == [0, 0, 1]
    assert found.groups.tolist() == [2, 1, 0]
    assert found.same_groups
    part = found.take(np.array([0, 2]))
    assert (part.clusters.tolist(), part.groups.tolist(), part.b.tolist()) == (
        [0, 1],
        [1, 0],
        [1, 1],
    )


def test_other_groups_on_the_two_sides_are_told():
    names = ["p", "q", "r"]
    a = column(names, [0, 1, 1], groups=[0, 0, 1])
    assert not match(a, column(names, [0, 1, 1], groups=[0, 1, 1])).same_groups
    assert not match(a, column(names, [0, 1, 1], [0, 0, 1], [0, 0, 1])).same_groups


def test_an_id_that_stands_twice_cannot_be_paired():
    with pytest.raises(ValueError, match="image/y"):
        match(column(["x", "y"], [0, 1]), column(["y", "x", "y"], [0, 1, 1]))
