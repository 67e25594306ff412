"""Closed forms of the learning rate."""

import math

import pytest

from clipkit.optim.schedules import Schedule


def test_warmup_is_linear_and_never_zero():
    schedule = Schedule("cosine", 1.0, 0.0, 4, 20)
    assert [schedule(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine():
    schedule = Schedule("cosine", 1.0, 0.2, 10, 110)
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(35) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule(110) == pytest.approx(0.2)


def test_constant():
    schedule = Schedule("constant", 0.5, 0.1, 2, 10)
    assert [schedule(s) for s in range(10)] == [0.25] + [0.5] * 9


def test_warmup_stable_decay():
    schedule = Schedule("wsd", 1.0, 0.1, 2, 20, decay_steps=5)
    assert [schedule(s) for s in (2, 10, 15)] == [1.0, 1.0, 1.0]
    assert schedule(16) == pytest.approx(0.1 + 0.9 * 4 / 5)
    assert schedule(19) == pytest.approx(0.1 + 0.9 * 1 / 5)
    assert Schedule("wsd", 1.0, 0.1, 0, 20)(19) == 1.0  # no decay asked for


@pytest.mark.parametrize("kind", ["cosine", "constant", "wsd"])
def test_always_between_the_bounds_and_falling_after_warmup(kind):
    for warmup, total, decay in ((0, 1, 0), (0, 50, 10), (7, 50, 50), (50, 50, 0), (60, 50, 5)):
        schedule = Schedule(kind, 1.0, 0.01, warmup, total, decay)
        values = [schedule(s) for s in range(total)]
        assert all(0 < v <= 1.0 for v in values)
        after = values[warmup:]
        assert all(a >= b for a, b in zip(after, after[1:]))
