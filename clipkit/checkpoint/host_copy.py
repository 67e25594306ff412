"""A rank's tensors in host memory, laid out as a safetensors file: copied fast, written later.

The layout is that of https://huggingface.co/docs/safetensors: eight bytes of length, a JSON header,
the tensors one after the other. Tensors of the widest type come first, so each starts aligned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit.checkpoint.files import BLOCK

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass
class Slice:
    """Elements start .. start + len(data) - 1 of a flattened tensor, owned by this rank.

    Attributes:
        kind: "weight", "exp_avg", "exp_avg_sq", "buffer" or "addon".
        name: Of the parameter or buffer.
        shape: Of the whole tensor.
        start: First element.
        data: 1-D, on any device.
        dtype: What it is stored as; None: as it is.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor
    dtype: torch.dtype | None = None

    @property
    def stored(self) -> torch.dtype:
        """Type of its elements in the file."""
        return self.dtype or self.data.dtype

    @property
    def key(self) -> str:
        """Name in the file."""
        return f"{self.kind}/{self.name}@{self.start}"


class HostCopy:
    """One buffer that is kept from save to save: a copy into it meets no fresh pages.

    Attributes:
        entries: Where each tensor belongs: tensor, shape, key, start, stop.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._header, self._size = b"", 0

    @torch.no_grad()
    def take(self, slices: Iterable[Slice]) -> None:
        """Copy the tensors as they are now; afterwards they may change."""
        pieces = [piece for piece in slices if piece.data.numel()]
        pieces.sort(key=lambda p: (-p.stored.itemsize, p.key))
        ranges = self._lay_out(pieces)
        on_gpu = any(piece.data.is_cuda for piece in pieces)
        if self._buffer.numel() < self._size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # frees the old one first
            self._buffer = torch.empty(self._size, dtype=torch.uint8, pin_memory=on_gpu)
        for piece, (low, high) in zip(pieces, ranges):
            place = self._buffer[low:high].view(piece.stored)
            place.copy_(piece.data.reshape(-1), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()

    def _lay_out(self, pieces: list[Slice]) -> list[tuple[int, int]]:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        ranges, end = [], 0
        self.entries = []
        for p in pieces:
            begin, length = end, p.data.numel()
            end += length * p.stored.itemsize
            ranges.append((begin, end))
            header[p.key] = {
                "dtype": _NAMES[p.stored], "shape": [length], "data_offsets": [begin, end]
            }  # fmt: skip
            self.entries.append(
                {
                    "tensor": f"{p.kind}/{p.name}",
                    "shape": list(p.shape),
                    "key": p.key,
                    "start": p.start,
                    "stop": p.start + length,
                }
            )
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header, self._size = len(text).to_bytes(8, "little") + text, end
        return ranges

    def blocks(self) -> Iterator[bytes | memoryview]:
        """The file's bytes: the header, then the tensors in at least two blocks."""
        yield self._header
        data = self._buffer.numpy().data
        step = min(BLOCK, max(1, self._size // 2))
        for low in range(0, self._size, step):
            yield data[low : min(low + step, self._size)]
