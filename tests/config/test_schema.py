"""Ranges, and settings that must fit each other."""

import re

import pytest
from pydantic import ValidationError

from clipkit.config.schema import RunConfig


def complete(**sections):
    return RunConfig.model_validate({"train": {"total_steps": 1}, **sections})


def test_defaults_are_a_complete_run_but_for_its_length():
    config = complete()
    assert config.loss == ({"kind": "infonce", "weight": 1.0},)
    with pytest.raises(ValidationError, match="exactly one of total_steps and epochs"):
        RunConfig()


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        complete().optim.lr = 1.0


def test_one_pattern_and_one_loss_may_stand_without_a_list():
    config = complete(data={"train": "a.tar"}, loss={"kind": "siglip"})
    assert config.data.train == ("a.tar",)
    assert config.loss == ({"kind": "siglip"},)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"total_steps": 1, "epochs": 1}}, "exactly one"),
        (
            {"train": {"epochs": 1}, "data": {"mode": "streaming"}},
            "streaming mode has no known length",
        ),
        (
            {"train": {"total_steps": 1, "precision": "pure_bf16"}},
            "pure_bf16 needs engine.strategy=torch",
        ),
        ({"engine": {"strategy": "torch", "zero_stage": 2}}, "does not shard"),
        ({"engine": {"strategy": "torch"}, "deepspeed": {"a": 1}}, "has no effect"),
        ({"loss": []}, "at least one loss"),
        ({"data": {"crop_scale": [0.9, 0.5]}}, r"data.crop_scale: needs 0 < low <= high"),
        ({"data": {"crop_ratio": [0, 1]}}, r"data.crop_ratio: needs 0 < low"),
        ({"data": {"crop_scale": [0.9, 1.5]}}, "cannot exceed 1"),
        ({"optim": {"lr": 0}}, "optim.lr"),
        ({"optim": {"lr": float("nan")}}, "optim.lr"),
        ({"model": {"patch_dropout": 1.0}}, "model.patch_dropout"),
        ({"model": {"lock": ["audio"]}}, "model.lock.0"),
        ({"run": {"name": "../up"}}, "run.name"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
        ({"train": {"total_steps": 1, "global_batch_size": 0}}, "train.global_batch_size"),
    ],
)
def test_refused(sections, message):
    with pytest.raises(ValidationError) as caught:
        complete(**sections)
    text = str(caught.value)
    assert re.search(message, text), text


def test_torch_strategy_needs_no_word_about_zero():
    assert complete(engine={"strategy": "torch"}).engine.strategy == "torch"
