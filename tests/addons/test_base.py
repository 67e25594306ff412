"""An add-on that overrides nothing changes nothing."""

import textwrap

import numpy as np
import torch

import clipkit.addons
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


def test_the_card_shows_one_that_works():
    """Its global value is that of the batch, and only "image" moves it."""
    shown = clipkit.addons.__doc__.split("(contracts):\n")[1].split("\nFiles")[0]
    names = {"AddOn": AddOn, "Features": Features, "Tensor": torch.Tensor}
    exec(textwrap.dedent(shown), names)
    images = torch.tensor([[[3.0, 0.0]], [[1.0, 2.0]]])  # (B, 1, D)
    terms = names["PART"](weight=0.5).loss_terms(Features({"image": images}, torch.ones(())))
    assert {name: float(term) for name, term in terms.items()} == {"spread": 2.5}
