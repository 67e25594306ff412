"""Images that look the same by a perceptual hash: greedy exemplars within groups.

With dHash of 8 x 8, groups by volume and a threshold of 6 this is Hash-6 of Wolf et al. 2024,
"Less is More", https://arxiv.org/abs/2410.14524.
"""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.compute as compute

from data_tools.dedup.hamming import exemplars


def group_codes(table: pyarrow.Table, group_by: str, separator: str) -> np.ndarray:
    """(n,) int64 group of each sample; negative ones are alone.

    Args:
        table: Columns shard, key, group.
        group_by: "all", "shard", "key" (up to its last separator) or "json:<field>".
        separator: Ends the group in a key.
    """
    if group_by == "all":
        return np.zeros(len(table), dtype=np.int64)
    if group_by == "shard":
        values = table["shard"]
    elif group_by == "key":
        keys = [key.rpartition(separator)[0] or key for key in table["key"].to_pylist()]
        values = pyarrow.chunked_array([pyarrow.array(keys, pyarrow.string())])
    else:
        values = table["group"]
    codes = compute.index_in(values, compute.unique(values.drop_null()))
    return codes.fill_null(-1).to_numpy().astype(np.int64)


def same_look(
    table: pyarrow.Table, groups: np.ndarray, threshold: int, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Exemplar of each sample that looks like one, in its group, by the order of keys.

    Args:
        table: Columns key, hash, mirrored; null hashes take no part.
        groups: (n,) as `group_codes`.
        threshold: Most differing bits.
        mirrored: Whether mirror images look the same.

    Returns:
        (n,) int64 place of the exemplar, -1: stays; (n,) int64 distance to it.
    """
    n = len(table)
    of, distance = np.full(n, -1), np.zeros(n, dtype=np.int64)
    hashes = table["hash"].fill_null(0).to_numpy()
    flipped = table["mirrored"].fill_null(0).to_numpy() if mirrored else None
    known = np.flatnonzero(table["hash"].is_valid().to_numpy() & (groups >= 0))
    # by group, then by key, then as given: the order of shards decides nothing else
    ranks = compute.rank(table["key"].combine_chunks(), tiebreaker="dense").to_numpy()
    known = known[np.lexsort((known, ranks[known], groups[known]))]
    edges = np.flatnonzero(np.diff(groups[known])) + 1
    for own in np.split(known, edges):
        places, bits = exemplars(hashes[own], threshold, None if flipped is None else flipped[own])
        hit = places >= 0
        of[own[hit]], distance[own[hit]] = own[places[hit]], bits[hit]
    return of, distance
