"""The hooks of an add-on; all optional."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from clipkit.contracts import Batch, Features, Pair
from clipkit.data.samples import Sample
from clipkit.retrieval.refinement import Refinement

if TYPE_CHECKING:
    from clipkit.data.sources import Source
    from clipkit.towers.build import Towers


class Masters(Protocol):
    """What an add-on may see of the strategy after a step."""

    def master_shards(self) -> Iterator[tuple[str, slice, Tensor]]:
        """(name, element range, fp32 view) of the parameters this rank owns."""
        ...


class StepView(Protocol):
    """What `after_step` is given. `features` are detached rows of this rank."""

    step: int
    features: Features

    @property
    def strategy(self) -> Masters:
        """Who owns the weights."""
        ...


class AddOn:
    """Base of add-ons: every hook does nothing.

    Attributes:
        freeze_towers: Whether only heads are trained; no parameter of the towers then is,
            temperature and bias included.
    """

    freeze_towers: bool = False

    def prepare(self, towers: Towers) -> None:
        """Once, when the towers have their first weights and before heads are asked for."""

    def check_data(self, sources: Sequence[Source]) -> None:
        """Once, before training; no sources in streaming mode, whose samples have no numbers."""

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """In the loader, on pixels and text; `rng` is a function of seed, step and row."""
        return sample

    def transform_batch(self, batch: Batch) -> Batch:
        """Once per step, on the device, before the towers."""
        return batch

    def heads(self) -> dict[str, nn.Module]:
        """Trained modules (Outputs, Batch) -> Outputs, applied to each chunk in order."""
        return {}

    def frozen_models(self) -> dict[str, nn.Module]:
        """Teachers Batch -> {name: (b, M, D)}.

        They run in pass 1 only, and are never optimised, saved or exported.
        """
        return {}

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        """Which embeddings meet in the losses."""
        return pairs

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        """Further scalars, weighted; their average over ranks is their global value."""
        return {}

    def start(self, strategy: Masters) -> None:
        """Once, when the strategy stands and before a checkpoint is loaded."""

    def after_step(self, result: StepView) -> None:
        """After an applied optimizer step; not called for a skipped one."""

    def metrics(self, result: StepView) -> dict[str, float]:
        """Numbers for the log, of applied steps that are logged; equal on all ranks."""
        return {}

    def remarks(self) -> list[str]:
        """Lines for the user, asked for after `metrics`; each is given once."""
        return []

    def refinement(self) -> Refinement | None:
        """What evaluation does to features of the towers, with the weights as they are now."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """JSON scalars, and tensors equal on all ranks or listed in `sharded_state`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def sharded_state(self) -> Iterator[tuple[str, int, Tensor]]:
        """(parameter name, first element, 1-D live view) of tensors laid out like parameters."""
        return iter(())
