"""Every strategy and ZeRO stage behaves alike: evaluation, clamp, skipped batches."""

from __future__ import annotations

import math

import pytest
import torch

from clipkit.engine.step import Asks
from tests.e2e.runs import write_run
from tests.engine import strategy_cells as cells

KINDS = ["torch", 0, 1, 2, 3]
PRECISIONS = ["fp32", "bf16"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 12 images in 4 classes."""
    folder = tmp_path_factory.mktemp("classes")
    write_run(folder)
    return str(folder / "data" / "classes")


@pytest.fixture(scope="module")
def zero0(ranks, classes: str):  # type: ignore[no-untyped-def]
    run = ranks(2).run
    return {p: run(cells.evaluate_after_training, 0, p, classes)[0] for p in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["torch", 1, 2, 3])
def test_evaluation_in_training_equals_zero0(kind, precision: str, zero0, classes, ranks) -> None:  # type: ignore[no-untyped-def]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    wanted_features, wanted_metrics = zero0[precision]
    for features, metrics in ranks(2).run(cells.evaluate_after_training, kind, precision, classes):
        torch.testing.assert_close(features, wanted_features, rtol=0, atol=tolerance)
        assert metrics == wanted_metrics and metrics["n"] == 12


def test_evaluation_does_not_depend_on_the_world_size(classes: str, ranks) -> None:  # type: ignore[no-untyped-def]
    _, one = ranks(1).run(cells.evaluate_after_training, "torch", "fp32", classes)[0]
    _, two = ranks(2).run(cells.evaluate_after_training, "torch", "fp32", classes)[0]
    assert one == two


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_driven_logit_scale_is_clamped(kind, precision: str, ranks) -> None:  # type: ignore[no-untyped-def]
    for found in ranks(2).run(cells.clamp_a_driven_scale, kind, precision):
        assert found["applied"]
        assert found["master"] == pytest.approx(math.log(100), abs=1e-6)
        assert found["working"] == pytest.approx(math.log(100), abs=1e-6)
        assert found["forward"] == pytest.approx(100.0, rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_one_chunk_of_one_rank_changes_nothing(kind, precision: str, ranks) -> None:  # type: ignore[no-untyped-def]
    for found in ranks(2).run(cells.skip_a_bad_chunk, kind, precision):
        assert not found["applied"] and not found["replayed"]
        assert found["untouched"]
        assert found["steps"] == (2, 3)
        assert math.isfinite(found["next"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_infinity_in_the_replay_changes_nothing(kind, ranks) -> None:  # type: ignore[no-untyped-def]
    for found in ranks(2).run(cells.overflow_in_the_replay, kind):
        assert not found["applied"]
        assert found["untouched"]
        assert math.isfinite(found["next"][0])


@pytest.mark.parametrize("asks", [Asks(stop=True), Asks(save=True), Asks(bad_samples=3)])
def test_all_ranks_learn_what_one_was_asked(asks: Asks, ranks) -> None:  # type: ignore[no-untyped-def]
    assert ranks(2).run(cells.asked_of_one_rank, asks) == [[tuple(Asks()), tuple(asks)]] * 2
