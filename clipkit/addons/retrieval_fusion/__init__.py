"""Retrieval-augmented fusion: features refined by what a memory holds near them.

Lives here: `head.py` (the trained layers), `neighbours.py` (what was found ahead for training),
`refine.py` (trained and untrained refinement at inference), `saved.py` (heads out of a checkpoint),
and the add-on itself. The memory is `retrieval/memory/`; `clipkit-data memory build` and
`clipkit-data neighbours` write what training reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from clipkit.addons.base import AddOn
from clipkit.addons.retrieval_fusion.head import FUSED, SIDES, FusionHeads, FusionSettings
from clipkit.addons.retrieval_fusion.neighbours import Neighbours
from clipkit.addons.retrieval_fusion.refine import Fusion, Prototype, Sides, neighbours_of
from clipkit.addons.retrieval_fusion.saved import HEAD, KIND, heads_of, rebuilt_heads
from clipkit.contracts import Pair
from clipkit.data.numbering import shards_of
from clipkit.data.samples import Sample
from clipkit.data.sources import Source
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.memory import Memory, open_memory
from clipkit.towers.build import Towers
from clipkit.towers.identity import weights_hash

__all__ = ["PART", "Fusion", "FusionHeads", "Prototype", "heads_of", "rebuilt_heads"]


class RetrievalFusion(AddOn):
    """Learns to refine image and text features by their neighbours in a memory.

    RECO (Iscen et al., ICLR 2024, https://arxiv.org/abs/2306.07196): v' and t' are image and text
    after one transformer layer over their k neighbours, L(v', t') + L(v', t) + L(v, t') the loss.
    The towers stay frozen, temperature included, and encode each sample once a step. Start from the
    checkpoint that built the memory (model.pretrained).

    Args:
        memory: Folder of `clipkit-data memory build`.
        neighbours: Folder of `clipkit-data neighbours` on the training shards.
        k: Neighbours of a query; at most those of the folder.
        num_heads: Attention heads; divides the embed dim.
        mlp_ratio: Width of the layer's MLP over the embed dim.
        search: uni: neighbours are nearest in the query's modality; cross: in the other.
        fusion: cross: features of the other modality are fused; uni: of the query's own.
        query_dropout: Share of queries that a random direction replaces in their refined embedding,
            so that the layers must read the memory.
        freeze_towers: false: the towers are trained too, by L(v, t) besides. The memory then is one
            of their first weights; build it anew for use.
        refine: Sides refined in evaluations during training.
        max_similarity: In these, neighbours more similar to the query are passed over.
    """

    def __init__(
        self,
        *,
        memory: str,
        neighbours: str,
        k: int = 10,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        search: Literal["uni", "cross"] = "uni",
        fusion: Literal["cross", "uni"] = "cross",
        query_dropout: float = 0.0,
        freeze_towers: bool = True,
        refine: Literal["both", "image", "text"] = "both",
        max_similarity: float | None = None,
    ) -> None:
        if not 0 <= query_dropout < 1:
            raise ConfigError(f"{KIND}.query_dropout: {query_dropout}; give 0 or more, below 1")
        self.freeze_towers, self.query_dropout = freeze_towers, query_dropout
        self.refine: Sides = refine
        self.max_similarity = max_similarity
        self._memory_path, self._neighbours_path = memory, neighbours
        self._shape: dict[str, Any] = {
            "k": k,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "search": search,
            "fusion": fusion,
        }
        self._settings: FusionSettings | None = None
        self._heads: FusionHeads | None = None
        self._memory: Memory | None = None
        self._neighbours: Neighbours | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For the loader's workers: paths instead of what is open, and no layers."""
        return {**self.__dict__, "_heads": None, "_memory": None}

    @property
    def settings(self) -> FusionSettings:
        """Known once the towers are."""
        assert self._settings is not None, "prepare() comes first"
        return self._settings

    @property
    def memory(self) -> Memory:
        """Opened at first use in each process."""
        if self._memory is None:
            self._memory = open_memory(self._memory_path)
        return self._memory

    @property
    def neighbours(self) -> Neighbours:
        """Opened at first use."""
        if self._neighbours is None:
            self._neighbours = Neighbours(self._neighbours_path)
        return self._neighbours

    def prepare(self, towers: Towers) -> None:
        """Check memory and neighbours against the towers, unless these are a sketch (meta).

        Raises:
            ClipkitError: They were made with other weights, or do not fit the settings.
        """
        dim = int(towers.config["model_cfg"]["embed_dim"])
        self._settings = FusionSettings(dim, **self._shape)
        if next(towers.clip.parameters()).is_meta:
            return
        try:
            self._memory = open_memory(self._memory_path, weights_hash(towers))
        except CheckpointError as error:
            raise CheckpointError(
                f"{KIND}.memory: {error}; train from the checkpoint it was built with "
                f"(model.pretrained)"
            ) from None
        self.neighbours.check(self.settings, self._memory)

    def check_data(self, sources: Sequence[Source]) -> None:
        """Neighbours are numbered by sample: they must be those of these shards.

        Raises:
            ConfigError: Streaming mode.
            DataError: Other shards.
        """
        if not sources:
            raise ConfigError(f"{KIND}: samples have numbers in data.mode=indexed only; set it")
        self.neighbours.check_shards(shards_of(sources))

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Features and mask of the sample's neighbours become extras."""
        for side in SIDES:
            rows = self.neighbours.rows(side, sample.id, self.settings.k)
            features, mask = neighbours_of(
                self.memory, self.settings.fused(side), torch.from_numpy(rows)[None]
            )
            sample.extras[f"{side}_neighbours"] = features[0].half()  # as the memory stores them
            sample.extras[f"{side}_neighbours_mask"] = mask[0]
        return sample

    def heads(self) -> dict[str, nn.Module]:
        """One layer per side."""
        self._heads = FusionHeads(self.settings, self.query_dropout)
        return {HEAD: self._heads}

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        """Each pair with either side refined, or both; unrefined too where towers are trained.

        Columns are unrefined, and stay where the side they stand for is unrefined.
        """
        weights: dict[Pair, float] = {}
        for pair in pairs:
            for image in _forms(pair.image):
                for text in _forms(pair.text):
                    plain = (image, text) == (pair.image, pair.text)
                    if plain and self.freeze_towers:
                        continue
                    columns = pair.columns if text == pair.text else ()
                    found = Pair(image, text, columns)
                    weights[found] = weights.get(found, 0.0) + pair.weight
        return [Pair(p.image, p.text, p.columns, weight) for p, weight in weights.items()]

    def refinement(self) -> Fusion | None:
        """The layers as they are now, on the CPU, over the whole memory."""
        assert self._heads is not None, "heads() comes first"
        copy = FusionHeads(self.settings)
        now = {n: p.detach().float().cpu().clone() for n, p in self._heads.named_parameters()}
        copy.load_state_dict(now)
        return Fusion(copy, self.memory, sides=self.refine, max_similarity=self.max_similarity)

    def state_dict(self) -> dict[str, Any]:
        """What makes heads of the checkpoint's weights."""
        return {"kind": KIND, **self.settings.as_json()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See that the layers mean the same.

        Raises:
            CheckpointError: They were trained with other settings.
        """
        for name, value in self.state_dict().items():
            if name != "k" and state.get(name) != value:
                raise CheckpointError(
                    f"{KIND}.{name} is {value}, the checkpoint has {state.get(name)}; restore it, "
                    f"or start a new run"
                )


def _forms(name: str) -> tuple[str, ...]:
    """Refined first."""
    return (name + FUSED, name) if name in SIDES else (name,)


PART = RetrievalFusion
