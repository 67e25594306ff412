"""Matrices decay; vectors, biases and the temperature do not; frozen parameters are left out."""

import torch
from torch import nn

from clipkit.optim.groups import build_groups
from tests.tiny_model import tiny_model


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.logit_scale = nn.Parameter(torch.ones(1, 1))
        self.relative_bias = nn.Parameter(torch.ones(2, 2))
        self.embedding = nn.Parameter(torch.ones(4, 3))


def test_each_parameter_is_in_the_right_group_once():
    model = Small()
    decay, plain = build_groups(model, 0.3)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.3)
    assert (plain["name"], plain["weight_decay"]) == ("no_decay", 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {"linear.weight", "embedding"}
    plain_names = {"linear.bias", "norm.weight", "norm.bias", "logit_scale", "relative_bias"}
    assert {names[id(p)] for p in plain["params"]} == plain_names


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = Small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "norm.bias")
    (only,) = build_groups(model, 0.3)
    assert only["name"] == "no_decay" and only["params"][0] is model.norm.bias


def test_of_a_whole_encoder():
    model = tiny_model(bias=-10.0)
    groups = build_groups(model, 0.2)
    flat = [p for g in groups for p in g["params"]]
    assert len({id(p) for p in flat}) == len(flat) == len(list(model.parameters()))
    plain = {id(p) for p in groups[1]["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.ndim < 2 or name.endswith("bias")
        assert (id(parameter) in plain) == expected, name
    assert id(model.towers.logit_scale) in plain and id(model.towers.logit_bias) in plain
