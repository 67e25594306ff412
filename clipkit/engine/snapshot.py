"""A run as a checkpoint and back: what strategy, add-ons and model own, by name and range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.addons.base import AddOn
from clipkit.checkpoint.host_copy import Slice
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import wait_for
from clipkit.engine.strategy import Strategy
from clipkit.errors import CheckpointError


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to a state dict, by full name."""
    named = {}
    for prefix, child in module.named_modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and name not in child._non_persistent_buffers_set:
                named[f"{prefix}.{name}" if prefix else name] = buffer
    return named


def _stored(data: Tensor) -> torch.dtype | None:
    """Weights and moments are kept in fp32 (fp64 stays)."""
    return torch.float32 if data.dtype in (torch.bfloat16, torch.float16) else None


def slices(strategy: Strategy, addons: list[AddOn]) -> Iterator[Slice]:
    """Everything this rank owns; over all ranks, every element exactly once."""
    world = strategy.world
    shapes = {}
    for f in strategy.fragments():
        shapes[f.name] = f.shape
        low, length = f.share(world.rank, world.world_size)
        for kind, tensor in (("weight", f.master), *f.moments.items()):
            part = tensor[low : low + length]
            yield Slice(kind, f.name, f.shape, f.start + low, part, _stored(part))
    for i, addon in enumerate(addons):
        for name, start, tensor in addon.sharded_state():
            yield Slice("addon", f"{i}/{name}", shapes[name], start, tensor)
        if world.is_main:
            for name, tensor in _tensors(addon.state_dict()).items():
                yield Slice(
                    "addon", f"{i}/state/{name}", tuple(tensor.shape), 0, tensor.reshape(-1)
                )
    if world.is_main:
        for name, buffer in persistent_buffers(strategy.model).items():
            yield Slice("buffer", name, tuple(buffer.shape), 0, buffer.reshape(-1))


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def addon_scalars(addons: list[AddOn]) -> list[dict[str, Any]]:
    """The JSON part of the add-ons' state and their kinds, in order."""
    return [
        {"kind": _kind(a)} | {k: v for k, v in a.state_dict().items() if not isinstance(v, Tensor)}
        for a in addons
    ]


def _kind(addon: AddOn) -> str:
    return type(addon).__module__.removeprefix("clipkit.addons.")


def _check_addons(folder: Path, saved: list[dict[str, Any]], addons: list[AddOn]) -> None:
    there, here = [str(s.get("kind", "?")) for s in saved], [_kind(addon) for addon in addons]
    if len(there) != len(here) or any(a not in ("?", b) for a, b in zip(there, here)):
        named = [f"[{', '.join(kinds) or 'none'}]" for kinds in (there, here)]
        raise CheckpointError(
            f"{folder} was saved with add-ons {named[0]}, this run has {named[1]}; give the same "
            f"in the same order, or start a new run (run.name)"
        )


def restore(folder: Path, strategy: Strategy, addons: list[AddOn]) -> CheckpointReader:
    """Load weights, moments, buffers and add-on state of a verified checkpoint, into any layout.

    Raises:
        CheckpointError: The checkpoint belongs to another model or other add-ons.
    """
    wait_for(folder)  # rank 0 has chosen it; a shared file system may show it here a little later
    reader = CheckpointReader(folder)
    saved = reader.state.get("addons", [])
    _check_addons(folder, saved, addons)
    for f in strategy.fragments():
        if reader.shape("weight", f.name) != f.shape:
            raise CheckpointError(
                f"{folder}: '{f.name}' has shape {reader.shape('weight', f.name)}, not {f.shape}"
            )
        stop = f.start + f.master.numel()
        f.master.copy_(reader.read("weight", f.name, f.start, stop))
        for kind, moment in f.moments.items():
            moment.copy_(reader.read(kind, f.name, f.start, stop))
    for name, buffer in persistent_buffers(strategy.model).items():
        if buffer.numel():
            buffer.copy_(reader.full("buffer", name))
    strategy.refresh_weights()
    strategy.restore_optimizer(int(reader.state["optimizer_steps"]))
    for i, addon in enumerate(addons):
        for name, start, tensor in addon.sharded_state():
            tensor.copy_(reader.read("addon", f"{i}/{name}", start, start + tensor.numel()))
        prefix = f"{i}/state/"
        names = [n for n in reader.names("addon") if n.startswith(prefix)]
        addon.load_state_dict(
            {**saved[i], **{n[len(prefix) :]: reader.full("addon", n) for n in names}}
        )
    return reader
