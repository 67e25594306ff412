"""Hard negatives, gap closing and retrieval fusion at once: the gradient of the one big batch."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch

from clipkit.addons.base import AddOn
from clipkit.addons.gap import GapClosing
from clipkit.addons.hard_negatives import HardNegatives
from clipkit.contracts import Batch
from clipkit.dist.group import World
from tests.addons.retrieval_fusion.cells import bare_addon, fusion_batch, fusion_model
from tests.engine.cells import (
    build_strategy,
    close,
    local_rows,
    record_gradients,
    seeded_fault,
    train_step_for,
)

BOUND = 1e-5
FAULTS = ["replay_seed", "rank_offset", "scatter_reduce", "column_reduce", "local_negatives"]


def addons_in(order: str) -> list[AddOn]:
    """n, g, f: hard negatives, gap, fusion with towers that learn."""
    made: dict[str, AddOn] = {
        "n": HardNegatives(count=2, source="json", weight=0.75),
        "g": GapClosing(uniformity=0.5, xuniformity=0.3, alignment=0.4),
        "f": bare_addon(freeze_towers=False, query_dropout=0.25),
    }
    return [made[letter] for letter in order]


def batch_of_all() -> Batch:
    """With two negatives each, some of them the caption of another rank's image."""
    batch = fusion_batch(seed=3, negatives=2)
    texts = dict(batch.texts)
    texts["negative"] = texts["negative"].clone()
    texts["negative"][1, 0] = texts["text"][14, 0]
    texts["negative"][12, 1] = texts["text"][2, 0]
    masks = {"negative": batch.masks["negative"].clone()}
    masks["negative"][1, 0] = masks["negative"][12, 1] = True
    return batch._replace(texts=texts, masks=masks)


def train_together(
    world: World, kind: str | int, chunk_size: int, order: str, fault: str
) -> dict[str, Any]:
    """Terms and full gradients of one step."""
    addons = addons_in(order)
    fusion = addons[order.index("f")]
    model = fusion_model(fusion, dropout=0.2)  # type: ignore[arg-type]
    strategy = build_strategy(model, world, kind)
    gradients = record_gradients(strategy)
    step = train_step_for(strategy, chunk_size, addons)
    alone = mock.patch("clipkit.addons.hard_negatives.true_captions.all_gather", lambda x, _: x)
    other = fault == "local_negatives"
    with alone if other else contextlib.nullcontext(), seeded_fault("" if other else fault):
        result = step(local_rows(world, batch_of_all()), 0, 1e-3)
    close(strategy)
    return {"terms": result.terms, "loss": result.loss, "gradients": gradients}


def big_batch(order: str = "ngf") -> dict[str, Any]:
    """One process, every graph kept, float64: chunks of 2 under the seeds of their numbers."""
    from clipkit.engine.chunks import chunk_seed

    addons = addons_in(order)
    model = fusion_model(addons[order.index("f")], dtype=torch.float64, dropout=0.2)  # type: ignore[arg-type]
    step = train_step_for(build_strategy(model, World(), "torch"), None, addons)
    batch = step.prepared(batch_of_all())
    parts = []
    for i in range(8):
        torch.manual_seed(chunk_seed(0, 0, i))
        parts.append(model(batch.rows(2 * i, 2 * i + 2)))
    embeddings = {n: torch.cat([p.embeddings[n] for p in parts]) for n in parts[0].embeddings}
    terms = step.loss_terms(step._features(parts[0]._replace(embeddings=embeddings), batch))
    torch.stack(list(terms.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"terms": {n: t.item() for n, t in terms.items()}, "gradients": gradients}


def worst(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[float, str]:
    """Largest error of a parameter's gradient, relative to it, and whose it is."""
    assert found["gradients"].keys() == wanted["gradients"].keys()
    total = torch.cat([g.flatten() for g in wanted["gradients"].values()]).norm()
    errors = {}
    for name, gradient in wanted["gradients"].items():
        floor = 1e-6 * total  # the bias of a key has none but by rounding
        errors[name] = float(
            (found["gradients"][name] - gradient).norm() / max(gradient.norm(), floor)
        )
    name = max(errors, key=lambda n: errors[n])
    return errors[name], name


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What every layout has to give."""
    return big_batch()


def test_what_meets(wanted: dict[str, Any]) -> None:
    """Negatives are columns of unrefined captions; gap terms see unrefined features."""
    step = train_step_for(
        build_strategy(fusion_model(bare_addon()), World(), "torch"), None, addons_in("ngf")
    )
    columns = {(p.image, p.text): p.columns for p in step.pairs if p.columns}
    assert columns == dict.fromkeys([("image@fused", "text"), ("image", "text")], ("negative",))
    weights: dict[tuple[str, str], float] = {}
    for pair in step.pairs:
        weights[pair.image, pair.text] = weights.get((pair.image, pair.text), 0) + pair.weight
    assert len(weights) == 4 and set(weights.values()) == {1.0}
    assert {"uniformity", "xuniformity", "alignment"} <= wanted["terms"].keys()
    trained = {"towers.logit_scale", "towers.visual.proj", "heads.fusion.text.mlp_in.weight"}
    assert trained <= wanted["gradients"].keys()


def test_gap_terms_do_not_see_the_layers() -> None:
    model = fusion_model(bare_addon(freeze_towers=False))
    gap = addons_in("g")[0]
    step = train_step_for(build_strategy(model, World(), "torch"), None, [gap])
    batch = fusion_batch()
    sum(gap.loss_terms(step._features(model(batch), batch)).values()).backward()  # type: ignore[union-attr]
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"towers"}


@pytest.mark.parametrize("order", ["fgn", "nfg"])
def test_the_order_of_the_list_changes_nothing(order: str, wanted: dict[str, Any]) -> None:
    found = big_batch(order)
    assert found["terms"] == pytest.approx(wanted["terms"], rel=1e-12)
    assert worst(found, wanted)[0] < 1e-9


LAYOUTS = [(2, "ngf")] + [
    pytest.param(*layout, marks=pytest.mark.slow)
    for layout in [("torch", "fgn"), (1, "gfn"), (3, "fng"), (0, "ngf")]
]


@pytest.mark.parametrize(("kind", "order"), LAYOUTS)
def test_gradients_equal_the_big_batch(kind, order, wanted, ranks) -> None:  # type: ignore[no-untyped-def]
    """4 chunks on each of 2 ranks; towers, layers and temperature; ZeRO-2 first of all."""
    for found in ranks(2).run(train_together, kind, 2, order, ""):
        assert found["terms"] == pytest.approx(wanted["terms"], rel=1e-5)
        assert worst(found, wanted)[0] <= BOUND, worst(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_seen(fault: str, wanted: dict[str, Any], ranks) -> None:  # type: ignore[no-untyped-def]
    results = ranks(2).run(train_together, 2, 2, "ngf", fault)
    assert max(worst(found, wanted)[0] for found in results) > 100 * BOUND
