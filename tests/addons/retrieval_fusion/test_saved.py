"""Heads out of facts and tensors; a checkpoint's are in test_training.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionSettings
from clipkit.addons.retrieval_fusion.saved import heads_of, rebuilt_heads
from clipkit.errors import CheckpointError

SETTINGS = FusionSettings(16, k=3, num_heads=4, mlp_ratio=2.0, search="cross")


class Reader:
    """A checkpoint of a second add-on's heads."""

    folder = "step_7"

    def __init__(self, heads: FusionHeads, facts: dict[str, Any]) -> None:
        self.state = {"addons": [{}, {"kind": "retrieval_fusion", **facts}]}
        self.weights = {f"heads.fusion.{n}": t for n, t in heads.state_dict().items()}
        self.weights["towers.proj"] = torch.zeros(2)

    def names(self, kind: str) -> list[str]:
        return list(self.weights)

    def full(self, kind: str, name: str) -> torch.Tensor:
        return self.weights[name]


def test_the_same_heads_come_back() -> None:
    own = FusionHeads(SETTINGS, query_dropout=0.5)
    torch.nn.init.normal_(own.text.mlp_out.weight)
    found = heads_of(Reader(own, SETTINGS.as_json()))  # type: ignore[arg-type]
    assert found is not None and found.settings == SETTINGS and not found.training
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), found.parameters()))


def test_a_checkpoint_without() -> None:
    assert heads_of(SimpleNamespace(state={"addons": [{"kind": "other"}]})) is None  # type: ignore[arg-type]
    assert heads_of(SimpleNamespace(state={})) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"dim": 32}, {"num_heads": 3}, {"mlp_ratio": 1.0}, {"dim": "x"}]
)
def test_damage_is_one_line(change: dict[str, Any]) -> None:
    weights = FusionHeads(SETTINGS).state_dict()
    facts = {**SETTINGS.as_json(), "more": 1}
    rebuilt_heads(facts, weights, "there")
    with pytest.raises(CheckpointError, match="there: its fusion heads are damaged: ") as error:
        rebuilt_heads({**facts, **change}, weights, "there")
    assert "\n" not in str(error.value)
