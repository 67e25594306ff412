"""The one embedding pass: whole batches, cut by sample index, dealt to ranks in turn.

Every rank runs the same number of forward passes (ZeRO-3 gathers parameters in each), and every
batch has the same members on any number of ranks, so features do not depend on the world size.

Shapes: n samples, D embed dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipkit.contracts import Batch
from clipkit.data.wds_folder import WdsFolder
from clipkit.dist.collectives import gather_rows
from clipkit.dist.group import World
from clipkit.errors import ClipkitError
from clipkit.towers.dual import FeatureEncoder


class NonFiniteFeatures(ClipkitError):
    """The model produced NaN or infinity; every number computed from it would be meaningless."""

    exit_status = 5


def _embed(
    n: int, batch_size: int, world: World, encode: Callable[[int, int], Tensor], tower: str
) -> Tensor:
    """Features of samples 0 .. n - 1 on every rank, (n, D) fp32 on the CPU.

    Raises:
        NonFiniteFeatures: Names the tower.
    """
    batches = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    rounds = -(-len(batches) // world.world_size)
    out: list[Tensor] = []
    for r in range(rounds):
        start, stop = batches[min(r * world.world_size + world.rank, len(batches) - 1)]
        features = encode(start, stop).float()  # (batch, D)
        padded = features.new_zeros(batch_size, features.shape[1])
        padded[: len(features)] = features
        gathered = gather_rows(padded, world.world_size).cpu()  # (world * batch, D)
        for k in range(world.world_size):
            if r * world.world_size + k < len(batches):
                low, high = batches[r * world.world_size + k]
                out.append(gathered[k * batch_size : k * batch_size + high - low])
    result = torch.cat(out)
    if not bool(torch.isfinite(result).all()):
        bad = int((~torch.isfinite(result).all(dim=1)).sum())
        raise NonFiniteFeatures(
            f"the {tower} tower gives NaN or infinity for {bad} of {n} inputs; "
            f"its weights are broken"
        )
    return result


@torch.no_grad()
def embed_images(
    model: FeatureEncoder, data: WdsFolder, world: World, batch_size: int = 64
) -> Tensor:
    """(n, D) unit features of the set's images, in its order, on the CPU, equal on all ranks."""

    def encode(start: int, stop: int) -> Tensor:
        pixels = torch.stack([model.preprocess(image) for image in data.images(start, stop)])
        batch = Batch({"image": pixels}, {}, torch.arange(start, stop))
        return model.forward(batch.to(model.device)).embeddings["image"][:, 0]

    return _embed(len(data), batch_size, world, encode, "image")


@torch.no_grad()
def embed_texts(
    model: FeatureEncoder, texts: list[str], world: World, batch_size: int = 256
) -> Tensor:
    """(n, D) unit features of texts, on the CPU, the same on every rank."""

    def encode(start: int, stop: int) -> Tensor:
        tokens = model.tokenizer(texts[start:stop])[:, None]  # (batch, 1, L)
        batch = Batch({}, {"text": tokens}, torch.arange(start, stop))
        return model.forward(batch.to(model.device)).embeddings["text"][:, 0]

    return _embed(len(texts), batch_size, world, encode, "text")
