"""One training step: chunks encoded, loss once on the global batch, chunks replayed, optimizer.

Gradient caching (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983) with the last
chunk's graph kept, so K chunks cost 2K - 1 forwards. Every chunk runs under a seed made of (seed,
step, global chunk index): the replay draws the same dropout masks, and so does a resumed run.

Shapes: b rows of this rank, B global batch, K chunks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipkit.addons.base import AddOn
from clipkit.contracts import Batch, Features, Named, Outputs, Pair
from clipkit.data.order import batch_checksum
from clipkit.engine.strategy import Strategy


@dataclass
class StepResult:
    """What one step did.

    Attributes:
        step: Number of the step, from 0.
        applied: Whether the optimizer moved; False for a skipped batch.
        loss: Of the global batch.
        terms: Name -> value over the global batch.
        grad_norm: Before clipping.
        logit_scale: That the loss saw.
        ids_checksum: Of the global batch's sample ids, in order.
        features: Detached rows of this rank.
        strategy: For add-ons that follow the weights.
        stop: Whether some rank was asked to stop.
    """

    step: int
    applied: bool
    loss: float
    terms: dict[str, float]
    grad_norm: float
    logit_scale: float
    ids_checksum: int
    features: Features
    strategy: Strategy
    stop: bool = False


@dataclass
class _Cached:
    """Outputs of pass 1: leaves over all chunks, and the last chunk with its graph."""

    leaves: Outputs
    last: Outputs


class TrainStep:
    """Callable (batch, step, lr) -> StepResult, the same on every rank.

    Args:
        strategy: Runs the model.
        losses: (loss, weight), run once per pair.
        addons: In order.
        chunk_size: Samples encoded at once; None: the whole local batch.
        seed: Of the chunks' randomness.
        max_log_logit_scale: Clamp of the parameter logit_scale after the update.
    """

    def __init__(
        self,
        strategy: Strategy,
        losses: list[tuple[nn.Module, float]],
        addons: list[AddOn],
        *,
        chunk_size: int | None = None,
        seed: int = 0,
        max_log_logit_scale: float = 4.6051702,
    ) -> None:
        self.strategy, self.losses, self.addons = strategy, losses, addons
        self.chunk_size, self.seed, self.max_log_logit_scale = chunk_size, seed, max_log_logit_scale
        self.world = strategy.world
        self.teachers = {
            name: teacher.to(self.world.device).eval()
            for addon in addons
            for name, teacher in addon.frozen_models().items()
        }
        self.pairs = [Pair()]
        for addon in addons:
            self.pairs = addon.pairs(self.pairs)

    def __call__(self, batch: Batch, step: int, lr: float, *, stop: bool = False) -> StepResult:
        """Train on this rank's rows of global batch `step`; `stop`: all ranks stop after it."""
        batch = self._prepared(batch)
        chunks = self._chunks(batch)
        cached = self._encode(chunks, step)
        features = self._features(cached.leaves, batch)
        terms = self.loss_terms(features)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        result = self._agree(batch, step, features, terms, total, stop)
        detached = {n: t.detach() for n, t in features.embeddings.items()}
        features._gathered.clear()  # frees the loss graph and the gathered batch before the replay
        del terms, total
        if result.applied:
            self._replay(chunks, cached, step)
            result.applied, result.grad_norm = self.strategy.step(lr)
        if result.applied:
            self.strategy.clamp_("towers.logit_scale", self.max_log_logit_scale)
            result.features = Features(
                detached,
                cached.leaves.logit_scale.detach(),
                masks=batch.masks,
                ids=batch.ids,
                rank=self.world.rank,
                world_size=self.world.world_size,
            )
            for addon in self.addons:
                addon.after_step(result)
        return result

    def loss_terms(self, features: Features) -> Named:
        """Named scalars whose average over ranks is the loss of the global batch."""
        terms: Named = {}
        for pair in self.pairs:
            for loss, weight in self.losses:
                for name, value in loss(features, pair).items():
                    key = name if len(self.losses) == 1 else f"{type(loss).__name__}/{name}"
                    key = key if len(self.pairs) == 1 else f"{key}/{pair.image}-{pair.text}"
                    terms[key] = terms.get(key, 0.0) + weight * pair.weight * value
        for name, sums in features.per_sample.items():
            if not name.endswith("_count"):
                count = features.sum(features.per_sample[f"{name}_count"].sum())
                terms[name] = features.sum(sums.sum()) / count.clamp(min=1)
        for addon in self.addons:
            terms.update(addon.loss_terms(features))
        return terms

    def _prepared(self, batch: Batch) -> Batch:
        """Batches wait on the host as uint8; add-ons that change them want them on the device."""
        changing = [a for a in self.addons if type(a).transform_batch is not AddOn.transform_batch]
        if changing:
            batch = batch.to(self.world.device)
        for addon in changing:
            batch = addon.transform_batch(batch)
        return batch

    def _chunks(self, batch: Batch) -> list[Batch]:
        size = self.chunk_size or batch.num_samples
        return [
            batch.rows(i, min(i + size, batch.num_samples))
            for i in range(0, batch.num_samples, size)
        ]

    def _forward(self, chunk: Batch, step: int, number: int, count: int, *, last: bool) -> Outputs:
        chunk = chunk.to(self.world.device)
        torch.manual_seed(chunk_seed(self.seed, step, self.world.rank * count + number))
        return self.strategy.forward(chunk, last=last)

    def _encode(self, chunks: list[Batch], step: int) -> _Cached:
        """Pass 1: every chunk without gradient but the last; teachers beside it."""
        outputs: list[Outputs] = []
        for k, chunk in enumerate(chunks):
            final = k == len(chunks) - 1
            with torch.set_grad_enabled(final):
                out = self._forward(chunk, step, k, len(chunks), last=final and len(chunks) == 1)
            chunks[k] = chunk._replace(known=out.frozen)
            if self.teachers:
                out = self._with_teachers(out, chunk)
            outputs.append(out)
        first = outputs[0]
        leaves = Outputs(
            {n: _leaf([o.embeddings[n] for o in outputs]) for n in first.embeddings},
            first.logit_scale.detach().clone().requires_grad_(),
            None
            if first.logit_bias is None
            else first.logit_bias.detach().clone().requires_grad_(),
            {n: _leaf([o.per_sample[n] for o in outputs]) for n in first.per_sample},
        )
        return _Cached(leaves, outputs[-1])

    @torch.no_grad()
    def _with_teachers(self, out: Outputs, chunk: Batch) -> Outputs:
        embeddings = dict(out.embeddings)
        for teacher in self.teachers.values():
            embeddings.update(teacher(chunk.to(self.world.device)))
        return out._replace(embeddings=embeddings)

    def _features(self, leaves: Outputs, batch: Batch) -> Features:
        device = self.world.device
        return Features(
            dict(leaves.embeddings),
            leaves.logit_scale,
            leaves.logit_bias,
            dict(leaves.per_sample),
            {n: m.to(device) for n, m in batch.masks.items()},
            batch.ids.to(device),
            self.world.rank,
            self.world.world_size,
        )

    def _agree(
        self, batch: Batch, step: int, features: Features, terms: Named, total: Tensor, stop: bool
    ) -> StepResult:
        """One all-reduce: average loss and terms, and whether any rank saw a non-finite value."""
        leaves = [
            *features.embeddings.values(),
            *features.per_sample.values(),
            features.logit_scale,
        ]
        bad = ~torch.isfinite(total.detach())
        for leaf in leaves:
            if leaf.grad is not None:
                bad = bad | ~torch.isfinite(leaf.grad).all()
        rows = self.world.rank * batch.num_samples
        numbers = [
            float(bad),
            float(stop),
            float(batch_checksum(batch.ids.numpy(force=True), rows)),
        ]
        local = torch.tensor(
            [*numbers, total.item(), *(t.item() for t in terms.values())], dtype=torch.float64
        )
        flags, stops, checksum, loss, *values = self.world.sum_(
            local.to(self.world.device)
        ).tolist()
        n = self.world.world_size
        return StepResult(
            step,
            not flags,
            loss / n,
            {k: v / n for k, v in zip(terms, values)},
            float("nan"),
            features.logit_scale.item(),
            int(checksum) % 2**31,
            features,
            self.strategy,
            bool(stops),
        )

    def _replay(self, chunks: list[Batch], cached: _Cached, step: int) -> None:
        """Pass 2: the kept graph first, and the scalars with it; then every other chunk again."""
        count = len(chunks)
        bounds = [0]
        for chunk in chunks:
            bounds.append(bounds[-1] + chunk.num_samples)
        rows = slice(bounds[-2], bounds[-1])
        self.strategy.backward(
            _surrogate(cached.last, cached.leaves, rows, scalars=True), last=count == 1
        )
        cached.last = Outputs({}, cached.leaves.logit_scale)
        for k in range(count - 1):
            out = self._forward(chunks[k], step, k, count, last=k == count - 2)
            rows = slice(bounds[k], bounds[k + 1])
            self.strategy.backward(
                _surrogate(out, cached.leaves, rows, scalars=False), last=k == count - 2
            )


def chunk_seed(seed: int, step: int, chunk: int) -> int:
    """Seed of a chunk's randomness; `chunk` counts over all ranks, so every chunk has its own."""
    key = f"{seed}/{step}/{chunk}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def _leaf(parts: list[Tensor]) -> Tensor:
    return torch.cat([p.detach() for p in parts]).requires_grad_(parts[0].is_floating_point())


def _surrogate(out: Outputs, leaves: Outputs, rows: slice, *, scalars: bool) -> Tensor:
    """sum of output * cached gradient: its gradient is the loss's, for this chunk."""
    total = torch.zeros_like(out.logit_scale)
    for value, leaf in ((out.logit_scale, leaves.logit_scale), (out.logit_bias, leaves.logit_bias)):
        if (
            value is not None and leaf is not None
        ):  # times zero: DDP waits for a gradient of every parameter
            total = total + value * (leaf.grad if scalars and leaf.grad is not None else 0.0)
    for own, cached in ((out.embeddings, leaves.embeddings), (out.per_sample, leaves.per_sample)):
        for name, value in own.items():
            grad = cached[name].grad
            if grad is not None and value.requires_grad:
                total = total + (value * grad[rows]).sum()
    return total
