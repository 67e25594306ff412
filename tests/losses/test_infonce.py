"""InfoNCE against open_clip's ClipLoss and against a loop over rows."""

from __future__ import annotations

import math

import open_clip
import torch

from clipkit.contracts import Pair
from clipkit.dist.group import World
from clipkit.losses.infonce import InfoNCELoss
from tests.losses.cells import B, M, features_of, global_tensors


def test_equals_open_clip() -> None:
    tensors = global_tensors()
    features = features_of(tensors, World(), False)
    wanted = open_clip.loss.ClipLoss()(
        tensors["image"][:, 0], tensors["text"][:, 0], features.logit_scale
    )
    torch.testing.assert_close(
        InfoNCELoss()(features, Pair())["contrastive"], wanted, rtol=1e-12, atol=0
    )


def test_columns_are_negatives_of_images_only() -> None:
    t = global_tensors()
    features = features_of(t, World(), True)
    image, text, scale = t["image"][:, 0], t["text"][:, 0], 9.0
    total = 0.0
    for i in range(B):
        row = [scale * float(image[i] @ text[j]) for j in range(B)]
        row += [
            scale * float(image[i] @ t["negative"][j, m])
            for j in range(B)
            for m in range(M)
            if t["mask"][j, m]
        ]
        column = [scale * float(text[i] @ image[j]) for j in range(B)]
        for logits in (row, column):
            total += math.log(sum(math.exp(x) for x in logits)) - logits[i]
    found = InfoNCELoss()(features, Pair(columns=("negative",)))["contrastive"].item()
    assert abs(found - total / (2 * B)) < 1e-12
