"""The curves against the evaluation's own measures, closed forms, and over ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipkit.addons.gap.curves import gap_curves
from clipkit.addons.gap.terms import Kernel
from clipkit.dist.group import World
from clipkit.eval.geometry import Pairs, centroid_gap, rmg_interval
from clipkit.eval.geometry import kernel_rows as kernel_means
from tests.addons.gap.problems import features_of, sides, unit


def test_equal_the_evaluation() -> None:
    image, text = sides(40)
    rows = torch.arange(40)
    pairs = Pairs(image, text, rows, rows)
    matched = (image * text).sum(-1)
    found = gap_curves(features_of(image, text), Kernel())
    wanted = {
        "gap/centroid_gap": centroid_gap(pairs)[0],
        "gap/rmg": rmg_interval(pairs, matched)[0],
        "gap/alignment": float((2 - 2 * matched).mean()),
        "gap/uniformity_image": float(kernel_means(image).mean().log()),
        "gap/uniformity_text": float(kernel_means(text).mean().log()),
    }
    assert found == pytest.approx(wanted, rel=1e-6)


def test_closed_forms() -> None:
    rows = unit(60, 4)
    same = gap_curves(features_of(rows, rows), Kernel())
    assert same["gap/centroid_gap"] == pytest.approx(0, abs=1e-12)
    assert same["gap/rmg"] == pytest.approx(0, abs=1e-9)
    isotropic = gap_curves(features_of(unit(5000, 64), unit(5000, 64, seed=9)), Kernel())
    assert isotropic["gap/rmg"] == pytest.approx(0.5, abs=0.01)
    axis = torch.eye(4, dtype=torch.float64)[:1]
    one, other = (F.normalize(axis * sign + 0.1 * rows, dim=-1) for sign in (1, -1))
    opposite = gap_curves(features_of(one, other), Kernel())
    assert opposite["gap/rmg"] > 0.95 and opposite["gap/centroid_gap"] > 1.9
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned = gap_curves(features_of(one @ turn, other @ turn), Kernel())
    assert turned == pytest.approx(opposite, rel=1e-9)


def test_one_point_and_one_row_are_finite() -> None:
    point = unit(1, 4)
    for size in (1, 8):
        rows = point.expand(size, 4)
        found = gap_curves(features_of(rows, rows), Kernel())
        assert all(value == pytest.approx(0, abs=1e-6) for value in found.values())


def curves_of_a_rank(world: World) -> dict[str, float]:
    return gap_curves(features_of(*sides(), world=world), Kernel(mask_duplicates=True))


@pytest.mark.slow
def test_two_ranks_give_the_curves_of_one(ranks) -> None:  # type: ignore[no-untyped-def]
    one = curves_of_a_rank(World())
    first, second = ranks(2).run(curves_of_a_rank)
    assert first == second == pytest.approx(one, rel=1e-12)
