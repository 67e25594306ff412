"""One checkpoint on disk: every rank its own part, rank 0 the index, the manifest and the rename.

A crash at any point leaves the earlier checkpoints whole: a folder gets its name only after all in
it is on disk, and one of the same step stays readable until the new one has its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.checkpoint import files
from clipkit.checkpoint.host_copy import HostCopy
from clipkit.checkpoint.verify import MANIFEST, REPLACED, plain_folder, verify_checkpoint
from clipkit.errors import CheckpointError
from clipkit.faults import asked


def strike(point: str, rank: int, step: int) -> None:
    """Do the fault `save:POINT`, where it is asked for at this point of this step's save."""
    if asked("save", rank, step) == point:
        os.kill(os.getpid(), signal.SIGKILL)


def _broken(copy: HostCopy, rank: int, step: int, attempt: int) -> Iterator[bytes | memoryview]:
    """The blocks of a part, and before the last one whatever fault is asked for."""
    blocks = list(copy.blocks())
    for number, block in enumerate(blocks, 1):
        if number == len(blocks):
            strike("tensor", rank, step)
            times = asked("disk_full", rank, step)
            if times is not None and attempt < int(times or attempt + 1):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield block


def write_part(
    folder: Path, rank: int, copy: HostCopy, step: int, attempt: int = 0
) -> dict[str, Any]:
    """Write this rank's tensors into a temporary folder.

    Args:
        folder: The same on all ranks; whoever comes first makes it.
        rank: This rank.
        copy: Its tensors.
        step: Of the checkpoint, for faults.
        attempt: Earlier tries to write this same checkpoint, for faults.

    Returns:
        For `finish`, JSON-able: file, bytes, sha256, entries.
    """
    files.disk.make_folder(folder)
    name = f"rank_{rank:05d}.safetensors"
    written = files.write_file(folder / name, _broken(copy, rank, step, attempt))
    return {"file": name, "entries": copy.entries, **written}


def _index(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """index.json: each tensor's shape, and its slices in order."""
    index: dict[str, Any] = {}
    for part in parts:
        for e in part["entries"]:
            entry = index.setdefault(e["tensor"], {"shape": e["shape"], "slices": []})
            place = {"file": part["file"], "key": e["key"]}
            entry["slices"].append({**place, "start": e["start"], "stop": e["stop"]})
    for entry in index.values():
        entry["slices"].sort(key=lambda s: s["start"])
    return index


def finish(
    folder: Path, final: Path, parts: list[dict[str, Any]], texts: dict[str, str], step: int
) -> None:
    """On rank 0, when all parts are there: the manifest, the name, and `latest`.

    Args:
        folder: The temporary folder.
        final: Its name from now on; a checkpoint that has it gives it up.
        parts: What `write_part` returned on every rank.
        texts: Further files by name.
        step: Of the checkpoint, for faults.
    """
    listed = {p["file"]: {"bytes": p["bytes"], "sha256": p["sha256"]} for p in parts}
    for name, text in {"index.json": json.dumps(_index(parts)), **texts}.items():
        listed[name] = dict(files.write_file(folder / name, [text.encode()]))
    strike("manifest", 0, step)
    manifest = json.dumps({"format": "clipkit-1", "files": listed}, indent=1)
    files.write_file(folder / MANIFEST, [manifest.encode()])
    files.flush(folder)
    strike("rename", 0, step)
    before = final.with_name(f"{final.name}{REPLACED}{uuid.uuid4().hex}")
    replaces = final.exists()  # the same step again, after a roll-back or a resume from before it
    if replaces:  # the one that goes may be the only valid one
        _read_again(folder)
        files.move(final, before)
    try:
        files.move(folder, final)
    except OSError:
        if replaces:
            files.move(before, final)
        raise
    strike("latest", 0, step)
    with contextlib.suppress(OSError):  # for people only: the checkpoint is there without it
        files.write_text(final.parent / "latest", final.name + "\n")
    if replaces:
        discard(before)


def _read_again(folder: Path) -> None:
    try:
        verify_checkpoint(folder)
    except CheckpointError as error:
        raise OSError(errno.EIO, f"what was just written does not verify: {error}") from None


def discard(folder: Path, step: int | None = None) -> None:
    """Remove a checkpoint: a crash half-way leaves nothing that looks like one."""
    gone = folder.with_name(f".{folder.name}.gone-{uuid.uuid4().hex}")
    files.move(folder, gone)
    if step is not None:
        strike("prune", 0, step)
    files.remove_tree(gone)


def sweep(root: Path, keep: str, own: str | None = None) -> None:
    """Remove what dead writers left, and give a replaced checkpoint its name back.

    Args:
        root: The folder of checkpoints; the caller is its only writer.
        keep: Name of the temporary folder that is being written.
        own: Remove only temporary folders with this in their name; None: all there is.
    """
    for path in sorted(root.glob(".step_*")):
        dead = ".gone-" in path.name or (".tmp-" in path.name and path.name != keep)
        if dead and (own is None or own in path.name):
            with contextlib.suppress(OSError):
                files.remove_tree(path)
    for path in root.glob(".latest.tmp-*") if own is None else ():
        with contextlib.suppress(OSError):
            files.disk.remove(path)
    _give_names_back(root)


def recover(run_dir: str | Path) -> None:
    """Before a run goes on: a checkpoint whose replacement never came gets its name back."""
    root = Path(run_dir) / "checkpoints"
    if list(root.glob(f"step_*{REPLACED}*")):
        with contextlib.suppress(OSError), files.only_writer(root):
            _give_names_back(root)


def _give_names_back(root: Path) -> None:
    for path in sorted(root.glob(f"step_*{REPLACED}*")):
        with contextlib.suppress(OSError):
            plain = plain_folder(path)
            discard(path) if plain.exists() else files.move(path, plain)
