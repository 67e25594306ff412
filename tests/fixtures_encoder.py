"""A FeatureEncoder without a network: colours and their names meet in RGB space; sets for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.contracts import Batch, Outputs
from clipkit.towers.dual import FeatureEncoder
from tests.fixtures_shards import image_bytes, write_tar

COLORS = {
    "red": (250, 10, 10),
    "green": (10, 250, 10),
    "blue": (10, 10, 250),
    "white": (250, 250, 250),
}


def _tokens(texts: list[str]) -> Tensor:
    names = list(COLORS)
    return torch.tensor(
        [[next((names.index(w) for w in text.split() if w in names), 0)] for text in texts]
    )


def _pixels(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def color_encoder(
    image_features: Callable[[Tensor], Tensor] | None = None,
    text_features: Callable[[Tensor], Tensor] | None = None,
    calls: list[Batch] | None = None,
) -> FeatureEncoder:
    """Knows every colour; either tower can be replaced by a function of (b, 3) colours."""
    table = torch.tensor([list(c) for c in COLORS.values()], dtype=torch.float32)

    def forward(batch: Batch) -> Outputs:
        if calls is not None:
            calls.append(batch)
        out = {}
        if "image" in batch.images:
            color = batch.images["image"].mean(dim=(2, 3))
            out["image"] = (image_features or _unit)(color)[:, None]
        if "text" in batch.texts:
            color = table[batch.texts["text"][:, 0, 0]]
            out["text"] = (text_features or _unit)(color)[:, None]
        return Outputs(out, torch.ones(()))

    return FeatureEncoder(forward, _pixels, _tokens, torch.device("cpu"))


def _unit(color: Tensor) -> Tensor:
    return F.normalize(color - 120, dim=-1)


def write_color_set(root: Path, labels: list[int], captions: list[str] | None = None) -> Path:
    """One image per label in its class's colour, two shards; with captions, a retrieval set."""
    names = list(COLORS)
    half = len(labels) // 2
    for number, (start, stop) in enumerate(((0, half), (half, len(labels)))):
        members = []
        for i in range(start, stop):
            text = captions[i] if captions else names[labels[i]]
            members += [
                (f"{i:04d}.png", image_bytes(COLORS[names[labels[i]]])),
                (f"{i:04d}.cls", str(labels[i]).encode()),
                (f"{i:04d}.txt", text.encode()),
            ]
        write_tar(root / "test" / f"{number}.tar", members)
    if captions:
        (root / "dataset_type.txt").write_text("retrieval")
    else:
        (root / "classnames.txt").write_text("\n".join(names))
        (root / "zeroshot_classification_templates.txt").write_text("a {c} thing\nthe {c} one\n")
    return root
