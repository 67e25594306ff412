"""The layers in the step: frozen towers encoded once, any loss, chunks, ranks, stage, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.addons.retrieval_fusion.saved import heads_of
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import checkpoint_folder
from clipkit.config.parts import list_kinds
from clipkit.dist.group import World
from tests.addons.retrieval_fusion import cells
from tests.engine.cells import build_strategy, train_step_for

ALONE = World()
TOWERS = {"towers.logit_scale", "towers.visual.proj", "towers.text_projection"}


def alone(chunks: int = 1, steps: int = 1, settings: Any = None, **how: Any) -> dict[str, Any]:
    return cells.train_heads(ALONE, "torch", chunks, steps, settings or {}, how)


def worst(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Largest error of a parameter's gradient, relative to it."""
    assert found["gradients"].keys() == wanted["gradients"].keys()
    total = torch.cat([g.flatten() for g in wanted["gradients"].values()]).norm()
    errors = [0.0]
    for name, gradient in wanted["gradients"].items():
        if gradient.norm() > 1e-6 * total:  # that of a key's bias is zero but for rounding
            error = (found["gradients"][name] - gradient).norm() / gradient.norm()
            errors.append(float(error))
    return max(errors)


@pytest.mark.parametrize("how", [{"trained": False}, {"masked": True}])
@pytest.mark.parametrize("loss", list_kinds("losses"))
def test_without_change_the_loss_is_three_times_the_frozen_models(
    loss: str, how: dict[str, Any]
) -> None:
    """New layers, or trained ones and every neighbour masked: k = 0."""
    addon = cells.bare_addon()
    how = {"trained": True, "masked": False, **how}
    bias = -2.0 if loss == "siglip" else None
    model = cells.fusion_model(addon, trained=how["trained"], bias=bias)
    batch = cells.fusion_batch(masked=how["masked"])
    strategy = build_strategy(model, ALONE, "torch")
    with torch.no_grad():
        refined, frozen = model(batch), model(batch._replace(extras={}))
    for side in ("image", "text"):
        assert torch.equal(refined.embeddings[f"{side}@fused"], frozen.embeddings[side])
    plain = train_step_for(strategy, None, [], loss)
    (wanted,) = plain.loss_terms(plain._features(frozen, batch)).values()
    found = train_step_for(strategy, None, [addon], loss)(batch, 0, 1e-3)
    assert list(found.terms.values()) == [float(wanted)] * 3
    assert found.loss == float(torch.stack([wanted] * 3).sum())


@pytest.mark.parametrize(
    ("loss", "freeze"), [*((loss, True) for loss in list_kinds("losses")), ("infonce", False)]
)
def test_chunks_change_nothing(loss: str, freeze: bool) -> None:
    settings = {"freeze_towers": freeze}
    whole, cut = (
        alone(chunks, settings=settings, loss=loss, dtype=torch.float64) for chunks in (1, 4)
    )
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-12)
    assert worst(cut, whole) < 1e-8


def test_only_the_layers_learn() -> None:
    found = alone(chunks=4, steps=2)
    assert all(name.startswith("heads.fusion.") for name in found["gradients"])
    assert found["moved"] == set(found["gradients"]) and len(found["moved"]) == 28
    assert not any(
        name.startswith(("towers.visual", "towers.transformer")) for name in found["training"]
    )
    assert "heads.fusion" in found["training"]
    assert found["forwards"] == {"image": 2 * cells.B, "text": 2 * cells.B}, "once per step"


def test_towers_may_learn_too() -> None:
    found = alone(chunks=4, settings={"freeze_towers": False})
    assert found["moved"] >= TOWERS and list(found["terms"])[-1] == "contrastive/image-text"
    assert found["forwards"] == {"image": 28, "text": 28}, "the last chunk keeps its graph"


def test_query_dropout_replays_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached gradients are those of one process that keeps all graphs of the same draws."""
    from clipkit.engine import step as engine_step

    settings = {"query_dropout": 0.5}
    drawn = alone(chunks=4, settings=settings, dtype=torch.float64)
    same = alone(chunks=4, settings=settings, dtype=torch.float64)
    assert worst(drawn, same) == 0 and worst(drawn, alone(chunks=4, dtype=torch.float64)) > 0.1
    addon = cells.bare_addon(**settings)
    model = cells.fusion_model(addon, dtype=torch.float64)
    batch = cells.fusion_batch()
    parts = []
    for i in range(4):
        torch.manual_seed(engine_step.chunk_seed(0, 0, i))
        parts.append(model(batch.rows(4 * i, 4 * i + 4)))
    step = train_step_for(build_strategy(model, ALONE, "torch"), None, [addon])
    embeddings = {n: torch.cat([p.embeddings[n] for p in parts]) for n in parts[0].embeddings}
    features = step._features(parts[0]._replace(embeddings=embeddings), batch)
    torch.stack(list(step.loss_terms(features).values())).sum().backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert worst(drawn, {"gradients": wanted}) < 1e-8
    counter = iter(range(10**6))
    monkeypatch.setattr(engine_step, "chunk_seed", lambda *_: next(counter))
    faulty = alone(chunks=4, settings=settings, dtype=torch.float64)
    assert worst(faulty, same) > 0.1, "a replay of other draws must be seen"


def test_bfloat16_points_the_same_way() -> None:
    exact, mixed = alone(), alone(autocast=torch.bfloat16)
    for name, gradient in exact["gradients"].items():
        if gradient.norm() > 1e-3 * max(g.norm() for g in exact["gradients"].values()):
            other = mixed["gradients"][name]
            cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), 0)
            assert float(cosine) > 0.98, name


STAGES = [pytest.param(kind, marks=pytest.mark.slow) for kind in (0, 1, 2, 3)]


@pytest.mark.parametrize("kind", ["torch", *STAGES])
def test_two_ranks_are_one_process(kind: str | int, ranks) -> None:  # type: ignore[no-untyped-def]
    wanted = alone(steps=1, negatives=2)
    for found in ranks(2).run(cells.train_heads, kind, 4, 1, {}, {"negatives": 2}):
        assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-6)
        assert found["terms"] == pytest.approx(wanted["terms"], rel=2e-6)
        assert worst(found, wanted) < 2e-5
        assert found["moved"] and not any(n.startswith("towers") for n in found["moved"])
        assert found["forwards"] == {"image": 8, "text": 8 + 16}  # and two negatives a caption


CROSSINGS = [("torch", 1, "torch", 1)] + [
    pytest.param(*crossing, marks=pytest.mark.slow)
    for crossing in [(2, 2, "torch", 1), (3, 2, 1, 2), ("torch", 1, 3, 2)]
]


@pytest.mark.parametrize(("kind", "world", "to_kind", "to_world"), CROSSINGS)
def test_a_checkpoint_resumes_elsewhere_and_gives_back_its_heads(
    kind, world, to_kind, to_world, ranks, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    def run(size: int, function: Any, *args: Any) -> dict[str, Any]:
        return function(ALONE, *args) if size == 1 else ranks(size).run(function, *args)[0]

    straight = run(world, cells.save_heads, kind, str(tmp_path))
    place = checkpoint_folder(tmp_path, 2)
    resumed = run(to_world, cells.resume_heads, to_kind, str(place))
    assert resumed["losses"] == pytest.approx(straight["losses"], rel=1e-5)
    for name, weight in straight["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)
    heads = heads_of(CheckpointReader(place))
    assert heads is not None and heads.settings == cells.bare_addon().settings
    assert not heads.training and heads.query_dropout == 0
    saved = dict(heads.named_parameters())
    assert all(torch.equal(saved[n], t) for n, t in straight["layers"].items())
