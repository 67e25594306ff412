"""Where each modality's features lie on average, and removing that from them.

CLIP's text and image features lie in two narrow cones, so a text query scores any text above the
right image. GR-CLIP (Li et al. 2025, https://arxiv.org/abs/2507.19054) subtracts from every feature
the mean of its modality, measured on other data, and from a fused one the means fused alike. Liang
et al. 2022 (https://arxiv.org/abs/2203.02053) move both modalities along the line between the two
means.

Shapes: n items, D embed dim.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.refinement import Refinement

FORMAT = "clipkit-calibration-1"
_MEANS = ("query_text", "text", "image")
_LONGEST = 1.001  # a mean of unit rows that may have been stored as float16


@dataclass(frozen=True)
class ModalityMeans:
    """Where the features of each modality lie on average.

    Queries and documents have means of their own: a question is not worded like a document.

    Attributes:
        text: (D,) fp64.
        image: (D,) fp64.
    """

    text: Tensor
    image: Tensor


def fit_means(texts: Tensor, images: Tensor) -> ModalityMeans:
    """Means of (n, D) text and (m, D) image features; 0 for a modality without any.

    Use features of data that is not scored: means of the scored items leak the test set.
    """
    return ModalityMeans(_mean(texts), _mean(images))


def _mean(rows: Tensor) -> Tensor:
    return rows.double().sum(dim=0) / max(len(rows), 1)


def fuse(
    texts: Tensor, images: Tensor, text_weight: Tensor, means: ModalityMeans | None = None
) -> Tensor:
    """One feature an item: w * text + (1 - w) * image, minus the means fused alike, unit length.

    Args:
        texts: (n, D) unit rows; anything finite where the weight is 0.
        images: (n, D) unit rows; anything finite where the weight is 1.
        text_weight: (n,) 1 for an item of text alone, 0 for an image alone, between for both.
        means: What to subtract; None subtracts nothing.

    Returns:
        (n, D) fp32 unit rows; 0 where nothing remains.
    """
    weight = text_weight.double()[:, None]  # (n, 1)
    fused = weight * texts.double() + (1 - weight) * images.double()
    if means:
        _check_length(means.text, texts)
        fused = fused - (weight * means.text + (1 - weight) * means.image)
    return F.normalize(fused, dim=-1).float()


@dataclass(frozen=True, eq=False)
class Calibration:
    """The means of a model's modalities, and what they were measured on.

    Attributes:
        query_text: (D,) fp64, of texts worded as queries are.
        text: (D,) fp64, of texts as they stand beside images.
        image: (D,) fp64.
        weights_hash: Of the model.
        refinements: Names of what was done to the features before, in order.
        counts: Features behind each mean, by its name.
        data: What they were measured on, for people.
        files: sha256 of each file behind them: a set among these is not to be scored.
    """

    query_text: Tensor
    text: Tensor
    image: Tensor
    weights_hash: str
    refinements: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    data: str = ""
    files: frozenset[str] = frozenset()

    @property
    def documents(self) -> ModalityMeans:
        """Means of texts and images that are searched."""
        return ModalityMeans(self.text, self.image)

    @property
    def queries(self) -> ModalityMeans:
        """Means of texts and images that are asked with."""
        return ModalityMeans(self.query_text, self.image)

    @cached_property
    def identity(self) -> str:
        """Hash of the means: 12 hex digits."""
        means = b"".join(getattr(self, name).numpy().tobytes() for name in _MEANS)
        return hashlib.sha256(means).hexdigest()[:12]

    def check(self, weights_hash: str, refinements: Sequence[str], name: str = "") -> None:
        """See that features of this model, refined so, are what the means were measured on.

        Args:
            weights_hash: Of the model; "" for one that has no fixed weights yet.
            refinements: Names of what is done to the features before centring.
            name: Of the calibration, for messages.

        Raises:
            CheckpointError: Other weights, or features refined otherwise; names both.
        """
        name = name or f"calibration {self.identity}"
        if weights_hash != self.weights_hash:
            raise CheckpointError(
                f"{name}: was fitted on weights {self.weights_hash[:12]}, the model has "
                f"{weights_hash[:12] or 'weights that still change'}; run clipkit calibrate for it"
            )
        if tuple(refinements) != self.refinements:
            raise CheckpointError(
                f"{name}: was fitted on features with {_listed(self.refinements)}, these have "
                f"{_listed(refinements)}; run clipkit calibrate with the same --memory options"
            )

    def save(self, path: str | Path) -> None:
        """Write safetensors in one move; the facts stand in its metadata.

        Raises:
            ConfigError: It cannot be written.
        """
        path = Path(path)
        facts = {
            "weights_hash": self.weights_hash,
            "refinements": self.refinements,
            "counts": self.counts,
            "data": self.data,
            "files": sorted(self.files),
        }
        means = {name: getattr(self, name).clone() for name in _MEANS}  # one may be another
        content = safetensors.torch.save(means, {"format": FORMAT, "facts": json.dumps(facts)})
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _listed(names: Sequence[str]) -> str:
    return " + ".join(names) or "no refinement"


def load_calibration(path: str | Path, weights_hash: str | None = None) -> Calibration:
    """Read a calibration.

    Args:
        path: File.
        weights_hash: Of the model it is for; None: not asked.

    Raises:
        CheckpointError: Missing, damaged, or fitted on other weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            means = {name: file.get_tensor(name) for name in _MEANS}
            metadata = file.metadata() or {}
        found = _read(means, metadata)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such calibration; write one with clipkit calibrate CHECKPOINT DATA"
        ) from None
    except (
        OSError,
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = str(error)[:200]
        raise CheckpointError(f"{path}: is no calibration that can be read: {reason}") from None
    if weights_hash is not None:
        found.check(weights_hash, found.refinements, str(path))
    return found


def _read(means: dict[str, Tensor], metadata: dict[str, str]) -> Calibration:
    """Raises ValueError, TypeError or KeyError on what no `save` has written."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format', 'unknown')[:40]}, not {FORMAT}")
    size = means["image"].shape
    for name, mean in means.items():
        if mean.dtype != torch.float64 or mean.shape != size or len(size) != 1:
            raise ValueError(f"{name} is {mean.dtype} {tuple(mean.shape)}")
        if not bool(mean.isfinite().all()):
            raise ValueError(f"{name} is not finite")
        if float(mean.norm()) > _LONGEST:
            raise ValueError(f"{name} is longer than a unit feature")
    facts: dict[str, Any] = json.loads(metadata["facts"])
    for name, kind in (("refinements", list), ("counts", dict), ("files", list)):
        if not isinstance(facts[name], kind):
            raise ValueError(f"'{name}' is no {kind.__name__}")
    return Calibration(
        **means,
        weights_hash=str(facts["weights_hash"]),
        refinements=tuple(map(str, facts["refinements"])),
        counts={str(k): int(v) for k, v in facts["counts"].items()},
        data=str(facts["data"]),
        files=frozenset(map(str, facts["files"])),
    )


@dataclass(frozen=True)
class Centring:
    """GR-CLIP: subtract from every feature the mean of its modality, and make it unit again.

    Attributes:
        calibration: The means.
        asking: Whether texts are queries, which have a mean of their own.
    """

    calibration: Calibration
    asking: bool = False

    @property
    def name(self) -> str:
        """Identity, the same for both kinds of texts: they are compared with one another."""
        return f"centring-{self.calibration.identity}"

    def for_queries(self) -> Centring:
        """The same for texts that are asked with."""
        return replace(self, asking=True)

    def image(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) fp32 unit; 0 for a feature that is the mean."""
        return _moved(features, -self.calibration.image)

    def text(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) fp32 unit; 0 for a feature that is the mean."""
        means = self.calibration.queries if self.asking else self.calibration.documents
        return _moved(features, -means.text)


@dataclass(frozen=True)
class Shift:
    """Liang et al. 2022: both modalities moved along the gap, the line between their means.

    The best weight differs from one data set to the next and may be below 0; never choose it by the
    scores that are reported.

    Attributes:
        calibration: The means.
        weight: 0 leaves every bit; 0.5 on both sides closes the gap of the means, before features
            are made unit again.
    """

    calibration: Calibration
    weight: float

    @property
    def name(self) -> str:
        """Identity."""
        return f"shift{self.weight}-{self.calibration.identity}"

    @property
    def _gap(self) -> Tensor:
        return self.calibration.image - self.calibration.text

    def image(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) unit, moved towards the texts."""
        return _moved(features, -self.weight * self._gap) if self.weight else features

    def text(self, features: Tensor) -> Tensor:
        """(n, D) unit -> (n, D) unit, moved towards the images."""
        return _moved(features, self.weight * self._gap) if self.weight else features


def for_queries(refinements: Sequence[Refinement]) -> list[Refinement]:
    """The same for texts that are asked with: centring subtracts their own mean."""
    return [r.for_queries() if isinstance(r, Centring) else r for r in refinements]


def _check_length(mean: Tensor, features: Tensor) -> None:
    if len(mean) != features.shape[1]:
        raise CheckpointError(
            f"the calibration has means of length {len(mean)}, features of {features.shape[1]}; "
            f"run clipkit calibrate for this model"
        )


def _moved(features: Tensor, by: Tensor) -> Tensor:
    _check_length(by, features)
    return F.normalize(features.double() + by.to(features.device), dim=-1).float()
