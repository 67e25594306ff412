"""Closing the contrastive gap: terms that spread both modalities and pull pairs together.

Lives here: this file (the add-on), `terms.py` (uniformity and alignment of the global batch),
`curves.py` (the gap of each logged batch). All act on the features of the towers, "image" and
"text", whatever other add-ons make of them. May import layers 0 and 1.
"""

from __future__ import annotations

from torch import Tensor

from clipkit.addons.base import AddOn, StepView
from clipkit.addons.gap.curves import gap_curves
from clipkit.addons.gap.terms import Kernel, alignment, uniformity
from clipkit.contracts import Features
from clipkit.errors import ConfigError

_LARGEST_T = 100.0  # exp(-4t), the kernel of opposite features, is far above float64's smallest


class GapClosing(AddOn):
    """Uniformity, cross-modal uniformity and alignment, and the gap as curves of the log.

    Fahim et al. 2024, https://arxiv.org/abs/2405.18570: CUA is uniformity 1 and alignment 1, CUAXU
    has xuniformity 1 too. With all weights 0 the training stays as it is, bit for bit, and the log
    gains `train/gap/*`: centroid gap, relative gap, alignment and uniformity of each logged batch.
    Use it when: the temperature is low, 0.01; at 0.07 there is hardly a gap. It gains nothing for
    retrieval from one modality in the other; where only the gap matters, `clipkit calibrate` after
    training is nearly as good.

    Args:
        uniformity: Weight of log mean exp(-t |x - y|^2) over pairs of images, and of texts; the
            mean of both.
        xuniformity: Weight of the same over images and the texts of other samples. In training from
            scratch 1 widened the gap and 0.25 closed it (configs/studies/gap.yaml).
        alignment: Weight of the mean squared distance of an image from its text.
        t: Sharpness of the kernel.
        include_self: As in the paper: sums over pairs of a sample with itself too and divides by B,
            not by the number of pairs; a small batch then spreads less.
        mask_duplicates: Texts with equal id or caption do not repel each other, nor the other's
            image. Without it equal captions, which lie at one point, add a constant to the sum and
            so weaken the term, and push their images away from it.
    """

    def __init__(
        self,
        *,
        uniformity: float = 0.0,
        xuniformity: float = 0.0,
        alignment: float = 0.0,
        t: float = 2.0,
        include_self: bool = False,
        mask_duplicates: bool = False,
    ) -> None:
        self.weights = {
            "uniformity": uniformity,
            "xuniformity": xuniformity,
            "alignment": alignment,
        }
        for name, weight in self.weights.items():
            if weight < 0:
                raise ConfigError(f"addons.{name}={weight}: give a weight of 0 or more")
        if not 0 < t <= _LARGEST_T:
            raise ConfigError(f"addons.t={t}: give 0 < t <= {_LARGEST_T:g}; 2 is usual")
        self.kernel = Kernel(t, include_self, mask_duplicates)

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        """{"uniformity", "xuniformity", "alignment"}: (), weighted; those of weight 0 left out."""
        terms: dict[str, Tensor] = {}
        if weight := self.weights["uniformity"]:
            sides = [uniformity(features, name, name, self.kernel) for name in ("image", "text")]
            terms["uniformity"] = weight * (sides[0] + sides[1]) / 2
        if weight := self.weights["xuniformity"]:
            terms["xuniformity"] = weight * uniformity(features, "image", "text", self.kernel)
        if weight := self.weights["alignment"]:
            terms["alignment"] = weight * alignment(features)
        return {name: term.to(features.logit_scale.dtype) for name, term in terms.items()}

    def metrics(self, result: StepView) -> dict[str, float]:
        """The gap of the step's global batch, `gap/*`; see `gap_curves`."""
        return gap_curves(result.features, self.kernel)


PART = GapClosing
