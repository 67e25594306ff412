"""The step does its work once: loss, exchange of features, reduce of gradients; towers twice."""

from __future__ import annotations

import pytest
import torch

from clipkit.addons.base import AddOn, StepView
from clipkit.contracts import Features
from clipkit.dist.group import World
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.errors import ConfigError
from clipkit.losses.infonce import InfoNCELoss
from clipkit.optim.adamw import build_adamw
from tests.engine import lean_cells
from tests.engine.lean_cells import BATCH, EMBED
from tests.tiny_model import tiny_batch, tiny_model


def test_one_loss_one_gather_one_scatter(ranks) -> None:  # type: ignore[no-untyped-def]
    plain, cached = (ranks(2).run(lean_cells.count_features, k)[0] for k in (1, 8))
    local = BATCH // 2 * EMBED * 4
    assert plain == cached
    assert cached == {
        "losses": 1,
        "all_gather": 1,
        "all_gather_bytes": local,
        "reduce_scatter": 1,
        "reduce_scatter_bytes": 2 * local,  # the sum over ranks is taken of all rows
    }


def test_plan_lse_sends_no_features_back(ranks) -> None:  # type: ignore[no-untyped-def]
    found = ranks(2).run(lean_cells.count_features, 4, "lse")[0]
    assert found["all_gather"] == 2
    assert "reduce_scatter" not in found


@pytest.mark.parametrize("kind", ["torch", 0, 1, 2])
def test_gradients_are_reduced_once(kind, ranks) -> None:  # type: ignore[no-untyped-def]
    plain, cached = (ranks(2).run(lean_cells.count_parameters, kind, k)[0] for k in (1, 8))
    assert plain["reduces"] > 0
    assert cached["reduces"] == plain["reduces"]


def test_zero3_gathers_parameters_for_every_chunk(ranks) -> None:  # type: ignore[no-untyped-def]
    plain, cached = (ranks(2).run(lean_cells.count_parameters, 3, k)[0] for k in (1, 4))
    # a forward and a backward of each chunk, and pass 1 of all but the kept one: 3K - 1 to 2
    assert cached["gathered"] == pytest.approx(plain["gathered"] * (3 * 4 - 1) / 2, rel=0.15)


def test_the_loss_is_freed_before_the_replay(ranks) -> None:  # type: ignore[no-untyped-def]
    assert ranks(1).run(lean_cells.alive_in_replay, False)[0] == [False] * 3
    assert ranks(1).run(lean_cells.alive_in_replay, True)[0] == [True] * 3


@pytest.mark.parametrize("kind", ["torch", 1, 2, 3])
def test_towers_cut_apart(kind, ranks) -> None:  # type: ignore[no-untyped-def]
    wanted = ranks(1).run(lean_cells.plain_gradients)[0]
    found = ranks(2).run(lean_cells.apart, kind, 4, 2)
    assert found[0]["forwards"] == {"image": BATCH, "text": BATCH}, "two forwards of 16 rows"
    for answer in found:
        assert answer["gradients"].keys() == wanted.keys()
        for name, gradient in wanted.items():
            error = (answer["gradients"][name] - gradient).norm()
            assert error <= 1e-5 * gradient.norm() + 1e-8, name


class _WithHead(AddOn):
    def heads(self) -> dict[str, torch.nn.Module]:
        return {"head": torch.nn.Identity()}


def test_a_head_needs_both_towers() -> None:
    model = tiny_model()
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    strategy = TorchStrategy(model, optimizer, World(), clip_norm=None)
    with pytest.raises(ConfigError, match="text_chunk_size.*_WithHead"):
        TrainStep(strategy, [(InfoNCELoss(), 1.0)], [_WithHead()], chunk_size=4, text_chunk_size=8)


class _Recorder(AddOn):
    seen: Features

    def after_step(self, result: StepView) -> None:
        self.seen = result.features


def test_add_ons_see_what_the_loss_saw() -> None:
    model, recorder = tiny_model(bias=-2.0), _Recorder()
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    strategy = TorchStrategy(model, optimizer, World(), clip_norm=None)
    step = TrainStep(strategy, [(InfoNCELoss(), 1.0)], [recorder], chunk_size=4)
    step(tiny_batch(8, negatives=2), 0, 1e-3)
    seen = recorder.seen
    assert seen.text_keys.keys() == {"text", "negative"} and seen.masks.keys() == {"negative"}
    assert seen.logit_bias is not None and seen.ids is not None
    tensors = [*seen.embeddings.values(), seen.logit_scale, seen.logit_bias]
    assert not any(t.requires_grad for t in tensors)


def test_the_replay_repeats_pass_one(ranks) -> None:  # type: ignore[no-untyped-def]
    found = ranks(1).run(lean_cells.replayed_outputs, False)[0]
    assert found["pairs"] == 3 and found["difference"] == 0.0 and found["spread"] > 0


@pytest.mark.slow
def test_the_replay_repeats_pass_one_compiled(ranks) -> None:  # type: ignore[no-untyped-def]
    found = ranks(1).run(lean_cells.replayed_outputs, True)[0]
    assert found["pairs"] == 3 and found["spread"] > 0 and found["graphs"] > 0
    assert found["difference"] <= 1e-6
