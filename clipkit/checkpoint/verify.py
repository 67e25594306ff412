"""Is this checkpoint whole? Only the manifest decides; `latest` is a convenience for people.

Where a shared file system shows a finished checkpoint late, the reader looks again for a moment. No
clock has a say in which one is chosen. No torch here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.checkpoint.files import sha256
from clipkit.errors import CheckpointError

MANIFEST = "manifest.json"
REPLACED = ".replaced-"  # in the name of one whose step is being written anew
_STEP = re.compile(rf"^step_(\d{{8,}})(?:{re.escape(REPLACED)}\w+)?$")
_PAUSES_S = (0.1, 0.4, 1.5)
_LONG_PAUSES_S = (5.0, 10.0, 20.0, 30.0)  # a client of NFS may believe for a minute what it saw


def read_json(path: Path) -> Any:
    """Parse a checkpoint's JSON file.

    Raises:
        CheckpointError: Missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error)[:200]}") from None


def manifest_files(manifest: Any, where: str | Path) -> dict[str, Any]:
    """File name -> {"bytes", "sha256"} of a manifest; the names lead nowhere else.

    Raises:
        CheckpointError: It is none.
    """
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{where}: lists no files; the checkpoint is damaged")
    for name, entry in files.items():
        if Path(name).name != name or name in ("", "..") or not isinstance(entry, dict):
            raise CheckpointError(f"{where}: '{str(name)[:80]}' is not a plain file entry")
    return files


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Check every file's size and sha256 against the manifest and return the manifest.

    Raises:
        CheckpointError: No manifest, or a listed file is missing, cut short or changed.
    """
    folder = Path(folder)
    try:
        return _verify(folder)
    except OSError as error:  # of a disk that is ill, or it was removed meanwhile
        raise CheckpointError(f"{folder}: cannot be read: {error}") from None


def _verify(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    for name, entry in manifest_files(manifest, folder / MANIFEST).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; use another checkpoint of the run")
        if path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, {entry.get('bytes')} were written"
            )
        if sha256(path) != entry.get("sha256"):
            raise CheckpointError(f"{path} was changed after it was written (sha256 differs)")
    return manifest


def plain_folder(folder: Path) -> Path:
    """A checkpoint's name without the mark of a replaced one."""
    return folder.with_name(folder.name.partition(REPLACED)[0])


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, verified or not; one a step."""
    root = Path(run_dir) / "checkpoints"
    found = [p for p in root.glob("step_*") if _STEP.match(p.name)] if root.is_dir() else []
    there = [p for p in found if p == plain_folder(p) or not plain_folder(p).exists()]
    return sorted(there, key=step_of)


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Step in a checkpoint folder's name."""
    match = _STEP.match(folder.name)
    assert match, folder
    return int(match.group(1))


def checkpoint_step(folder: str | Path) -> int | None:
    """Step of a checkpoint folder by its name; None for any other folder."""
    match = _STEP.match(Path(folder).resolve().name)
    return int(match.group(1)) if match else None


def _pauses(more: tuple[float, ...] = ()) -> Iterator[None]:
    """Looks: one at once, and some more, a little later each."""
    yield
    for pause in (*_PAUSES_S, *more):
        time.sleep(pause)
        yield


def is_complete(folder: Path) -> bool:
    """Whether the manifest and all files it lists are there in their sizes; no file is hashed."""
    try:
        files = read_json(folder / MANIFEST)["files"].items()
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files)
    except (CheckpointError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return False


def wait_for(folder: Path) -> None:
    """Look again, for a minute or so, while a checkpoint that another rank sees is missing."""
    for _ in _pauses(_LONG_PAUSES_S):
        if (folder / MANIFEST).is_file():
            return


def wait_until_visible(run_dir: str | Path) -> None:
    """Look again, for two seconds at most, while the newest checkpoint seems to be on its way.

    It does where `latest` names a newer one than can be seen, or files of the newest are missing.
    """
    root = Path(run_dir) / "checkpoints"
    for _ in _pauses():
        folders = list_checkpoints(run_dir)
        newest = step_of(folders[-1]) if folders else -1
        try:
            match = _STEP.match((root / "latest").read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            match = None
        promised = int(match.group(1)) if match else -1
        if promised <= newest and (not folders or is_complete(folders[-1])):
            return


def newest_valid(run_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Newest checkpoint that verifies, and why newer ones were passed over."""
    wait_until_visible(run_dir)
    skipped: list[str] = []
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            verify_checkpoint(folder)
            return folder, skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint a command means by a run folder or a checkpoint folder, verified.

    Raises:
        CheckpointError: Nothing there, or nothing that verifies.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder; give a run folder, a checkpoint or an exported folder"
        )
    if (path / MANIFEST).is_file() or _STEP.match(path.name):
        verify_checkpoint(path)
        return path
    found, skipped = newest_valid(path)
    if found is None:
        reason = f" ({skipped[0]})" if skipped else ""
        raise CheckpointError(f"{path}: holds no valid checkpoint{reason}")
    return found
