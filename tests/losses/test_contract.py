"""What every loss must satisfy, found by its file: a new loss is tested without a line here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipkit.config.parts import build_part, list_kinds, read_part
from clipkit.contracts import Features, Pair
from clipkit.dist.group import World
from clipkit.errors import ConfigError
from tests.engine.cells import Cell, train_cell
from tests.losses.cells import B, features_of, global_tensors, run_loss

KINDS = list_kinds("losses")
ALONE = World()


def test_losses_are_found() -> None:
    assert {"infonce", "siglip"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_documented(kind: str) -> None:
    info = read_part("losses", kind)
    assert info.doc and info.doc.endswith("."), "the class docstring's first line ends with '.'"
    undescribed = [p.name for p in info.parameters if not p.doc]
    assert not undescribed, f"describe under Args: in the class docstring: {undescribed}"
    own = Path(__file__).parent / f"test_{kind}.py"
    assert own.exists(), f"write {own}: what the contract tests cannot know"


@pytest.mark.parametrize("kind", KINDS)
def test_holds_no_parameters(kind: str) -> None:
    assert not list(build_part("losses", {"kind": kind}).parameters())


@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_reach_both_sides(kind: str, with_columns: bool) -> None:
    answer = run_loss(ALONE, kind, with_columns)
    assert torch.isfinite(answer["scale"]) and torch.isfinite(answer["bias"])
    for name, gradient in answer["gradients"].items():
        assert gradient is not None, f"the loss ignores '{name}'; it must honour pair.columns"
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0, f"no gradient reaches '{name}'"


@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(kind: str, with_columns: bool, ranks) -> None:  # type: ignore[no-untyped-def]
    alone = run_loss(ALONE, kind, with_columns)
    parts = ranks(2).run(run_loss, kind, with_columns)
    assert torch.stack([p["loss"] for p in parts]).mean() == pytest.approx(
        alone["loss"].item(), rel=1e-9
    )
    for name, wanted in alone["gradients"].items():
        # the average over ranks is the loss, so a leaf's gradient is that of the sum divided by 2
        found = torch.cat([p["gradients"][name] for p in parts]) / 2
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for scalar in ("scale", "bias"):
        found = torch.stack([p[scalar] for p in parts]).mean()
        torch.testing.assert_close(found, alone[scalar], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_equals_uncached(kind: str, ranks) -> None:  # type: ignore[no-untyped-def]
    plain, cached = (ranks(1).run(train_cell, Cell(kind, 1, k))[0] for k in (1, 4))
    assert cached["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    for name, gradient in plain["gradients"].items():
        assert (cached["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
def test_masked_columns_change_nothing(kind: str) -> None:
    tensors = global_tensors()
    tensors["mask"] = torch.zeros_like(tensors["mask"])
    loss = build_part("losses", {"kind": kind})
    with_columns, without = features_of(tensors, ALONE, True), features_of(tensors, ALONE, False)
    masked = sum(loss(with_columns, Pair(columns=("negative",))).values())
    plain = sum(loss(without, Pair()).values())
    masked.backward()
    assert masked.item() == pytest.approx(plain.item(), rel=1e-12)
    assert with_columns.embeddings["negative"].grad.abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_column_has_zero_gradient(kind: str) -> None:
    tensors = global_tensors()
    features = features_of(tensors, ALONE, True)
    sum(
        build_part("losses", {"kind": kind})(features, Pair(columns=("negative",))).values()
    ).backward()
    gradient = features.embeddings["negative"].grad
    assert gradient[~tensors["mask"]].abs().sum() == 0, "use features.all_mask(name)"
    assert gradient[tensors["mask"]].abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_aligned_pairs_cost_less(kind: str) -> None:
    tensors = global_tensors()
    loss = build_part("losses", {"kind": kind})
    random = sum(loss(features_of(tensors, ALONE, False), Pair()).values())
    tensors["text"] = tensors["image"]
    assert sum(loss(features_of(tensors, ALONE, False), Pair()).values()) < random


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one(kind: str) -> None:
    tensors = {
        n: t[:1].requires_grad_() for n, t in global_tensors().items() if n in ("image", "text")
    }
    features = Features(tensors, torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    value = sum(build_part("losses", {"kind": kind})(features, Pair()).values())
    value.backward()
    assert torch.isfinite(value)
    for leaf in (*tensors.values(), features.logit_scale):
        assert leaf.grad is None or torch.isfinite(leaf.grad).all(), "mask rows without negatives"


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_across_nodes(kind: str, ranks) -> None:  # type: ignore[no-untyped-def]
    alone = run_loss(ALONE, kind, True)
    parts = ranks(2).run(run_loss, kind, True, "lse")
    for name, wanted in alone["gradients"].items():
        found = torch.cat([p["gradients"][name] for p in parts]) / 2
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_masked_where_that_is_a_setting(kind: str) -> None:
    if "mask_duplicates" not in {p.name for p in read_part("losses", kind).parameters}:
        pytest.skip("no such setting")
    values = []
    for mask in (False, True):
        features = features_of(global_tensors(), ALONE, False)
        features.ids = torch.zeros(B, dtype=torch.int64)  # all one sample: nobody has a negative
        loss = build_part("losses", {"kind": kind, "mask_duplicates": mask})
        values.append(sum(loss(features, Pair()).values()).item())
    assert values[0] != values[1], "pass mask_duplicates on to `negatives`"


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("infonce", "label_smoothing", 1.0),
        ("hcl", "beta", -1.0),
        ("hcl", "tau_plus", 1.0),
        ("dcl", "weight_sigma", 0.001),
    ],
)
def test_impossible_settings_are_refused(kind: str, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"loss.{setting}={value}"):
        build_part("losses", {"kind": kind, setting: value})
