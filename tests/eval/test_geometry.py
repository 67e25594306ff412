"""Geometry against closed forms, slow loops and brute-force jackknives."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import hyp0f1
from sklearn.metrics import roc_auc_score

from clipkit.eval import geometry
from clipkit.eval.geometry import (
    Pairs,
    centroid_gap,
    cosine_histogram,
    cross_statistics,
    effective_rank_interval,
    influence_interval,
    kernel_rows,
    other_cosines,
    rmg,
    rmg_interval,
    separability,
    uniformity_interval,
)


def sphere(n, d, seed=0, offset=0.0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x + offset * torch.eye(d, dtype=x.dtype)[0], dim=1).float()


def paired(images, texts=None):
    texts = images.clone() if texts is None else texts
    return Pairs(images, texts, torch.arange(len(images)), torch.arange(len(texts)))


def captioned(n=24, d=5, each=2, seed=0):
    """Texts near their images, `each` of them; no text is shared."""
    images, of_image = sphere(n, d, seed), torch.arange(n).repeat_interleave(each)
    texts = F.normalize(images[of_image] + 1.5 * sphere(n * each, d, seed + 1) + 0.3, dim=1)
    return Pairs(images, texts, of_image, torch.arange(n * each))


def without(pairs, image):
    kept = pairs.of_image != image
    of_image = pairs.of_image[kept] - (pairs.of_image[kept] > image).long()
    rows = torch.arange(len(pairs.images)) != image
    return Pairs(pairs.images[rows], pairs.texts[kept], of_image, torch.arange(int(kept.sum())))


def half_by_jackknife(statistic, pairs):
    n = len(pairs.images)
    values = np.array([statistic(without(pairs, i)) for i in range(n)])
    return 1.959964 * math.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())


def effective_rank(x):
    return effective_rank_interval(x, torch.arange(len(x)), len(x))[0]


def slow_effective_rank(x):
    values = np.linalg.eigvalsh(np.cov(x.double().numpy().T))
    share = values / values.sum()
    return math.exp(-(share * np.log(share)).sum())


def half(interval):
    return (interval[1] - interval[0]) / 2


@pytest.mark.parametrize("d", [2, 16])
def test_uniformity_of_the_uniform_sphere(d):
    value = float(kernel_rows(sphere(3000, d)).mean().log())
    assert value == pytest.approx(-4 + math.log(hyp0f1(d / 2, 4.0)), abs=0.02)


def test_uniformity_at_high_dimension_is_about_minus_4_plus_8_over_d():
    rows = kernel_rows(sphere(2000, 128))
    value, (low, high) = uniformity_interval(rows, torch.arange(2000), 2000)
    assert value == pytest.approx(-4 + 8 / 128, abs=0.002)
    assert low < value < high


def test_kernel_rows_leave_out_the_row_itself_and_do_not_depend_on_blocks(monkeypatch):
    x = sphere(30, 4)
    squared = torch.cdist(x.double(), x.double()) ** 2
    kernel = torch.exp(-2 * squared)
    expected = (kernel.sum(1) - kernel.diagonal()) / 29
    assert torch.allclose(kernel_rows(x), expected, atol=1e-6)
    monkeypatch.setattr(geometry, "_ROWS", 7)
    assert torch.allclose(kernel_rows(x), expected, atol=1e-6)


def test_one_point_for_everything():
    x = sphere(1, 8).expand(20, 8).contiguous()
    pairs = paired(x)
    value, (low, high) = uniformity_interval(kernel_rows(x), torch.arange(20), 20)
    assert (value, low, high) == pytest.approx((0, 0, 0), abs=1e-6)
    assert effective_rank(x) == 0
    assert rmg_interval(pairs, torch.ones(20).double())[0] == 0
    cross = cross_statistics(pairs)
    assert cross.below.mean() == 0 and cross.ties.mean() == 1


def test_rmg_closed_forms():
    independent = paired(sphere(4000, 64, 0), sphere(4000, 64, 1))
    matched = (independent.images * independent.texts).sum(1).double()
    value, (low, high) = rmg_interval(independent, matched)
    assert value == pytest.approx(0.5, abs=0.005) and low < 0.5 < high
    same = paired(sphere(100, 64))
    assert rmg_interval(same, torch.ones(100).double())[0] == 0
    cones = [sphere(500, 16, 0, offset=12.0), -sphere(500, 16, 1, offset=12.0)]
    matched = (cones[0] * cones[1]).sum(1).double()
    assert rmg_interval(paired(*cones), matched)[0] > 0.8
    assert rmg(0.2, 0.6, 0.4) == pytest.approx(0.4 / (0.4 + (0.2 + 0.3) / 2))


def test_other_cosines_leave_out_the_row_itself():
    x = sphere(12, 3)
    cosines = x.double() @ x.double().T
    expected = (cosines.sum(1) - cosines.diagonal()) / 11
    assert torch.allclose(other_cosines(x), expected, atol=1e-9)


def test_centroid_gap_of_shifted_clouds():
    x = sphere(50, 6)
    assert centroid_gap(paired(x))[0] == 0
    assert centroid_gap(paired(x, -x))[0] == pytest.approx(2 * float(x.mean(0).norm()), rel=1e-6)
    poles = torch.eye(6)[:1].expand(4, 6)
    assert centroid_gap(paired(poles, -poles))[0] == 2


def test_effective_rank_of_known_spectra():
    axes = torch.cat([torch.eye(5), -torch.eye(5)])  # covariance is I / 5
    assert effective_rank(axes) == pytest.approx(5, abs=1e-5)
    lifted = F.normalize(torch.cat([axes, torch.full((10, 1), 3.0)], dim=1), dim=1)
    assert effective_rank(lifted) == pytest.approx(5, abs=1e-5)  # the cone's axis does not count
    x = sphere(40, 6)
    assert effective_rank(x) == pytest.approx(slow_effective_rank(x), rel=1e-6)


def test_effective_rank_interval_is_a_jackknife_over_clusters():
    x, owner = sphere(60, 4), torch.arange(20).repeat_interleave(3)
    value, (low, high) = effective_rank_interval(x, owner, 20)
    assert value == pytest.approx(slow_effective_rank(x))
    without = np.array([slow_effective_rank(x[owner != k]) for k in range(20)])
    expected = 1.959964 * math.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert (high - low) / 2 == pytest.approx(expected, rel=1e-6)


def slow_cross(pairs):
    """Lists of cosines of matched and mismatched pairs, and the mismatched ones of each row."""
    own = set(zip(pairs.of_image.tolist(), pairs.of_text.tolist()))
    scores = (pairs.images.double() @ pairs.texts.double().T).float().double()
    matched = [float(scores[i, t]) for i, t in zip(pairs.of_image, pairs.of_text)]
    cells = [
        (i, t, float(scores[i, t]))
        for i in range(len(pairs.images))
        for t in range(len(pairs.texts))
        if (i, t) not in own
    ]
    return matched, cells


@pytest.mark.parametrize("rows", [3, 512])
def test_cross_statistics_against_loops(monkeypatch, rows):
    monkeypatch.setattr(geometry, "_ROWS", rows)
    images, texts = sphere(10, 3), sphere(7, 3, 1)
    images[4] = images[5] = texts[2]  # equal features: ties
    of_image = torch.tensor([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    of_text = torch.tensor([0, 0, 1, 2, 3, 2, 3, 4, 5, 6, 2, 6])
    pairs = Pairs(images, texts, of_image, of_text)
    matched, cells = slow_cross(pairs)
    cross = cross_statistics(pairs)
    others = np.array([c for _, _, c in cells])
    assert cross.matched.tolist() == matched
    assert cross.below.tolist() == pytest.approx([(others < m).mean() for m in matched], abs=1e-6)
    assert cross.ties.tolist() == pytest.approx([(others == m).mean() for m in matched], abs=1e-6)
    assert cross.ties.sum() > 0
    wins = lambda c: np.mean([m > c for m in matched])  # noqa: E731
    kernel = lambda c: math.exp(-2 * max(0.0, 2 - 2 * c))  # noqa: E731
    for column, f in enumerate((lambda c: c, kernel, wins)):
        for side, sums, counts in (
            (0, cross.image_sums, cross.image_counts),
            (1, cross.text_sums, cross.text_counts),
        ):
            for k in range(len(counts)):
                own = [f(cell[2]) for cell in cells if cell[side] == k]
                assert counts[k] == len(own)
                assert float(sums[k, column]) == pytest.approx(sum(own), abs=1e-5)
        assert cross.mean(column) == pytest.approx(np.mean([f(c) for _, _, c in cells]), abs=1e-6)
    assert cross.below.mean() == pytest.approx(cross.mean(2), abs=1e-6)
    assert cross.histogram.tolist() == cosine_histogram(torch.tensor(others)).tolist()


def test_auroc_equals_scikit_learns_without_ties():
    pairs = captioned()
    matched, cells = slow_cross(pairs)
    scores = matched + [c for _, _, c in cells]
    truth = [1] * len(matched) + [0] * len(cells)
    assert float(cross_statistics(pairs).below.mean()) == pytest.approx(
        roc_auc_score(truth, scores), abs=1e-9
    )


def test_everything_is_invariant_to_a_common_rotation():
    pairs = captioned(d=8)
    turn = torch.linalg.qr(sphere(8, 8, 5).double())[0].float()
    turned = Pairs(pairs.images @ turn, pairs.texts @ turn, pairs.of_image, pairs.of_text)

    def numbers(p):
        cross = cross_statistics(p)
        return [
            centroid_gap(p)[0],
            rmg_interval(p, cross.matched)[0],
            float(kernel_rows(p.texts).mean()),
            effective_rank(p.texts),
            *(cross.mean(k) for k in range(3)),
        ]

    assert numbers(turned) == pytest.approx(numbers(pairs), abs=1e-5)


def test_influence_interval_of_a_mean_and_of_clusters():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    mean = float(x.mean())
    low, high = influence_interval(mean, [((x - mean) / 50, torch.arange(50))], 50)
    assert (high - low) / 2 == pytest.approx(1.959964 * float(x.std()) / math.sqrt(50))
    twice = x.repeat_interleave(2)
    part = ((twice - mean) / 100, torch.arange(50).repeat_interleave(2))
    assert influence_interval(mean, [part], 50) == pytest.approx((low, high))
    assert influence_interval(mean, [part], 50, (mean, mean)) == (mean, mean)


def test_intervals_are_those_of_a_brute_force_jackknife():
    pairs = captioned(n=60)
    n, rows = len(pairs.images), torch.arange(len(pairs.images))
    cross = cross_statistics(pairs)
    gap, influence = centroid_gap(pairs)
    image, text = cross.influences(0)
    wins_image, wins_text = cross.influences(2)
    auroc = float(cross.below.mean())
    found = {
        "gap": influence_interval(gap, [(influence, pairs.of_image)], n),
        "rmg": rmg_interval(pairs, cross.matched)[1],
        "uniformity": uniformity_interval(kernel_rows(pairs.texts), pairs.owner, n)[1],
        "mismatched": influence_interval(0.0, [(image, rows), (text, pairs.owner)], n),
        "auroc": influence_interval(
            auroc,
            [
                ((cross.below - auroc) / len(cross.below), pairs.of_image),
                (wins_image, rows),
                (wins_text, pairs.owner),
            ],
            n,
        ),
    }
    slow = {
        "gap": lambda p: centroid_gap(p)[0],
        "rmg": lambda p: rmg_interval(p, cross_statistics(p).matched)[0],
        "uniformity": lambda p: float(kernel_rows(p.texts).mean().log()),
        "mismatched": lambda p: cross_statistics(p).mean(0),
        "auroc": lambda p: float(cross_statistics(p).below.mean()),
    }
    for name, statistic in slow.items():
        assert half(found[name]) == pytest.approx(half_by_jackknife(statistic, pairs), rel=0.1), (
            name
        )


def test_components_and_owners():
    # images 0 and 1 share text 0; image 1 also has text 1, so all three texts' pairs hang together
    pairs = Pairs(
        sphere(4, 3), sphere(4, 3), torch.tensor([0, 1, 1, 2, 3]), torch.tensor([0, 0, 1, 2, 3])
    )
    numbers = pairs.components.tolist()
    assert numbers[0] == numbers[1] == numbers[2] and len(set(numbers)) == 3
    assert pairs.owner.tolist() == [0, 1, 2, 3]


def test_separability_of_apart_same_and_mixed():
    apart = paired(sphere(100, 8, 0, offset=3.0), -sphere(100, 8, 1, offset=3.0))
    assert separability(apart, 0)[1].mean() == 1
    same = paired(sphere(100, 8))
    assert (separability(same, 0)[1] == 0.5).all()  # one of two equal points is right
    mixed = paired(sphere(2000, 4, 0), sphere(2000, 4, 1))
    assert separability(mixed, 0)[1].mean() == pytest.approx(0.5, abs=0.06)


def test_separability_is_tried_on_texts_it_has_not_seen():
    # 40 images on 10 texts, far apart from each other: remembered texts would give 1
    pairs = Pairs(sphere(40, 40), sphere(10, 40, 9), torch.arange(40), torch.arange(40) % 10)
    tested, right = separability(pairs, seed=3)
    assert len(tested) == 8 and len(set(pairs.of_text[tested].tolist())) == 2
    assert (np.diff(tested) > 0).all() and len(right) == 8
    assert separability(pairs, seed=3)[0].tolist() == tested.tolist()
    assert separability(pairs, seed=4)[0].tolist() != tested.tolist()
