"""One training step: chunks encoded, loss once on the global batch, chunks replayed, optimizer.

Gradient caching (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983) with the last
chunk's graph kept, so K chunks cost 2K - 1 forwards (2K where towers are cut apart). Every chunk
runs under a seed made of (seed, step, global chunk index): the replay draws the same dropout masks,
and so does a resumed run.

Shapes: b rows of this rank, B global batch, K chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from clipkit import faults
from clipkit.addons.base import AddOn
from clipkit.contracts import Batch, Features, Named, Outputs, Pair, Tiling, text_keys
from clipkit.data.order import batch_checksum
from clipkit.engine.chunks import Chunk, chunk_seed, leaves_of, split, surrogate
from clipkit.engine.pace import OwnTime
from clipkit.engine.strategy import Strategy
from clipkit.errors import ConfigError


class Asks(NamedTuple):
    """What a rank wants all to know with this step's all-reduce.

    Attributes:
        stop: Whether it was asked to stop; then all do after this step.
        save: Whether it wants a checkpoint after this step.
        bad_samples: A count; all learn the sum.
    """

    stop: bool = False
    save: bool = False
    bad_samples: int = 0


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
        save: Whether some rank wants a checkpoint.
        bad_samples: Sum over ranks of what each passed.
        own_s: Seconds this rank computed before it met the others.
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
    save: bool = False
    bad_samples: int = 0
    own_s: float = 0.0


@dataclass
class _Cached:
    """Outputs of pass 1: leaves over all chunks, and the last chunk with its graph, if kept."""

    leaves: Outputs
    kept: Outputs | None


class TrainStep:
    """Callable (batch, step, lr) -> StepResult, the same on every rank.

    Args:
        strategy: Runs the model.
        losses: (loss, weight), run once per pair.
        addons: In order.
        chunk_size: Samples encoded at once; None: the whole local batch. "auto" is replaced by a
            number before the first step.
        text_chunk_size: Samples whose texts are encoded at once; None: as chunk_size.
        seed: Of the chunks' randomness.
        max_log_logit_scale: Clamp of the parameter logit_scale after the update.
        tiling: How the losses walk through the pair matrix.
        judge: (loss, finite) -> "apply" or "skip", the same on every rank; None: skip what is not
            finite.
    """

    def __init__(
        self,
        strategy: Strategy,
        losses: list[tuple[nn.Module, float]],
        addons: list[AddOn],
        *,
        chunk_size: int | Literal["auto"] | None = None,
        text_chunk_size: int | None = None,
        seed: int = 0,
        max_log_logit_scale: float = 4.6051702,
        tiling: Tiling | None = None,
        judge: Callable[[float, bool], Literal["apply", "skip"]] | None = None,
    ) -> None:
        self.judge, self._own_time = judge, OwnTime(strategy.world.device)
        self.strategy, self.losses, self.addons = strategy, losses, addons
        self.chunk_size, self.text_chunk_size = chunk_size, text_chunk_size
        self.seed, self.max_log_logit_scale = seed, max_log_logit_scale
        self.world = strategy.world
        self.tiling = (tiling or Tiling())._replace(
            rank=self.world.rank, world_size=self.world.world_size, num_nodes=self.world.num_nodes
        )
        self.teachers = {
            name: teacher.to(self.world.device).eval()
            for addon in addons
            for name, teacher in addon.frozen_models().items()
        }
        if text_chunk_size is not None:
            self._refuse_if_towers_must_meet()
        self.pairs = [Pair()]
        for addon in addons:
            self.pairs = addon.pairs(self.pairs)

    def __call__(self, batch: Batch, step: int, lr: float, asks: Asks | None = None) -> StepResult:
        """Train on this rank's rows of global batch `step`.

        Args:
            batch: Of this rank.
            step: From 0.
            lr: Of this step.
            asks: What this rank wants all to know.
        """
        self._own_time.start()
        batch = self.prepared(batch)
        assert self.chunk_size != "auto", "the trainer replaces it before the first step"
        chunks = split(batch, self.chunk_size, self.text_chunk_size)
        cached = self._encode(chunks, step)
        features = self._features(cached.leaves, batch)
        self._own_time.stop()
        terms = self.loss_terms(features)
        total = torch.stack(list(terms.values())).sum()
        if (factor := faults.loss_factor(self.world.rank, step)) is not None:
            total = total * factor
        total.backward()
        result = self._agree(batch, step, features, terms, total, asks or Asks())
        detached = {n: t.detach() for n, t in features.embeddings.items()}
        features.release()  # frees the loss graph and the gathered batch before the replay
        del terms, total
        if result.applied:
            if faults.asked("nan_grad", self.world.rank, step) is not None:
                cached.leaves.embeddings["image"].grad.fill_(float("nan"))  # type: ignore[union-attr]
            self._replay(chunks, cached, step)
            result.applied, result.grad_norm = self.strategy.step(lr)
        if result.applied:
            self.strategy.clamp_("towers.logit_scale", self.max_log_logit_scale)
            bias = features.logit_bias
            result.features = replace(
                features,
                embeddings=detached,
                logit_scale=features.logit_scale.detach(),
                logit_bias=None if bias is None else bias.detach(),
                per_sample={},
                _gathered={},
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
            for name, value in addon.loss_terms(features).items():
                if name in terms:
                    raise ConfigError(
                        f"addons: {type(addon).__name__} gives a loss term '{name}', which is "
                        f"there already; rename it"
                    )
                terms[name] = value
        return terms

    def _refuse_if_towers_must_meet(self) -> None:
        """Heads and teachers want both towers' outputs of a sample in one chunk."""

        def brings(addon: AddOn, part: str) -> bool:
            return getattr(type(addon), part) is not getattr(AddOn, part)

        meeting = [
            type(a).__name__
            for a in self.addons
            if brings(a, "heads") or brings(a, "frozen_models")
        ]
        if meeting:
            raise ConfigError(
                f"train.text_chunk_size: {meeting[0]} needs views and texts of a sample together; "
                f"leave it unset"
            )

    def prepared(self, batch: Batch) -> Batch:
        """Batches wait on the host as uint8; add-ons that change them want them on the device."""
        changing = [a for a in self.addons if type(a).transform_batch is not AddOn.transform_batch]
        if changing:
            batch = batch.to(self.world.device)
        for addon in changing:
            batch = addon.transform_batch(batch)
        return batch

    def _forward(self, chunk: Batch, step: int, number: int, count: int, *, last: bool) -> Outputs:
        chunk = chunk.to(self.world.device)
        torch.manual_seed(chunk_seed(self.seed, step, self.world.rank * count + number))
        return self.strategy.forward(chunk, last=last)

    def _encode(self, chunks: list[Chunk], step: int) -> _Cached:
        """Pass 1: every chunk without gradient but the last, if that one may go first in pass 2."""
        outputs: list[Outputs] = []
        kept = len(chunks) == 1 or self._cut_alike(chunks)
        for k, chunk in enumerate(chunks):
            final = k == len(chunks) - 1
            with torch.set_grad_enabled(final and kept):
                out = self._forward(chunk.batch, step, k, len(chunks), last=len(chunks) == 1)
            chunk.batch = chunk.batch._replace(known=out.frozen)
            if self.teachers:
                out = self._with_teachers(out, chunk.batch)
            outputs.append(out)
        return _Cached(leaves_of(outputs), outputs[-1] if kept else None)

    @staticmethod
    def _cut_alike(chunks: list[Chunk]) -> bool:
        """Whether every chunk holds views and texts: any backward reaches all parameters."""
        return all(c.image_rows == c.text_rows for c in chunks)

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
            {n: text_keys(t).to(device) for n, t in batch.texts.items()},
            self.tiling,
        )

    def _agree(
        self,
        batch: Batch,
        step: int,
        features: Features,
        terms: Named,
        total: Tensor,
        asks: Asks,
    ) -> StepResult:
        """One all-reduce: average loss and terms, non-finite values on any rank, sums of asks."""
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
            *map(float, asks),
            float(batch_checksum(batch.ids.numpy(force=True), rows)),
        ]
        local = torch.tensor(
            [*numbers, total.item(), *(t.item() for t in terms.values())], dtype=torch.float64
        )
        flags, stops, saves, bad_samples, checksum, loss, *values = self.world.sum_(
            local.to(self.world.device)
        ).tolist()
        n = self.world.world_size
        finite = not flags
        return StepResult(
            step,
            finite if self.judge is None else self.judge(loss / n, finite) == "apply",
            loss / n,
            {k: v / n for k, v in zip(terms, values)},
            float("nan"),
            features.logit_scale.item(),
            int(checksum) % 2**31,
            features,
            self.strategy,
            bool(stops),
            bool(saves),
            int(bad_samples),
            self._own_time.seconds(),
        )

    def _replay(self, chunks: list[Chunk], cached: _Cached, step: int) -> None:
        """Pass 2: the kept graph first; then every other chunk again. The scalars' gradient enters
        once: with the kept chunk, else with the final one. `last`: the step's last backward."""
        count = len(chunks)
        nothing_kept = cached.kept is None
        again = count if nothing_kept else count - 1
        if cached.kept is not None:
            out, cached.kept = cached.kept, None
            self._backward(out, cached, chunks[-1], scalars=True, last=count == 1)
            del out
        for k in range(again):
            last = k == again - 1
            out = self._forward(chunks[k].batch, step, k, count, last=last)
            self._backward(out, cached, chunks[k], scalars=last and nothing_kept, last=last)

    def _backward(
        self, out: Outputs, cached: _Cached, chunk: Chunk, *, scalars: bool, last: bool
    ) -> None:
        self.strategy.backward(surrogate(out, cached.leaves, chunk, scalars=scalars), last=last)
