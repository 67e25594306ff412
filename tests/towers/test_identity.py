"""The same function has the same hash, whatever it was started with; another has another."""

import copy

import torch

from clipkit.towers.build import build_towers
from clipkit.towers.identity import facts_hash, weights_hash
from tests.fixtures_model import ARCH


def built(**changes):
    torch.manual_seed(0)
    return build_towers({**copy.deepcopy(ARCH), **changes})


def test_it_knows_weights_and_architecture_and_nothing_else():
    towers = built()
    first = weights_hash(towers)
    assert weights_hash(built()) == first
    assert weights_hash(built(init_logit_bias=None)) == first  # how it began is no part of it
    deeper = copy.deepcopy(ARCH)
    deeper["text_cfg"]["heads"] = 2
    other = built(**deeper)
    other.clip.load_state_dict(towers.clip.state_dict())
    assert weights_hash(other) != first  # the same tensors, another function
    towers.clip.requires_grad_(False)
    assert weights_hash(towers) == first
    with torch.no_grad():
        towers.clip.visual.proj[0, 0] += 1e-6
    assert weights_hash(towers) != first


def test_facts_have_no_order():
    assert facts_hash({"a": 1, "b": [2]}) == facts_hash({"b": [2], "a": 1}) != facts_hash({"a": 1})
