"""SemDeDup, Abbas et al. 2023, https://arxiv.org/abs/2303.09540: near repeats by embeddings.

Unit embeddings are clustered (spherical k-means, faiss). In a cluster, items are put in the order
of their distance to the centroid; one goes if its cosine with any earlier one is above 1 - eps.
Earlier ones count though they go themselves, so in a chain A ~ B ~ C both B and C go, even where A
and C differ; `greedy` compares with those that stay only.

Shapes: N samples, D embed dim, m items of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

ORDERS = ("hard", "easy", "random")
_BLOCK = 1024


def default_clusters(n: int) -> int:
    """About a thousand items a cluster: comparing them costs no more than clustering."""
    return max(1, round(n / 1000))


def same_meaning(
    features: np.ndarray,
    *,
    eps: float,
    clusters: int,
    keep: str = "hard",
    greedy: bool = False,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """What each sample repeats.

    Args:
        features: (N, D) fp32 unit rows.
        eps: An item goes at a cosine above 1 - eps; below 0 none goes.
        clusters: Of k-means; items of two clusters are never compared.
        keep: "hard": far from the centroid first, so such ones stay; "easy": near ones; "random".
        greedy: Compare with earlier items that stay, not with all earlier ones.
        seed: Of k-means and of "random".
        tick: Told the items done.

    Returns:
        (N,) int64 the nearest earlier item where that is near enough, else -1; (N,) 1 - cosine.
    """
    of, distance = np.full(len(features), -1), np.zeros(len(features))
    members, closeness = _cluster(features, min(clusters, len(features)), seed)
    chance = np.random.default_rng(seed).permutation(len(features))
    score = {"hard": closeness, "easy": -closeness, "random": chance}[keep]
    order = np.lexsort((np.arange(len(features)), score, members))
    for own in np.split(order, np.flatnonzero(np.diff(members[order])) + 1):
        places, far = repeats(features[own], eps, greedy)
        hit = places >= 0
        of[own[hit]], distance[own[hit]] = own[places[hit]], far[hit]
        tick(len(own))
    return of, distance


def _cluster(features: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) cluster of each item and (N,) cosine with its centroid."""
    kmeans = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=20,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
    )
    kmeans.train(features)
    closeness, members = kmeans.index.search(features, 1)
    # equal rows must tie, whatever block of the product they fell into
    return members[:, 0], np.round(closeness[:, 0].astype(np.float64), 5)


def repeats(items: np.ndarray, eps: float, greedy: bool) -> tuple[np.ndarray, np.ndarray]:
    """(m,) nearest earlier item of each where its cosine is above 1 - eps, else -1; 1 - cosine.

    Args:
        items: (m, D) fp32 unit rows, in order.
        eps: As in `same_meaning`.
        greedy: As in `same_meaning`.
    """
    of, distance = np.full(len(items), -1), np.ones(len(items))
    for start in range(0, len(items), _BLOCK):
        stop = min(start + _BLOCK, len(items))
        cosines = np.minimum(items[:stop] @ items[start:stop].T, 1)  # (stop, block)
        cosines[start:][np.tril_indices(stop - start)] = -np.inf
        if greedy:
            cosines[:start][of[:start] >= 0] = -np.inf
            for j in range(stop - start):  # each verdict changes those behind it
                if cosines[:, j].max() > 1 - eps:
                    of[start + j] = cosines[:, j].argmax()
                    distance[start + j] = 1 - cosines[of[start + j], j]
                    cosines[start + j] = -np.inf
        else:
            best = cosines.argmax(axis=0)
            top = cosines[best, np.arange(stop - start)]
            of[start:stop] = np.where(top > 1 - eps, best, -1)
            distance[start:stop] = 1 - np.maximum(top, -1)
    return of, distance
