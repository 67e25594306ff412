"""An add-on that overrides nothing changes nothing."""

import numpy as np
import torch

from clipkit.addons.base import AddOn
from clipkit.contracts import Batch, Features, Pair
from clipkit.data.samples import Sample


def test_every_hook_does_nothing():
    addon = AddOn()
    sample = Sample({}, {"text": ["a"]})
    batch = Batch({}, {}, torch.arange(2))
    pairs = [Pair()]
    assert addon.sample(sample, np.random.default_rng()) is sample
    assert addon.transform_batch(batch) is batch
    assert addon.heads() == {} and addon.frozen_models() == {}
    assert addon.pairs(pairs) is pairs
    assert addon.loss_terms(Features({"image": torch.ones(1, 1, 1)}, torch.ones(()))) == {}
    assert addon.prepare(None) is None and addon.check_data([]) is None
    assert addon.start(None) is None and addon.after_step(None) is None
    assert addon.state_dict() == {} and addon.load_state_dict({}) is None
    assert list(addon.sharded_state()) == []
    assert addon.metrics(None) == {} and addon.remarks() == []
    assert addon.refinement() is None
    assert addon.freeze_towers is False
