"""What a rank runs in tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import torch

from clipkit.data.eval_sets import find_sets
from clipkit.data.wds_folder import open_folder
from clipkit.dist.group import World
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import FeatureCache
from clipkit.eval.suite import ModelFacts, run_jobs
from clipkit.eval.tasks import plan
from tests.fixtures_encoder import color_encoder
from tests.fixtures_eval_sets import random_encoder


def mixed(color: torch.Tensor) -> torch.Tensor:
    """Features that depend on every number of the input."""
    return torch.nn.functional.normalize(
        torch.sin(color * 0.37 + color.sum(1, keepdim=True)), dim=1
    )


def features(
    world: World, root: str, batch_size: int, cache: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text features of a set on this rank."""
    encoder = color_encoder(mixed, mixed)
    embedder = Embedder(encoder, world, cache=FeatureCache(cache), batch_size=batch_size)
    return embedder.images(open_folder(root)), embedder.texts(["red", "blue", "green"] * 9)


def suite(world: World, data: str, out: str) -> int:
    """Run the default tasks; returns how many results this rank was given."""
    jobs, _ = plan(find_sets(data))
    embedder = Embedder(color_encoder(), world)
    return len(list(run_jobs(jobs, embedder, ModelFacts("m", "/m", "m", 3), Path(out))))


def numbers(world: World, root: str, seed: int, tasks: list[str]) -> dict[str, tuple]:
    """Metrics, intervals and records of tasks on this rank."""
    jobs, _ = plan(find_sets(root), tasks)
    embedder = Embedder(random_encoder(seed), world)
    found = {job.kind: job.evaluator.run(embedder) for job in jobs}
    return {kind: (r.metrics, r.intervals, r.records) for kind, r in found.items()}
