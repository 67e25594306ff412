"""Geometry of paired embeddings: gap, alignment, uniformity, spread, and how far each is certain.

Centroid gap: Liang et al. 2022, https://arxiv.org/abs/2203.02053. Relative modality gap (RMG):
Schrodi et al. 2025, https://arxiv.org/abs/2404.07983. Uniformity: Wang & Isola 2020,
https://arxiv.org/abs/2005.10242. Effective rank: Roy & Vetterli 2007.

Nothing of size n x m is kept: cosines come in blocks of rows, and each statistic leaves one number
per row, from which its interval follows too.

Shapes: n images, m texts, N pairs, D embed dim, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from clipkit.eval.intervals import Interval, Z, jackknife
from clipkit.eval.zero_shot import exact_scores

UNIFORMITY_T = 2.0
LOGISTIC_C = 1.0
BINS = 200  # of cosines, from -1 to 1
_ROWS = 512
_NO_SPREAD = 1e-12  # variance below which features differ by rounding only
_NO_DISTANCE = 1e-6  # the same for (1 - cosine) / 2


@dataclass(frozen=True)
class Pairs:
    """Images and texts that belong together; every one of them stands in at least one pair.

    Attributes:
        images: (n, D) unit rows.
        texts: (m, D) unit rows, each text once.
        of_image: (N,) int64, ascending.
        of_text: (N,) int64.
    """

    images: Tensor
    texts: Tensor
    of_image: Tensor
    of_text: Tensor

    @cached_property
    def components(self) -> np.ndarray:
        """(N,) number of each pair's group: images linked by a text they share, and their texts."""
        n, m = len(self.images), len(self.texts)
        ends = (self.of_image.numpy(), n + self.of_text.numpy())
        graph = coo_array((np.ones(len(self.of_image)), ends), shape=(n + m, n + m))
        return connected_components(graph, directed=False)[1][ends[0]]

    @cached_property
    def owner(self) -> Tensor:
        """(m,) the first image that each text belongs to: its cluster in an interval."""
        owner = torch.full((len(self.texts),), len(self.images))
        return owner.scatter_reduce(0, self.of_text, self.of_image, "amin")


@dataclass(frozen=True)
class Cross:
    """Cosines of matched and mismatched images and texts. Columns: cosine, kernel, wins.

    The kernel is exp(-t |x - y|^2); wins of a mismatched pair is the share of matched ones that
    score above it.

    Attributes:
        matched: (N,) cosines of the pairs.
        below: (N,) share of mismatched cosines that lie strictly below each matched one.
        ties: (N,) share that equal it.
        image_sums: (n, 3) sums over each image's mismatched texts.
        image_counts: (n,) their number.
        text_sums: (m, 3) and
        text_counts: (m,) the same over each text's mismatched images.
        histogram: (BINS,) mismatched cosines.
    """

    matched: Tensor
    below: Tensor
    ties: Tensor
    image_sums: Tensor
    image_counts: Tensor
    text_sums: Tensor
    text_counts: Tensor
    histogram: Tensor

    def mean(self, column: int) -> float:
        """Mean of a column over all mismatched pairs."""
        return float(self.image_sums[:, column].sum() / self.image_counts.sum())

    def influences(self, column: int) -> tuple[Tensor, Tensor]:
        """((n,), (m,)) how much each image and each text moves that mean."""
        mean, total = self.mean(column), self.image_counts.sum()
        return (
            (self.image_sums[:, column] - self.image_counts * mean) / total,
            (self.text_sums[:, column] - self.text_counts * mean) / total,
        )


def centroid_gap(pairs: Pairs) -> tuple[float, Tensor]:
    """Distance of the modalities' means over pairs, 0 .. 2, and each pair's influence (N,)."""
    difference = pairs.images.double()[pairs.of_image] - pairs.texts.double()[pairs.of_text]
    mean = difference.mean(dim=0)  # (D,)
    gap = float(mean.norm())
    direction = mean / gap if gap > 0 else torch.zeros_like(mean)
    return gap, ((difference - mean) @ direction) / len(difference)


def other_cosines(x: Tensor) -> Tensor:
    """(n, D) unit rows -> (n,) mean cosine of each row with the other rows."""
    x = x.double()
    return ((x @ x.sum(dim=0)) - (x * x).sum(dim=1)) / (len(x) - 1)


