"""What a linear probe learns from when it learns texts in place of images: CLOSE and C3.

CLOSE (Gu et al. 2023, https://arxiv.org/abs/2211.09778) trains on texts with noise that covers the
gap to the images; C3 (Zhang et al. 2024, https://arxiv.org/abs/2401.08567) removes the mean of each
modality first.

Shapes: n texts, D embed dim, K copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.data.wds_folder import WdsFolder
from clipkit.eval.embed import Embedder
from clipkit.retrieval.calibration import fit_means
from clipkit.retrieval.noise import add_noise


def prompt_features(model: Embedder, folder: WdsFolder) -> tuple[Tensor, Tensor]:
    """(n, D) features of every class name in every template, and its class (n,)."""
    names, templates = folder.classnames, folder.templates
    prompts = [t.replace("{c}", name) for name in names for t in templates]
    return model.texts(prompts), torch.arange(len(names)).repeat_interleave(len(templates))


def caption_features(model: Embedder, folder: WdsFolder) -> tuple[Tensor, Tensor]:
    """(n, D) features of the captions of a split, and the class of each one's image (n,).

    Raises:
        DataError: An image has no caption or no class.
    """
    captions = folder.captions()
    counts = torch.tensor([len(own) for own in captions])
    texts = [caption for own in captions for caption in own]
    return model.texts(texts), torch.tensor(folder.labels()).repeat_interleave(counts)


def centre_both(texts: Tensor, images: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Texts without their mean, and images without that of the `seen` images; unit rows again."""
    means = fit_means(texts, seen)
    sides = ((texts, means.text), (images, means.image))
    found = [F.normalize(rows.double() - mean, dim=-1).float() for rows, mean in sides]
    return found[0], found[1]


def noisy_copies(features: Tensor, sigma: float, copies: int, seed: int) -> Tensor:
    """(K * n, D), copy after copy, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([add_noise(features, sigma, generator) for _ in range(copies)])


def rows_of_copies(rows: Tensor, total: int, copies: int) -> Tensor:
    """Where the samples `rows` of `total` stand in `noisy_copies`."""
    return (rows + total * torch.arange(copies)[:, None]).flatten()
