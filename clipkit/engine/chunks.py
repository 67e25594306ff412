"""A local batch in chunks: what is encoded at once, its randomness, the surrogate of its replay.

Shapes: b rows of this rank, K chunks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.contracts import Batch, Outputs


@dataclass
class Chunk:
    """Samples encoded at once; where towers are cached apart, views and texts may differ in rows.

    Attributes:
        batch: The samples, on the host until they are encoded.
        image_rows: Rows of the local batch whose views are here.
        text_rows: Rows whose texts are here.
    """

    batch: Batch
    image_rows: slice
    text_rows: slice

    def rows(self, name: str) -> slice:
        """Rows of the local batch an output of this chunk belongs to."""
        return self.text_rows if name in self.batch.texts else self.image_rows


def split(batch: Batch, size: int | None, text_size: int | None = None) -> list[Chunk]:
    """Chunks of at most `size` samples, the last maybe smaller.

    With a `text_size` of its own each side is cut separately. The last chunk then holds the end of
    both, so that every parameter takes part in the step's last backward.
    """
    b = batch.num_samples
    if text_size is None or text_size == size:
        return [Chunk(batch.rows(*r), slice(*r), slice(*r)) for r in _ranges(b, size)]
    images, texts, none = _ranges(b, size), _ranges(b, text_size), slice(0, 0)
    chunks = [Chunk(_views(batch, *r), slice(*r), none) for r in images[:-1]]
    chunks += [Chunk(_texts(batch, *r), none, slice(*r)) for r in texts[:-1]]
    image_part, text_part = _views(batch, *images[-1]), _texts(batch, *texts[-1])
    last = image_part._replace(texts=text_part.texts, masks=text_part.masks)
    return [*chunks, Chunk(last, slice(*images[-1]), slice(*texts[-1]))]


def num_chunks(rows: int, size: int | None, text_size: int | None = None) -> tuple[int, bool]:
    """(how many chunks `split` makes, whether the last one's graph is kept)."""
    images = len(_ranges(rows, size))
    if text_size is None or text_size == size:
        return images, True
    chunks = images + len(_ranges(rows, text_size)) - 1
    return chunks, chunks == 1


def _ranges(total: int, size: int | None) -> list[tuple[int, int]]:
    size = size or total
    return [(i, min(i + size, total)) for i in range(0, total, size)]


def _views(batch: Batch, start: int, stop: int) -> Batch:
    return batch._replace(texts={}, masks={}, extras={}).rows(start, stop)


def _texts(batch: Batch, start: int, stop: int) -> Batch:
    return batch._replace(images={}, extras={}).rows(start, stop)


def chunk_seed(seed: int, step: int, chunk: int) -> int:
    """Seed of a chunk's randomness; `chunk` counts over all ranks, so every chunk has its own."""
    key = f"{seed}/{step}/{chunk}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def leaves_of(outputs: list[Outputs]) -> Outputs:
    """All chunks' outputs, (b, ...) each, as leaves of the loss graph."""
    first, bias = outputs[0], outputs[0].logit_bias
    return Outputs(
        _leaves([o.embeddings for o in outputs]),
        first.logit_scale.detach().clone().requires_grad_(),
        None if bias is None else bias.detach().clone().requires_grad_(),
        _leaves([o.per_sample for o in outputs]),
    )


def _leaves(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(n for part in parts for n in part):
        rows = torch.cat([part[name].detach() for part in parts if name in part])
        found[name] = rows.requires_grad_(rows.is_floating_point())
    return found


def surrogate(out: Outputs, leaves: Outputs, chunk: Chunk, *, scalars: bool) -> Tensor:
    """sum of output * cached gradient: its gradient is the loss's, for this chunk."""
    total = torch.zeros_like(out.logit_scale)
    for value, leaf in ((out.logit_scale, leaves.logit_scale), (out.logit_bias, leaves.logit_bias)):
        if value is not None and leaf is not None:
            # times zero where not wanted: DDP waits for a gradient of every parameter
            total = total + value * (leaf.grad if scalars and leaf.grad is not None else 0.0)
    for own, cached in ((out.embeddings, leaves.embeddings), (out.per_sample, leaves.per_sample)):
        for name, value in own.items():
            grad = cached[name].grad
            if grad is not None and value.requires_grad:
                total = total + (value * grad[chunk.rows(name)]).sum()
    return total
