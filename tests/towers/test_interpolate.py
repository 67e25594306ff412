"""Weights between two models: exact at both ends, and only between models of one architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from clipkit.errors import CheckpointError, ConfigError
from clipkit.towers.build import Towers, build_towers
from clipkit.towers.interpolate import interpolate
from tests.fixtures_model import ARCH

NORMED = {**ARCH, "vision_cfg": {"timm_model_name": "test_byobnet", "image_size": 32}}


def towers(seed: int, arch: dict[str, Any] = ARCH) -> Towers:
    torch.manual_seed(seed)
    return build_towers(arch, nonscalar_logit_scale=False)


@pytest.fixture(scope="module")
def both() -> tuple[Towers, Towers]:
    base, tuned = towers(0), towers(1)
    with torch.no_grad():
        base.clip.visual.proj.zero_().neg_()  # minus zero, which an addition loses
        tuned.clip.text_projection.copy_(base.clip.text_projection)
        base.clip.logit_scale.fill_(2.0)
        tuned.clip.logit_scale.fill_(4.0)
    return base, tuned


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(bits(t), bits(other[n])) for n, t in one.items()
    )


def test_both_ends_are_exact(both: tuple[Towers, Towers]) -> None:
    base, tuned = both
    assert equal(interpolate(base, tuned, 0.0), base.clip.state_dict())
    assert equal(interpolate(base, tuned, 1.0), tuned.clip.state_dict())


@pytest.mark.parametrize("weight", [0.2, 0.6])
def test_between(both: tuple[Towers, Towers], weight: float) -> None:
    base, tuned = both
    found, old = interpolate(base, tuned, weight), base.clip.state_dict()
    for name, new in tuned.clip.state_dict().items():
        expected = (1 - weight) * old[name] + weight * new
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)
    assert found["logit_scale"].item() == pytest.approx(2 + 2 * weight, rel=1e-6)
    assert torch.equal(bits(found["text_projection"]), bits(old["text_projection"])), (
        "what tuning left alone stays as it is"
    )


def test_counters_are_of_the_tuned_model() -> None:
    base, tuned = towers(0, NORMED), towers(1, NORMED)
    tuned.clip.visual.train()
    tuned.clip.visual(torch.zeros(2, 3, 32, 32))
    found = interpolate(base, tuned, 0.5)
    counters = [n for n in found if n.endswith("num_batches_tracked")]
    assert counters and all(found[n] == 1 for n in counters)
    mean = next(n for n in found if n.endswith("running_var"))
    halves = (base.clip.state_dict()[mean] + tuned.clip.state_dict()[mean]) / 2
    torch.testing.assert_close(found[mean], halves)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"embed_dim": 12}, "model_cfg.embed_dim is 8 in BASE and 12 in TUNED"),
        ({"quick_gelu": True}, "model_cfg.quick_gelu is absent in BASE and True"),
        ({"text_cfg": {"context_length": 6}}, "context_length"),
    ],
)
def test_another_architecture(change: dict[str, Any], named: str) -> None:
    arch = copy.deepcopy(ARCH)
    for key, value in change.items():
        arch[key] = {**arch[key], **value} if isinstance(value, dict) else value
    with pytest.raises(CheckpointError, match=named):
        interpolate(towers(0), towers(0, arch), 0.5)


def test_what_is_only_of_training_may_differ() -> None:
    arch = {**ARCH, "init_logit_scale": 1.0, "quick_gelu": False}
    arch["vision_cfg"] = {**arch["vision_cfg"], "patch_dropout": 0.5}
    assert interpolate(towers(0), towers(0, arch), 0.5)


def test_other_tensors_under_equal_settings() -> None:
    base, tuned = towers(0), towers(1)
    tuned.clip.logit_bias = torch.nn.Parameter(torch.zeros(()))
    with pytest.raises(CheckpointError, match=r"logit_bias is absent in BASE and \(\) in TUNED"):
        interpolate(base, tuned, 0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside(both: tuple[Towers, Towers], weight: float) -> None:
    with pytest.raises(ConfigError, match="0 <= weight <= 1"):
        interpolate(*both, weight)
