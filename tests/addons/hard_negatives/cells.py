"""What a rank runs: a step of a tiny float64 model with hard negatives, or batches of a loader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from clipkit.addons.hard_negatives import HardNegatives
from clipkit.config.load import load_config
from clipkit.contracts import Batch, Features
from clipkit.dist.collectives import all_gather
from clipkit.dist.group import World
from clipkit.engine.build_data import build_loader
from clipkit.engine.step import TrainStep
from tests.engine.cells import build_strategy, local_rows, record_gradients
from tests.fixtures_shards import number_tokenizer
from tests.tiny_model import tiny_batch, tiny_model

SIZE, NUM_NEGATIVES = 16, 3
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"count": NUM_NEGATIVES, "weight": 0.7},
    "both": {"count": NUM_NEGATIVES, "image_negatives": True},
    "triplet": {"count": 1, "source": "json", "triplet": True},
}


def hard_batch(form: str, seed: int = 5) -> Batch:
    """A global batch with every irregularity: masked negatives, negatives that are captions of the
    other half, equal captions and equal ids."""
    batch = tiny_batch(SIZE, seed=seed, negatives=FORMS[form]["count"])
    negative, text = batch.texts["negative"], batch.texts["text"]
    negative[0, 0], negative[SIZE - 2, 0] = text[SIZE - 1, 0], text[3, 0]
    text[4] = text[SIZE - 4]
    batch.ids[6] = batch.ids[SIZE - 6]
    g = torch.Generator().manual_seed(seed)
    view = torch.randint(0, 256, (SIZE, 3, 16, 16), generator=g, dtype=torch.uint8)
    images = {**batch.images, **({} if form == "texts" else {"negative_image": view})}
    return batch._replace(images=images)


def step_with(world: World, losses: list[tuple[str, Any]], form: str, chunks: int) -> list[Any]:
    """(loss, gradients) of one float64 step with each (kind, module) of `losses`."""
    answers = []
    for kind, loss in losses:
        bias = -2.0 if kind == "siglip" else None
        strategy = build_strategy(tiny_model(bias=bias, dtype=torch.float64), world, "torch")
        gradients = record_gradients(strategy)
        addon = HardNegatives(**FORMS[form])
        step = TrainStep(
            strategy, [(loss, 1.0)], [addon], chunk_size=SIZE // world.world_size // chunks
        )
        result = step(local_rows(world, hard_batch(form)), 0, 1e-3)
        answers.append((result.loss, gradients))
    return answers


def masked_on(world: World, both_ways: bool) -> dict[str, Any]:
    """This rank's masks after the add-on has seen the batch."""
    form = "triplet" if both_ways else "texts"
    batch = local_rows(world, hard_batch(form))
    return dict(HardNegatives(**FORMS[form]).transform_batch(batch).masks)


def mined_batches(
    world: World, path: str, overrides: list[str], first: int, last: int
) -> list[tuple[list[int], Any, Any]]:
    """(ids of the global batch, own negative captions, their masks) of steps first .. last - 1."""
    config, addon = load_config(path, overrides), HardNegatives(source="json")
    towers = SimpleNamespace(image_size=(8, 8), tokenizer=number_tokenizer)
    loader = build_loader(config, towers, [addon], world)  # type: ignore[arg-type]
    loader.load_state_dict({**loader.state_dict(), "step": first})
    found = []
    for _, batch in zip(range(first, last), loader):
        batch = addon.transform_batch(batch)
        ids = all_gather(batch.ids, world.world_size).tolist()
        found.append((ids, batch.texts["negative"], batch.masks["negative"]))
    return found


def valid_share(world: World) -> float:
    """What the log is told of a batch whose masks differ between the ranks."""
    batch = local_rows(world, tiny_batch(SIZE, negatives=NUM_NEGATIVES))
    ones = {name: torch.ones(len(t), 1, 2) for name, t in batch.texts.items()}
    features = Features(
        ones, torch.ones(()), masks=batch.masks, rank=world.rank, world_size=world.world_size
    )
    result: Any = SimpleNamespace(step=0, features=features)
    return HardNegatives(count=NUM_NEGATIVES).metrics(result)["negatives"]