def rmg(matched: float, image: float, text: float) -> float:
    """Relative modality gap of three mean cosines, 0 .. 1: matched, within images, within texts.

    Independent isotropic features give 0.5, coinciding modalities 0. One point for everything has
    no gap either: 0.
    """
    pair, within = (1 - matched) / 2, ((1 - image) / 2 + (1 - text) / 2) / 2
    return max(0.0, pair) / (pair + within) if pair + within > _NO_DISTANCE else 0.0


def rmg_interval(pairs: Pairs, matched: Tensor) -> tuple[float, Interval]:
    """RMG of the pairs, images and texts counted once within their modality, and its interval."""
    image, text = other_cosines(pairs.images), other_cosines(pairs.texts)
    means = (float(matched.mean()), float(image.mean()), float(text.mean()))
    value = rmg(*means)
    pair, within = (1 - means[0]) / 2, (2 - means[1] - means[2]) / 4
    scale = max(pair + within, _NO_DISTANCE) ** 2
    parts = [
        (-(matched - means[0]) / (2 * len(matched)) * within / scale, pairs.of_image),
        ((image - means[1]) / (2 * len(image)) * pair / scale, torch.arange(len(image))),
        ((text - means[2]) / (2 * len(text)) * pair / scale, pairs.owner),
    ]
    return value, influence_interval(value, parts, len(image), (0.0, 1.0))


def kernel_rows(x: Tensor, t: float = UNIFORMITY_T) -> Tensor:
    """(n, D) unit rows -> (n,) mean of exp(-t |x_i - x_j|^2) over the other rows j.

    Uniformity is the log of their mean: 0 where all rows coincide, -2t + log 0F1(; D/2; t^2) for
    the uniform sphere.
    """
    sums = []
    for start, cosines in _blocks(x, x):
        kernel = _kernel(cosines, t)
        kernel[torch.arange(len(kernel)), start + torch.arange(len(kernel))] = 0
        sums.append(kernel.sum(dim=1))
    return torch.cat(sums) / (len(x) - 1)


def uniformity_interval(rows: Tensor, owner: Tensor, clusters: int) -> tuple[float, Interval]:
    """Uniformity from `kernel_rows`, and its interval over clusters of rows; at most 0."""
    mean = float(rows.mean())
    value = min(0.0, math.log(mean))
    part = (2 * (rows - mean) / (len(rows) * mean), owner)
    return value, influence_interval(value, [part], clusters, (-math.inf, 0.0))


def effective_rank_interval(x: Tensor, owner: Tensor, clusters: int) -> tuple[float, Interval]:
    """Exponential of the entropy of the normalised eigenvalues of the rows' covariance.

    Rows are centred first, so a common offset (the cone) does not count. 1 .. min(n - 1, D);
    0 where the rows do not differ. The interval is a jackknife's over clusters of rows.
    """
    x = x.double() - x.double().mean(dim=0)
    whole = _moments(x)

    def without_the_rest(kept: np.ndarray) -> float:
        dropped = np.ones(clusters, dtype=bool)
        dropped[kept] = False
        gone = _moments(x[torch.from_numpy(dropped)[owner]])
        return _rank_of(whole[0] - gone[0], whole[1] - gone[1], whole[2] - gone[2])

    low, high = jackknife(without_the_rest, clusters)
    return _rank_of(*whole), (max(0.0, low), high)


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    return len(x), x.sum(dim=0), x.T @ x


