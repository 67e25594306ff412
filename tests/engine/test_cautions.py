"""What is refused or told at start."""

from __future__ import annotations

from typing import Any

import pytest

from clipkit.config.schema import RunConfig
from clipkit.dist.group import World
from clipkit.engine.cautions import bias_note, check_compiler, zero3_note
from clipkit.errors import ConfigError
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.siglip import SigLIPLoss
from tests.tiny_model import tiny_model


def config(**train: Any) -> RunConfig:
    return RunConfig.model_validate({"train": {"total_steps": 1, **train}})


def test_a_sigmoid_loss_without_a_bias_is_told() -> None:
    losses = [(InfoNCELoss(), 1.0), (SigLIPLoss(), 1.0)]
    assert "SigLIPLoss wants model.init_logit_bias=-10" in bias_note(tiny_model(), losses)[0]
    assert bias_note(tiny_model(bias=-10.0), losses) == []
    assert bias_note(tiny_model(), losses[:1]) == []


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8, None), "4 chunks gathers the parameters they use 11 times"),
        ((16, 4), "9 chunks gathers the parameters they use 27"),
        ((32, None), ""),
        ((None, None), ""),
    ],
)
def test_zero3_counts_its_gathers(sizes: tuple[int | None, int | None], said: str) -> None:
    notes = zero3_note(3, 32, *sizes)
    assert said in "".join(notes) and bool(notes) == bool(said)
    assert zero3_note(2, 32, *sizes) == []


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError, match="train.compile: no C.. compiler"):
        check_compiler(config(compile=True), World())
    check_compiler(config(), World())
