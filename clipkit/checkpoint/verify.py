"""Is this checkpoint whole? Only the manifest decides; `latest` is a convenience for people.

No torch here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from clipkit.checkpoint.files import sha256
from clipkit.errors import CheckpointError

MANIFEST = "manifest.json"
_STEP = re.compile(r"^step_(\d{8,})$")


def read_json(path: Path) -> Any:
    """Parse a checkpoint's JSON file.

    Raises:
        CheckpointError: Missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error)[:200]}") from None


def verify_checkpoint(folder: str | Path) -> dict[str, Any]:
    """Check every file's size and sha256 against the manifest and return the manifest.

    Raises:
        CheckpointError: No manifest, or a listed file is missing, cut short or changed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{folder / MANIFEST}: lists no files; the checkpoint is damaged")
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not isinstance(entry, dict):
            raise CheckpointError(
                f"{folder / MANIFEST}: '{str(name)[:80]}' is not a plain file entry"
            )
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; use another checkpoint of the run")
        if path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes, {entry.get('bytes')} were written"
            )
        try:
            digest = sha256(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        if digest != entry.get("sha256"):
            raise CheckpointError(f"{path} was changed after it was written (sha256 differs)")
    return manifest


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, verified or not."""
    root = Path(run_dir) / "checkpoints"
    return sorted(p for p in root.glob("step_*") if _STEP.match(p.name)) if root.is_dir() else []


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


def newest_valid(run_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Newest checkpoint that verifies, and why newer ones were passed over."""
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
