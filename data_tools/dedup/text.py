"""Captions that say the same: equal once normalised, or of a high Jaccard similarity.

Candidates come from MinHash and locality-sensitive hashing (datasketch), and are then compared
exactly: no pair below the threshold is taken, and a few above it may be missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH

_PERMUTATIONS, _SEED, _SHINGLE = 128, 1, 4
_GAPS = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Compatibility form, case folded, runs of what is no letter or digit as one blank.

    A text of signs alone ("???", emoji) keeps them.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return _GAPS.sub(" ", text).strip() or " ".join(text.split())


def shingles(text: str) -> set[str]:
    """Runs of four characters; a shorter text is one."""
    return {text[i : i + _SHINGLE] for i in range(max(len(text) - _SHINGLE + 1, 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """Size of the intersection over that of the union."""
    return len(a & b) / len(a | b)


def signature(text: str) -> bytes:
    """MinHash of a text's shingles, 128 permutations, serialised."""
    hashed = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    hashed.update_batch([piece.encode() for piece in shingles(text)])
    lean = LeanMinHash(hashed)
    packed = bytearray(lean.bytesize())
    lean.serialize(packed)
    return bytes(packed)


def near_texts(
    texts: Sequence[str], signatures: Sequence[bytes], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """In order, a text stays unless one that stays has at least `threshold` of its shingles.

    Args:
        texts: n normalised texts.
        signatures: Their `signature`.
        threshold: Jaccard similarity, above 0 and up to 1.

    Returns:
        (n,) int64 place of the first such text, -1: it stays; (n,) 1 - similarity to it.
    """
    # missed pairs are worse than candidates that the exact comparison then turns down
    lsh = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    of, distance = np.full(len(texts), -1), np.zeros(len(texts))
    for i, (text, packed) in enumerate(zip(texts, signatures)):
        hashed = LeanMinHash.deserialize(packed)
        own = shingles(text)
        for j in sorted(lsh.query(hashed)):
            similarity = jaccard(own, shingles(texts[j]))
            if similarity >= threshold:
                of[i], distance[i] = j, 1 - similarity
                break
        else:
            lsh.insert(i, hashed)
    return of, distance
