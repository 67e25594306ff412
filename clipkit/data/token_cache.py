"""Tokens of captions that were seen before.

Shapes: n captions, L context length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class TokenCache:
    """A tokenizer that tokenises each distinct caption once per process.

    Results equal the tokenizer's. When full the cache starts anew, which costs a caption that
    comes often one more tokenisation. Pickled without its content.

    Args:
        tokenizer: list of str -> (n, L) integers, each row by its caption alone; L never changes.
        max_entries: Captions remembered, 4 L + about 100 bytes each.
    """

    def __init__(self, tokenizer: Callable[[list[str]], Tensor], max_entries: int) -> None:
        self.tokenizer, self.max_entries = tokenizer, max_entries
        self._rows: dict[bytes, int] = {}
        self._tokens: np.ndarray | None = None  # (max_entries, L) int32, filled from the top

    def __call__(self, texts: list[str]) -> Tensor:
        """Captions -> (n, L) int64."""
        digests = [_digest(text) for text in texts]
        new = {d: text for d, text in zip(digests, texts) if d not in self._rows}
        if len(self._rows) + len(new) > self.max_entries:
            self._rows.clear()
            new = dict(zip(digests, texts))
        if len(new) > self.max_entries or not texts:
            return self.tokenizer(texts)
        if new:
            self._add(new)
        assert self._tokens is not None
        rows = [self._rows[digest] for digest in digests]
        return torch.from_numpy(self._tokens[rows].astype(np.int64))

    def _add(self, new: dict[bytes, str]) -> None:
        tokens = self.tokenizer(list(new.values())).numpy()  # (m, L)
        if self._tokens is None:
            self._tokens = np.empty((self.max_entries, tokens.shape[1]), dtype=np.int32)
        start = len(self._rows)
        self._tokens[start : start + len(new)] = tokens
        self._rows.update(zip(new, range(start, start + len(new))))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}, "_tokens": None}


def _digest(text: str) -> bytes:
    """Key of constant size, however long the caption."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
