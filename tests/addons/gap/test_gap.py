"""The add-on in the step: over ranks, cached, beside every loss, and in a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from clipkit.addons.base import AddOn
from clipkit.addons.gap import GapClosing, terms
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint
from clipkit.config.parts import list_kinds
from clipkit.dist.group import World
from clipkit.errors import ConfigError
from tests.addons.gap.problems import ALL, rank_cell
from tests.e2e.runs import metrics, write_run
from tests.engine.cells import build_strategy, full_model_state, train_step_for
from tests.engine.inprocess import fit_in_pool
from tests.tiny_model import tiny_batch, tiny_model

CURVES = ("centroid_gap", "rmg", "alignment", "uniformity_image", "uniformity_text")


@pytest.mark.parametrize("plan", ["rs", "lse"])
@pytest.mark.parametrize("form", [{}, {"include_self": True, "mask_duplicates": True}], ids=str)
def test_two_ranks_equal_one_process(form: dict[str, Any], plan: str, ranks) -> None:  # type: ignore[no-untyped-def]
    options = {**ALL, **form}
    value, *wanted = rank_cell(World(), options)
    found = ranks(2).run(rank_cell, options, plan)
    assert sum(f[0] for f in found) / 2 == pytest.approx(value, rel=1e-9)
    for side, gradient in enumerate(wanted, 1):  # gradients are averaged over ranks
        average = sum(f[side] for f in found) / 2
        torch.testing.assert_close(average, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["uniformity", "xuniformity"])
def test_the_whole_value_stands_on_every_rank(name: str, ranks) -> None:  # type: ignore[no-untyped-def]
    first, second = ranks(2).run(rank_cell, {name: 1.0})
    assert first[0] == second[0] == pytest.approx(rank_cell(World(), {name: 1.0})[0], rel=1e-12)


def faulty_rank_cell(world: World) -> Any:
    """Sums that stay on their rank."""
    with mock.patch.object(terms.Features, "sum", lambda self, x: x):
        return rank_cell(world, ALL)


def test_seeded_fault_sums_that_are_not_reduced(ranks) -> None:  # type: ignore[no-untyped-def]
    found = ranks(2).run(faulty_rank_cell)
    assert sum(f[0] for f in found) / 2 != pytest.approx(rank_cell(World(), ALL)[0], rel=1e-6)


def trained(loss: str, chunk: int | None, addons: list[AddOn], steps: int = 3) -> dict[str, Any]:
    """Losses, and weights after some steps of a tiny model."""
    torch.manual_seed(0)
    model = tiny_model(bias=-2.0 if loss == "siglip" else None)
    strategy = build_strategy(model, World(), "torch")
    step = train_step_for(strategy, chunk, addons, loss)
    losses = [step(tiny_batch(16, seed=s), s, 1e-3) for s in range(steps)]
    return {
        "losses": [r.loss for r in losses],
        "terms": losses[-1].terms,
        "weights": full_model_state(strategy),
    }


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference of any weight."""
    return max(float((found[n] - w).abs().max()) for n, w in wanted.items())


@pytest.mark.parametrize("loss", list_kinds("losses"))
def test_weights_of_zero_leave_every_loss_bit_identical(loss: str) -> None:
    plain, monitored = trained(loss, 4, []), trained(loss, 4, [GapClosing()])
    assert plain["losses"] == monitored["losses"] and plain["terms"] == monitored["terms"]
    assert difference(plain["weights"], monitored["weights"]) == 0
    closing = trained(loss, 4, [GapClosing(**ALL)])
    assert difference(plain["weights"], closing["weights"]) > 0
    assert closing["terms"].keys() == plain["terms"].keys() | ALL.keys()


def test_cached_equals_uncached() -> None:
    whole, chunks = (
        trained("infonce", None, [GapClosing(**ALL)], 1),
        trained("infonce", 4, [GapClosing(**ALL)], 1),
    )
    assert chunks["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert chunks["terms"] == pytest.approx(whole["terms"], rel=1e-5)
    assert difference(chunks["weights"], whole["weights"]) < 1e-5


def test_terms_are_weighted_and_named() -> None:
    one, two = (
        trained("infonce", None, [GapClosing(uniformity=w, alignment=2 * w)], 1)["terms"]
        for w in (1.0, 2.0)
    )
    assert one.keys() == {"contrastive", "uniformity", "alignment"}
    assert two["uniformity"] == pytest.approx(2 * one["uniformity"], rel=1e-6)
    assert two["alignment"] == pytest.approx(2 * one["alignment"], rel=1e-6)


def test_a_monitored_run_is_bit_identical_and_its_curves_are_logged(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0}, train={"total_steps": 4})
    ranks(1).run(fit_in_pool, str(config), ["run.name=plain"])
    ranks(1).run(fit_in_pool, str(config), ["run.name=gap", "addons=[{kind: gap}]", "log.every=2"])
    plain, monitored = (tmp_path / "runs" / name for name in ("plain", "gap"))
    lines, curves = metrics(plain), metrics(monitored)
    assert [line["step"] for line in curves] == [2, 4]
    for line in curves:
        assert line["train/loss"] == lines[line["step"] - 1]["train/loss"]
        assert {f"train/gap/{name}" for name in CURVES} <= line.keys()
        assert 0 <= line["train/gap/rmg"] <= 1 and 0 <= line["train/gap/centroid_gap"] <= 2
    assert not any("gap" in key for line in lines for key in line)
    states = [CheckpointReader(find_checkpoint(p)).towers_state() for p in (plain, monitored)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize(
    "option, text",
    [({"uniformity": -1.0}, "addons.uniformity=-1"), ({"t": 0.0}, "addons.t=0"), ({"t": 1e3}, "t")],
)
def test_settings_out_of_range(option: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GapClosing(**option)
