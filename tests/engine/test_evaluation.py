"""Evaluation in training: features refined by add-ons, with whole parameters."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkit.addons.base import AddOn
from clipkit.addons.ema import ExponentialMovingAverage
from clipkit.engine import evaluation
from clipkit.engine.evaluation import refinements
from clipkit.errors import DataError
from clipkit.eval.results import read_results
from tests.e2e.runs import write_run
from tests.engine.inprocess import fit_in_pool


class Gathering:
    """A strategy that counts how often parameters are gathered, and knows whether they are."""

    gathered = 0
    whole = False

    @contextmanager
    def full_parameters(self) -> Iterator[None]:
        self.gathered, self.whole = self.gathered + 1, True
        yield
        self.whole = False


def test_refinements_are_asked_for_with_whole_parameters_and_only_where_there_are_any() -> None:
    strategy = Gathering()

    class Refines(AddOn):
        def __init__(self, found: str | None) -> None:
            self.found = found

        def refinement(self) -> Any:
            assert strategy.whole
            return self.found

    run: Any = SimpleNamespace(strategy=strategy, addons=[AddOn(), ExponentialMovingAverage()])
    assert refinements(run) == [] and strategy.gathered == 0
    run.addons = [Refines("a"), AddOn(), Refines(None), Refines("b")]
    assert refinements(run) == ["a", "b"] and strategy.gathered == 1 and not strategy.whole


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("not JSON compliant"),
        TypeError("float32 is not JSON serializable"),  # of a task of someone's own
        DataError("x.json: cannot be read"),  # what was just written is read again
    ],
)
def test_results_that_cannot_be_written_are_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*words: Any) -> None:
        raise error

    told: list[str] = []
    log = SimpleNamespace(event=lambda kind, step, text, alarm: told.append(f"{kind}: {text}"))
    monkeypatch.setattr(evaluation, "store_results", refuse)
    run: Any = SimpleNamespace(folder=tmp_path, step=3, log=log)
    evaluation.write_results(run, [], [])
    assert len(told) == 1 and told[0].startswith("results_failed") and str(error) in told[0]


def test_evaluation_during_training_sees_refined_features(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(
        tmp_path,
        data={"workers": 0},
        extensions=["tests"],
        addons=[{"kind": "tests.engine.refining_addon"}],
    )
    ranks(1).run(fit_in_pool, str(config), ["train.total_steps=1"])
    results = json.loads((tmp_path / "runs" / "r" / "results.json").read_text())
    assert results["classes"]["tie_rate"] == 1.0
    (stored,) = read_results(tmp_path / "runs" / "r" / "eval")
    assert stored.data["refinements"] == ["constant"]
