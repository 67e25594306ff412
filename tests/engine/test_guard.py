"""What is skipped, when the run rolls back, and that a falling noisy curve alarms nobody."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import pytest

from clipkit.engine.guard import Guard


def step(guard: Guard, loss: float, finite: bool = True, overflow: bool = False) -> tuple[str, str]:
    """(what becomes of the batch, what follows) as the step and the loop ask."""
    judged = guard.judge(loss, finite)
    applied = judged == "apply" and not overflow
    return judged, guard.after(SimpleNamespace(applied=applied, loss=loss))


def trained(steps: int = 100, **kwargs: object) -> Guard:
    """A guard that has seen a quiet curve around 3."""
    guard = Guard(**kwargs)  # type: ignore[arg-type]
    noise = random.Random(0)
    for _ in range(steps):
        assert step(guard, 3 + noise.gauss(0, 0.05)) == ("apply", "go on")
    return guard


def curve(step: int, noise: random.Random) -> float:
    """A loss that falls from 6 to 1 with noise that does not."""
    return 1 + 5 * math.exp(-step / 2000) + noise.gauss(0, 0.15)


@pytest.mark.parametrize("seed", range(3))
def test_no_false_alarm_in_ten_thousand_steps_and_each_spike_seen_at_once(seed: int) -> None:
    guard, noise = Guard(spike="skip"), random.Random(seed)
    for number in range(10_000):
        assert step(guard, curve(number, noise)) == ("apply", "go on"), number
        if number >= 100 and number % 500 == 0:
            assert step(guard, 10 * curve(number, noise))[0] == "skip"
            assert guard.trouble == "spike"
    assert guard.skipped == 19


@pytest.mark.parametrize("level", [0.1, 1.0, 5.0])
def test_a_curve_without_noise_does_not_alarm_at_a_small_step(level: float) -> None:
    guard = Guard()
    for _ in range(100):
        step(guard, level)
    step(guard, 1.15 * level)
    assert not guard.trouble
    step(guard, 10 * level)
    assert guard.trouble == "spike"


def test_nothing_is_judged_before_a_quarter_of_the_window_is_known() -> None:
    guard = trained(24)
    assert guard.limit() == math.inf
    step(guard, 3.0)
    assert guard.limit() < 10


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("off", ("apply", "go on", "")),
        ("warn", ("apply", "go on", "spike")),
        ("skip", ("skip", "go on", "spike")),
        ("rollback", ("skip", "roll back", "spike")),
    ],
)
def test_what_the_policies_do_with_a_spike(policy: str, wanted: tuple[str, str, str]) -> None:
    guard = trained(spike=policy)
    assert (*step(guard, 30.0), guard.trouble) == wanted
    assert step(guard, 3.0) == ("apply", "go on") and not guard.trouble


def test_bad_batches_in_a_row_roll_back_and_one_good_one_forgives() -> None:
    guard = trained()
    nan = float("nan")
    assert [step(guard, nan, False) for _ in range(2)] == [("skip", "go on")] * 2
    assert step(guard, 3.0)[1] == "go on" and guard.in_a_row == 0
    answers = [step(guard, nan, False)[1] for _ in range(7)]
    assert answers == ["go on", "go on", "roll back", "go on", "go on", "roll back", "go on"]
    assert guard.skipped == 9 and guard.trouble == "nonfinite"


def test_an_overflow_found_by_the_optimizer_counts_too() -> None:
    guard = trained(nonfinite=2)
    assert step(guard, 3.0, overflow=True) == ("apply", "go on") and guard.trouble == "nonfinite"
    assert step(guard, 3.0, overflow=True) == ("apply", "roll back")


def test_roll_backs_are_limited_and_forgotten_after_a_long_calm() -> None:
    guard = Guard(rollbacks=2, spike="off")
    for done in range(2):
        assert guard.done == done and not guard.exhausted
        guard.rolled_back()
    assert guard.exhausted
    for number in range(999):
        step(guard, 1.0)
        if number % 100 == 0:  # one bad batch now and then is no reason to remember
            step(guard, 0.0, False)
    assert guard.exhausted
    step(guard, 1.0)
    assert not guard.exhausted
    assert Guard(rollbacks=0).exhausted


def test_after_a_roll_back_the_level_is_learned_anew() -> None:
    guard = trained(spike="rollback")
    assert step(guard, 30.0)[1] == "roll back"
    guard.rolled_back()
    assert guard.limit() == math.inf and guard.in_a_row == 0


def test_a_resumed_guard_decides_as_the_one_that_was_saved() -> None:
    guard = trained(nonfinite=3)
    step(guard, 0.0, False)
    guard.rolled_back()
    for number in range(150):
        step(guard, 3 + number % 7 / 10)
    step(guard, 0.0, False)
    resumed = Guard(nonfinite=3)
    resumed.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert resumed.state_dict() == guard.state_dict() and resumed.limit() == guard.limit()
    for loss, finite in [(0.0, False), (0.0, False), (3.0, True), (90.0, True)]:
        assert step(guard, loss, finite) == step(resumed, loss, finite)
    assert resumed.state_dict() == guard.state_dict()


def test_a_checkpoint_of_before_the_guard_is_taken() -> None:
    guard = Guard()
    guard.load_state_dict({})
    assert guard.state_dict() == Guard().state_dict()
