"""The moving average against its recursion, on slices as a strategy hands them out."""

from types import SimpleNamespace

import pytest
import torch

from clipkit.addons.ema import ExponentialMovingAverage


class Shards:
    """A strategy that owns these slices: (name, start, tensor)."""

    def __init__(self, *owned):
        self.owned = owned

    def master_shards(self):
        for name, start, tensor in self.owned:
            yield name, slice(start, start + len(tensor)), tensor


def result(step, strategy):
    return SimpleNamespace(step=step, strategy=strategy, features=None)


@pytest.fixture
def strategy():
    return Shards(
        ("a", 0, torch.zeros(3)), ("a", 6, torch.zeros(2)), ("b", 4, torch.full((1,), 5.0))
    )


def averages(addon):
    return {(n, s): t.tolist() for n, s, t in addon.sharded_state()}


def test_starts_at_the_weights_and_keeps_a_copy(strategy):
    addon = ExponentialMovingAverage(decay=0.9)
    addon.start(strategy)
    strategy.owned[0][2].add_(1)
    assert averages(addon) == {("a", 0): [0.0] * 3, ("a", 6): [0.0] * 2, ("b", 4): [5.0]}


def test_follows_the_recursion_with_its_warmup(strategy):
    addon = ExponentialMovingAverage(decay=0.5)
    addon.start(strategy)
    expected = 0.0
    for step in range(1, 20):
        strategy.owned[0][2].fill_(float(step))
        addon.after_step(result(step, strategy))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert averages(addon)["a", 0] == pytest.approx([expected] * 3)
    assert averages(addon)["b", 4] == [5.0]
    assert strategy.owned[0][2].tolist() == [19.0] * 3  # the weights themselves are not touched


def test_weights_with_gradient_leave_no_graph():
    weight = torch.zeros(2, requires_grad=True)
    addon = ExponentialMovingAverage()
    addon.start(Shards(("w", 0, weight)))
    addon.after_step(result(1, Shards(("w", 0, weight * 2))))
    assert not any(t.requires_grad for _, _, t in addon.sharded_state())


def test_state_is_a_live_view_that_a_checkpoint_can_fill(strategy):
    addon = ExponentialMovingAverage()
    addon.start(strategy)
    for _, _, view in addon.sharded_state():
        view.fill_(7.0)
    assert averages(addon)["a", 6] == [7.0, 7.0]
