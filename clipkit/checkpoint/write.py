"""Write one checkpoint: every rank its own slices, rank 0 the index, the manifest and the rename.

A crash at any point leaves the earlier checkpoints untouched: the folder gets its final name only
after everything in it is on disk, and `latest` is replaced last.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipkit.checkpoint.files import flush, sha256, share, write_text
from clipkit.checkpoint.verify import MANIFEST, checkpoint_folder, list_checkpoints, step_of
from clipkit.dist.group import World
from clipkit.errors import CheckpointError


@dataclass
class Slice:
    """Elements start .. start + len(data) - 1 of a flattened tensor, owned by this rank.

    Attributes:
        kind: "weight", "exp_avg", "exp_avg_sq", "buffer" or "addon".
        name: Of the parameter or buffer.
        shape: Of the whole tensor.
        start: First element.
        data: 1-D, on any device.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor


def _write_rank(folder: Path, rank: int, slices: Iterable[Slice]) -> None:
    """This rank's tensors and, in a side file for rank 0, where they belong."""
    file = folder / f"rank_{rank:05d}.safetensors"
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    for piece in slices:
        if piece.data.numel() == 0:
            continue
        key = f"{piece.kind}/{piece.name}@{piece.start}"
        tensors[key] = piece.data.detach().to("cpu", copy=True).contiguous()
        entries.append(
            {
                "tensor": f"{piece.kind}/{piece.name}",
                "shape": list(piece.shape),
                "key": key,
                "start": piece.start,
                "stop": piece.start + piece.data.numel(),
            }
        )
    save_file(tensors or {"empty": torch.zeros(1)}, file)
    share(file)
    flush(file)
    side = {"entries": entries, "bytes": file.stat().st_size, "sha256": sha256(file)}
    write_text(folder / f"rank_{rank:05d}.json", json.dumps(side))


def _merge(folder: Path, world_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """index.json's content and the manifest entries of the rank files; removes the side files."""
    index: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for rank in range(world_size):
        side_file = folder / f"rank_{rank:05d}.json"
        side = json.loads(side_file.read_text(encoding="utf-8"))
        name = f"rank_{rank:05d}.safetensors"
        files[name] = {"bytes": side["bytes"], "sha256": side["sha256"]}
        for e in side["entries"]:
            entry = index.setdefault(e["tensor"], {"shape": e["shape"], "slices": []})
            entry["slices"].append(
                {"file": name, "key": e["key"], "start": e["start"], "stop": e["stop"]}
            )
        side_file.unlink()
    for entry in index.values():
        entry["slices"].sort(key=lambda s: s["start"])
    return index, files


def _finish(folder: Path, final: Path, world_size: int, texts: dict[str, Any]) -> None:
    index, files = _merge(folder, world_size)
    for name, content in {"index.json": index, **texts}.items():
        path = folder / name
        path.write_text(json.dumps(content), encoding="utf-8")
        flush(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_text(folder / MANIFEST, json.dumps({"format": "clipkit-1", "files": files}, indent=1))
    if final.exists():  # the same step again, after a resume from before it
        shutil.rmtree(final)
    os.rename(folder, final)
    flush(final.parent)
    write_text(final.parent / "latest", final.name + "\n")


def _agree(world: World, step: Callable[[], None], what: str, final: Path) -> None:
    """Run `step` on this rank; if it failed on any rank, raise on all of them."""
    problem = ""
    try:
        step()
    except OSError as error:
        problem = f"{error.strerror or error}"
    except Exception as error:  # safetensors raises its own kind on a full disk
        if type(error).__module__.split(".")[0] != "safetensors":
            raise
        problem = str(error)
    if world.max_int(int(bool(problem))):
        raise CheckpointError(
            f"{final}: {what} failed: {problem or 'on another rank'}; "
            f"earlier checkpoints are untouched"
        )


def write_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    slices: Iterable[Slice],
    state: dict[str, Any],
    model_config: dict[str, Any],
    world: World,
    keep: int = 2,
) -> Path:
    """Write `step_<step>` below `<run_dir>/checkpoints`; called by all ranks, keeps `keep` newest.

    Args:
        run_dir: The run folder, shared by all ranks.
        step: Trained steps.
        slices: What this rank owns; together the ranks own everything once.
        state: JSON-able, from rank 0.
        model_config: The towers' open_clip_config.json.
        world: The ranks.
        keep: Checkpoints that stay.

    Returns:
        The finished folder.

    Raises:
        CheckpointError: On all ranks, if one of them could not write.
    """
    final = checkpoint_folder(run_dir, step)
    root = final.parent
    tag = world.broadcast_int(uuid.uuid4().int >> 66)
    folder = root / f".{final.name}.tmp-{tag:x}"
    texts = {"state.json": state, "open_clip_config.json": model_config}

    def prepare() -> None:
        for stale in root.glob(".step_*.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder.mkdir(parents=True)

    try:
        _agree(world, prepare if world.is_main else _nothing, "creating the folder", final)
        _agree(world, lambda: _write_rank(folder, world.rank, slices), "writing", final)
        main = world.is_main
        _agree(
            world,
            (lambda: _finish(folder, final, world.world_size, texts)) if main else _nothing,
            "finishing",
            final,
        )
    except CheckpointError:
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if world.is_main:
        own = [c for c in list_checkpoints(run_dir) if step_of(c) <= step]
        for old in own[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def _nothing() -> None:
    """Nothing to do on this rank."""
