"""Weights between those of two models: the patch of CLoVe, https://arxiv.org/abs/2402.15021."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipkit.errors import CheckpointError, ConfigError
from clipkit.towers.build import Towers


def interpolate(base: Towers, tuned: Towers, weight: float) -> dict[str, Tensor]:
    """(1 - weight) * base + weight * tuned, by name; logit_scale as it is stored, a logarithm.

    Tensors that are no floating point, such as counters, are the tuned model's. At 0 and 1 every
    tensor is that of one model, bit for bit; so are, at any weight, those equal in both. The
    running statistics of batch norm are averaged like the rest and want to be measured anew.

    Args:
        base: The model that was tuned.
        tuned: What became of it.
        weight: Share of `tuned`, 0 to 1.

    Raises:
        ConfigError: A weight outside 0 .. 1.
        CheckpointError: Two architectures; names what differs first.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"--weight {weight}: choose 0 <= weight <= 1")
    _check(base, tuned)
    start, end = base.clip.state_dict(), tuned.clip.state_dict()
    if weight in (0, 1):
        return end if weight else start
    return {name: _between(start[name], end[name], weight) for name in end}


def _between(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """In float64, so that equal values stay what they are."""
    if not end.is_floating_point():
        return end
    return ((1 - weight) * start.double() + weight * end.double()).to(end.dtype)


def _check(base: Towers, tuned: Towers) -> None:
    """Hold settings against each other, some of which show in no shape; then names and shapes."""
    settings = [_settings(t.config["model_cfg"]) for t in (base, tuned)]
    shapes = [{k: tuple(v.shape) for k, v in t.clip.state_dict().items()} for t in (base, tuned)]
    for one, other in (settings, shapes):
        for key in (*one, *other):
            if one.get(key) != other.get(key):
                here, there = (f.get(key, "absent") for f in (one, other))
                raise CheckpointError(
                    f"the models differ in architecture: {key} is {here} in BASE and {there} in "
                    f"TUNED; give a model and what was tuned from it"
                )


def _settings(model_cfg: dict[str, Any], prefix: str = "model_cfg") -> dict[str, Any]:
    """Dotted name -> value of what is set, without how weights begin and what only trains."""
    found: dict[str, Any] = {}
    for key, value in model_cfg.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            found |= _settings(value, name)
        elif value not in (None, False) and not key.startswith("init_") and key != "patch_dropout":
            found[name] = value
    return found