def _rank_of(n: int, total: Tensor, squares: Tensor) -> float:
    if n < 2:
        return 0.0
    covariance = squares / n - torch.outer(total, total) / n**2
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    if float(values.sum()) < _NO_SPREAD:
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def cross_statistics(pairs: Pairs, t: float = UNIFORMITY_T) -> Cross:
    """One walk over all images and texts; each image needs a text that is not its own."""
    n, m, pair_count = len(pairs.images), len(pairs.texts), len(pairs.of_image)
    matched = torch.cat([block[own] for _, block, own in _own_blocks(pairs)])
    ordered, order = matched.sort()
    image_sums, text_sums = torch.zeros(n, 3).double(), torch.zeros(m, 3).double()
    strictly, at_most = torch.zeros(2, pair_count + 1, dtype=torch.int64)
    histogram = torch.zeros(BINS, dtype=torch.int64)
    for start, cosines, own in _own_blocks(pairs):
        other = torch.ones_like(cosines, dtype=torch.bool)
        other[own] = False
        reached = torch.searchsorted(ordered, cosines, right=True)  # matched that do not win
        wins = (pair_count - reached).double() / pair_count
        for column, values in enumerate((cosines, _kernel(cosines, t), wins)):
            values = values * other
            image_sums[start : start + len(values), column] = values.sum(dim=1)
            text_sums[:, column] += values.sum(dim=0)
        equal_from = torch.searchsorted(ordered, cosines)
        strictly += torch.bincount(reached[other], minlength=pair_count + 1)
        at_most += torch.bincount(equal_from[other], minlength=pair_count + 1)
        histogram += cosine_histogram(cosines[other])
    total = max(1, n * m - pair_count)
    below, reach = (c.cumsum(0)[:-1].double() / total for c in (strictly, at_most))
    back = order.argsort()
    return Cross(
        matched,
        below[back],
        (reach - below)[back],
        image_sums,
        m - torch.bincount(pairs.of_image, minlength=n).double(),
        text_sums,
        n - torch.bincount(pairs.of_text, minlength=m).double(),
        histogram,
    )


def cosine_histogram(cosines: Tensor) -> Tensor:
    """Cosines -> (BINS,) counts over -1 .. 1."""
    bins = ((cosines + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    return torch.bincount(bins.flatten(), minlength=BINS)


def separability(pairs: Pairs, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How well a logistic regression tells images from texts it has not seen.

    It is fitted on 80 % of the pairs and tried on the rest. Pairs that share an image or a text
    fall on one side, so that nothing of the test is known from training.

    Returns:
        (k,) test pairs, ascending, and (k,) share of their two embeddings that are named rightly:
        0, 0.5 or 1.
    """
    splitter = GroupShuffleSplit(n_splits=1, test_size=0.2, random_state=seed)
    train, test = next(splitter.split(pairs.components, groups=pairs.components))
    image, text = pairs.images.numpy()[pairs.of_image], pairs.texts.numpy()[pairs.of_text]
    rows = np.concatenate([image[train], text[train]]).astype(np.float64)
    names = np.repeat([1, 0], len(train))
    model = LogisticRegression(C=LOGISTIC_C, max_iter=1000).fit(rows, names)
    right = (model.predict(image[test]) == 1).astype(float) + (model.predict(text[test]) == 0)
    return test, right / 2


def influence_interval(
    value: float,
    parts: Sequence[tuple[Tensor, Tensor]],
    clusters: int,
    limits: Interval = (-math.inf, math.inf),
) -> Interval:
    """95 % interval from influences: value -+ z sqrt(K / (K - 1) sum_k (sum of k's influences)^2).

    For a mean it is the usual one; for a mean over pairs of samples it is the jackknife's, to first
    order (Arvesen 1969).

    Args:
        value: The statistic.
        parts: (influences, cluster of each) per set of samples that it is made of; each sums to 0.
        clusters: K.
        limits: The values that are possible.
    """
    totals = torch.zeros(clusters, dtype=torch.float64)
    for influences, owner in parts:
        totals.index_add_(0, owner, influences.double())
    half = Z * math.sqrt(clusters / max(1, clusters - 1) * float((totals**2).sum()))
    return max(limits[0], value - half), min(limits[1], value + half)


def _kernel(cosines: Tensor, t: float) -> Tensor:
    return (2 * t * (cosines - 1)).clamp(max=0).exp()


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, (b, m) cosines in fp64 that were rounded to fp32 so that equal rows tie)."""
    for start in range(0, len(x), _ROWS):
        yield start, exact_scores(x[start : start + _ROWS], y).double()


def _own_blocks(pairs: Pairs) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor]]]:
    """Blocks of images against all texts, with the places of the pairs in them."""
    for start, cosines in _blocks(pairs.images, pairs.texts):
        bounds = torch.tensor([start, start + len(cosines)])
        first, last = torch.searchsorted(pairs.of_image, bounds).tolist()
        yield start, cosines, (pairs.of_image[first:last] - start, pairs.of_text[first:last])
