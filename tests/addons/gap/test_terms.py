"""The terms against closed forms and full matrices, in one process."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipkit.addons.gap import GapClosing
from clipkit.addons.gap.terms import Kernel, alignment, uniformity
from clipkit.contracts import Tiling
from clipkit.losses import tiled
from tests.addons.gap.problems import (
    ALL,
    features_of,
    loss_of,
    perfectly_uniform,
    reference_loss,
    sides,
    unit,
    with_gradients,
)

FORMS = [
    {},
    {"include_self": True},
    {"mask_duplicates": True},
    {"mask_duplicates": True, "include_self": True},
    {"t": 0.5},
    {"t": 30.0},
]


@pytest.mark.parametrize("tile_size", [None, 1, 5, 99])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", [*ALL, "all"])
def test_equals_the_full_matrix(name: str, form: dict[str, Any], tile_size: int | None) -> None:
    options = {**(ALL if name == "all" else {name: ALL[name]}), **form}
    tiling = Tiling(tile_size)
    found = with_gradients(lambda i, t: loss_of(i, t, options, tiling=tiling), *sides())
    wanted = with_gradients(lambda i, t: reference_loss(i, t, options), *sides())
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    # the reference's gradient has a part along each row that the unit sphere does not see
    for ours, theirs, rows in zip(found[1:], wanted[1:], sides()):
        for gradient in (ours, theirs):
            gradient -= (gradient * rows).sum(-1, keepdim=True) * rows
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 8, 128])
def test_perfectly_uniform_rows(dim: int) -> None:
    if dim == 2:  # a regular polygon is uniform on the circle
        angle = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
        rows = torch.stack([angle.cos(), angle.sin()], dim=1)
    else:
        rows = unit(6000, dim)
    found = float(uniformity(features_of(rows, rows), "image", "image", Kernel()))
    # without the pairs of a point with itself, n points have 1 / (n - 1) less
    tolerance = 2e-2 if dim == 2 else 5e-3
    assert found == pytest.approx(perfectly_uniform(2.0, dim), abs=tolerance)


def test_the_closed_form_of_uniform_rows() -> None:
    assert perfectly_uniform(2.0, 128) == pytest.approx(-3.9375, abs=5e-4)
    assert perfectly_uniform(2.0, 2) == pytest.approx(-1.575, abs=5e-4)


def test_identical_rows() -> None:
    rows = unit(1, 5).expand(12, 5)
    features = features_of(rows, rows)
    assert float(uniformity(features, "image", "image", Kernel())) == pytest.approx(0, abs=1e-12)
    paper = uniformity(features, "image", "image", Kernel(include_self=True))
    assert float(paper) == pytest.approx(math.log(12), abs=1e-12)
    assert float(alignment(features)) == pytest.approx(0, abs=1e-12)


def test_alignment_is_two_minus_twice_the_mean_cosine() -> None:
    image, text = sides()
    found = float(alignment(features_of(image, text)))
    assert found == pytest.approx(2 - 2 * float((image * text).sum(-1).mean()), abs=1e-14)
    assert found == pytest.approx(float(((image - text) ** 2).sum(-1).mean()), abs=1e-14)


def test_a_common_rotation_changes_nothing() -> None:
    image, text = sides()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    options = {**ALL, "include_self": True}
    turned = float(loss_of(image @ turn, text @ turn, options))
    assert turned == pytest.approx(float(loss_of(image, text, options)), rel=1e-12)
    one_sided = float(loss_of(image @ turn, text, options))
    assert one_sided != pytest.approx(turned, rel=1e-3)


def test_cross_uniformity_leaves_the_diagonal_out() -> None:
    """Moving a pair together does not raise it: with its own pairs it would fight the alignment."""
    image, _ = sides(2)
    apart = features_of(image, -image)  # each image opposite to its own text
    found = float(uniformity(apart, "image", "text", Kernel()))
    cosine = float(image[0] @ -image[1])
    assert found == pytest.approx(4 * (cosine - 1), abs=1e-12)


@pytest.mark.parametrize("size, wanted", [(64, 0.54), (512, 0.90)])
def test_self_pairs_shrink_the_gradient(size: int, wanted: float) -> None:
    """By S / (1 + S), where S is a row's sum over the others."""
    rows = unit(size, 128)

    def gradient(include_self: bool) -> Tensor:
        x = rows.clone().requires_grad_()
        uniformity(features_of(x, x), "image", "image", Kernel(2.0, include_self)).backward()
        assert x.grad is not None
        return x.grad

    ratio = gradient(True) / gradient(False)
    sums = torch.exp(4 * (rows @ rows.T - 1)).sum(1) - 1
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, float(ratio.mean())), rtol=1e-9, atol=0
    )
    expected = float(sums.mean() / (1 + sums.mean()))
    assert float(ratio.mean()) == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(wanted, abs=0.02)  # methods: (B - 1) e^-4 as B and D grow


@pytest.mark.parametrize("name", ALL)
def test_a_step_against_the_gradient_lowers_each_term(name: str) -> None:
    options = {name: 1.0}
    before, *gradients = with_gradients(lambda i, t: loss_of(i, t, options), *sides())
    moved = [F.normalize(x - 0.01 * d, dim=-1) for x, d in zip(sides(), gradients)]
    assert float(loss_of(moved[0], moved[1], options)) < before


def test_a_batch_without_pairs_counts_zero() -> None:
    image, text = sides(1)
    options = {"uniformity": 1.0, "xuniformity": 1.0}
    value, d_image, d_text = with_gradients(lambda i, t: loss_of(i, t, options), image, text)
    assert value == 0 and not d_image.any() and not d_text.any()


def test_half_precision_features() -> None:
    image, text = sides(32, 16)
    found = loss_of(image.bfloat16(), text.bfloat16(), ALL)
    wanted = loss_of(image.bfloat16().double(), text.bfloat16().double(), ALL)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    terms = features_of(image.float(), text.float())
    value = uniformity(terms, "image", "text", Kernel())
    assert value.dtype == torch.float64
    wanted = uniformity(features_of(image, text), "image", "text", Kernel())
    assert float(value.detach()) == pytest.approx(float(wanted), rel=1e-6)


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                self.nbytes = max(self.nbytes, t.untyped_storage().nbytes())
        return out


def test_memory_grows_with_the_batch_not_its_square() -> None:
    size, dim = 2048, 16
    image, text = (x.float() for x in sides(size, dim))

    def largest(loss: Any) -> int:
        with _Largest() as seen:
            with_gradients(loss, image, text)
        return seen.nbytes

    assert largest(lambda i, t: loss_of(i, t, ALL, tiling=Tiling(128))) <= 16 * size * dim
    square = largest(lambda i, t: torch.exp(4 * (i @ t.T - 1)).mean().log())
    assert square == 4 * size * size


def test_seeded_fault_a_diagonal_that_counts() -> None:
    wanted = float(reference_loss(*sides(), ALL))
    assert float(loss_of(*sides(), ALL)) == pytest.approx(wanted, rel=1e-12)
    with mock.patch("clipkit.losses.strip.Strip.fill_positives", lambda *args: None):
        assert float(loss_of(*sides(), ALL)) != pytest.approx(wanted, rel=1e-3)


def test_the_kernel_of_the_losses_is_what_runs() -> None:
    with mock.patch.object(tiled, "_problem", side_effect=tiled._problem) as asked:
        GapClosing(uniformity=1.0).loss_terms(features_of(*sides()))
    assert len(asked.call_args_list) == 2
