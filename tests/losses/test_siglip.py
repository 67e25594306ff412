"""SigLIP against open_clip's SigLipLoss and against a loop over pairs."""

from __future__ import annotations

import math

import open_clip
import torch

from clipkit.contracts import Pair
from clipkit.dist.group import World
from clipkit.losses.siglip import SigLIPLoss
from tests.losses.cells import B, M, features_of, global_tensors


def test_equals_open_clip() -> None:
    t = global_tensors()
    f = features_of(t, World(), False)
    wanted = open_clip.loss.SigLipLoss()(
        t["image"][:, 0], t["text"][:, 0], f.logit_scale, f.logit_bias
    )
    torch.testing.assert_close(SigLIPLoss()(f, Pair())["contrastive"], wanted, rtol=1e-12, atol=0)


def test_columns_are_further_negatives() -> None:
    t = global_tensors()
    features = features_of(t, World(), True)
    total = 0.0
    for i in range(B):
        image = t["image"][i, 0]
        for j in range(B):
            z = 9.0 * float(image @ t["text"][j, 0]) - 1.5
            total += math.log1p(math.exp(-z if i == j else z))
            for m in range(M):
                if t["mask"][j, m]:
                    total += math.log1p(math.exp(9.0 * float(image @ t["negative"][j, m]) - 1.5))
    found = SigLIPLoss()(features, Pair(columns=("negative",)))["contrastive"].item()
    assert abs(found - total / B) < 1e-12
