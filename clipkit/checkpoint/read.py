"""Read any range of any tensor of a checkpoint, whoever wrote it with however many ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipkit.checkpoint.verify import MANIFEST, read_json
from clipkit.errors import CheckpointError


class CheckpointReader:
    """A verified checkpoint folder, opened for reading.

    Args:
        folder: What `find_checkpoint` returned.

    Raises:
        CheckpointError: index.json or state.json is malformed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.index: dict[str, dict[str, Any]] = read_json(self.folder / "index.json")
        manifest = read_json(self.folder / MANIFEST)
        try:
            _check_index(self.index, set(manifest["files"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{self.folder / 'index.json'} is damaged: {error}") from None
        self.state: dict[str, Any] = read_json(self.folder / "state.json")
        self._files: dict[str, Any] = {}

    @property
    def config(self) -> dict[str, Any]:
        """The towers' open_clip_config.json."""
        return read_json(self.folder / "open_clip_config.json")

    def names(self, kind: str) -> list[str]:
        """Names of all tensors of a kind ("weight", "exp_avg", ...)."""
        return [key[len(kind) + 1 :] for key in self.index if key.startswith(f"{kind}/")]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            CheckpointError: The checkpoint has no such tensor.
        """
        return tuple(self._entry(kind, name)["shape"])

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start .. stop - 1 of the flattened tensor, 1-D.

        Raises:
            CheckpointError: No such tensor, or its slices do not cover the range.
        """
        entry = self._entry(kind, name)
        stop = int(torch.Size(entry["shape"]).numel()) if stop is None else stop
        out: Tensor | None = None
        pieces = [p for p in entry["slices"] if p["start"] < stop and start < p["stop"]]
        for piece, stored in [(p, self._stored(p)) for p in pieces]:  # all there, then room is made
            low, high = max(start, piece["start"]), min(stop, piece["stop"])
            part = stored[low - piece["start"] : high - piece["start"]]
            if out is None:
                out = torch.empty(stop - start, dtype=part.dtype)
            out[low - start : high - start] = part
        if stop > entry["slices"][-1]["stop"]:
            raise CheckpointError(f"{self.folder}: {kind} '{name}' ends before element {stop}")
        return torch.empty(0) if out is None else out

    def full(self, kind: str, name: str) -> Tensor:
        """The whole tensor in its shape."""
        return self.read(kind, name).reshape(self.shape(kind, name))

    def towers_state(self) -> dict[str, Tensor]:
        """The towers' state dict in open_clip's names, fp32, scalar logit_scale and logit_bias."""
        state = {}
        for kind in ("weight", "buffer"):
            for name in self.names(kind):
                if name.startswith("towers."):
                    state[name.removeprefix("towers.")] = self.full(kind, name)
        for name in ("logit_scale", "logit_bias"):
            if name in state:
                state[name] = state[name].reshape(())
        return state

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self.index[f"{kind}/{name}"]
        except KeyError:
            raise CheckpointError(
                f"{self.folder} has no {kind} '{name}'; it belongs to another model"
            ) from None

    def _stored(self, piece: dict[str, Any]) -> Any:
        """A slice as its file holds it, not yet read."""
        name = piece["file"]
        try:
            if name not in self._files:
                self._files[name] = safe_open(self.folder / name, framework="pt")
            data = self._files[name].get_slice(piece["key"])
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / name}: cannot be read: {error}") from None
        if data.get_shape() != [piece["stop"] - piece["start"]]:
            raise CheckpointError(
                f"{self.folder / name}: '{piece['key'][:80]}' is not as long as index.json says"
            )
        return data


def _check_index(index: dict[str, Any], files: set[str]) -> None:
    """Slices of each tensor follow one another from 0 to its end, in files the manifest lists.

    Raises:
        ValueError, TypeError, KeyError: What is wrong.
    """
    for tensor, entry in index.items():
        places = [n for p in entry["slices"] for n in (p["start"], p["stop"])]
        if not isinstance(entry["shape"], list) or any(
            type(n) is not int or not 0 <= n < 1 << 48 for n in (*entry["shape"], *places)
        ):
            raise ValueError(f"shape and slices of '{tensor[:80]}' are no lengths")
        end = 0
        for piece in entry["slices"]:
            if piece["file"] not in files:
                raise ValueError(f"'{str(piece['file'])[:80]}' is not in the manifest")
            if piece["start"] != end or piece["stop"] <= end or not isinstance(piece["key"], str):
                raise ValueError(f"the slices of '{tensor[:80]}' leave a gap or overlap")
            end = piece["stop"]
        if end != math.prod(entry["shape"]) or not end:
            raise ValueError(f"the slices of '{tensor[:80]}' do not fill its shape")
