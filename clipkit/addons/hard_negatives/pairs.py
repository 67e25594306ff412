"""Which embeddings meet once there are hard negatives."""

from __future__ import annotations

from dataclasses import replace

from clipkit.contracts import Pair


def harden(pairs: list[Pair]) -> list[Pair]:
    """Negative captions become columns of every pair with unrefined captions."""
    return [replace(p, columns=(*p.columns, "negative")) if p.text == "text" else p for p in pairs]
