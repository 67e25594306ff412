"""Copies of finished checkpoints in a remote folder, through fsspec: the manifest comes last.

A checkpoint there counts when its manifest can be read and all files have their sizes; what is
fetched is verified byte by byte. A failure here never fails a save.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipkit.checkpoint import files
from clipkit.checkpoint.retention import Retention
from clipkit.checkpoint.verify import (
    MANIFEST,
    checkpoint_folder,
    list_checkpoints,
    manifest_files,
    read_json,
    step_of,
    verify_checkpoint,
)
from clipkit.checkpoint.write import discard
from clipkit.errors import CheckpointError, ConfigError

_FOLDER = re.compile(r"^step_(\d{8,})$")
_PATIENCE_S = 3600.0  # at the end of a run, for the last copies


def is_url(text: str) -> bool:
    """Whether a path is one for fsspec."""
    return "://" in text


class RemoteFolder:
    """The checkpoints of one run in a folder of a remote file system.

    Args:
        url: As fsspec knows it, e.g. s3://bucket/runs/x or a plain path.

    Raises:
        ConfigError: fsspec cannot open such a URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = re.sub(r"(?<=://)[^/]*@", "", url)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.remote={self.url}: {str(error)[:200]}") from None
        self._fs.use_listings_cache = False
        self._root = self._root.rstrip("/")

    def steps(self) -> list[int]:
        """Of all checkpoint folders there, complete or not, in order."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._root):
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, False)]
        return sorted(int(m.group(1)) for m in map(_FOLDER.match, names) if m)

    def manifest(self, step: int) -> dict[str, Any] | None:
        """The manifest of one that is complete, by the sizes of its files."""
        try:
            manifest = json.loads(self._fs.cat_file(self._path(step, MANIFEST)))
            for name, entry in manifest_files(manifest, self._path(step, MANIFEST)).items():
                if self._fs.size(self._path(step, name)) != entry["bytes"]:
                    return None
        except (OSError, ValueError, KeyError, CheckpointError, RecursionError):
            return None
        return manifest

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint that verifies; one of the same step there stops counting first."""
        step, manifest = step_of(folder), verify_checkpoint(folder)
        target = self._path(step, MANIFEST)
        self._fs.makedirs(self._path(step), exist_ok=True)
        if self._fs.exists(target):
            self._fs.rm_file(target)
        for name in manifest["files"]:
            self._fs.put_file(str(folder / name), self._path(step, name))
        self._fs.put_file(str(folder / MANIFEST), target)
        if self.manifest(step) != manifest:
            raise OSError(f"{self.url}: the copy of {folder.name} is not what was sent")

    def remove(self, step: int) -> None:
        """Remove one, its manifest first."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(step, MANIFEST))
        self._fs.rm(self._path(step), recursive=True)

    def read(self, step: int, name: str) -> Iterator[bytes]:
        """A file of a checkpoint in blocks."""
        with self._fs.open(self._path(step, name), "rb") as file:
            while block := file.read(files.BLOCK):
                yield block

    def _path(self, step: int, name: str = "") -> str:
        return "/".join(filter(None, [self._root, f"step_{step:08d}", name]))


def run_url(remote: str, run_dir: str | Path) -> str:
    """Where a run's checkpoints lie below `checkpoint.remote`."""
    return f"{remote.rstrip('/')}/{Path(run_dir).resolve().name}"


def open_remote(url: str) -> tuple[RemoteFolder, list[int]]:
    """A run's remote folder and its steps, or one checkpoint of it and its step.

    Raises:
        CheckpointError: Nothing is there, or it cannot be listed.
    """
    parent, _, last = url.rstrip("/").rpartition("/")
    match = _FOLDER.match(last)
    folder = RemoteFolder(parent if match else url)
    try:
        steps = [step for step in folder.steps() if match is None or step == int(match.group(1))]
    except Exception as error:  # of any file system
        raise CheckpointError(f"{folder.url}: cannot be listed ({_reason(error)})") from None
    if not steps:
        raise CheckpointError(f"{folder.url}: no checkpoint there; give a run's folder")
    return folder, steps


def verify_remote(folder: RemoteFolder, step: int) -> int:
    """Read every file of a remote checkpoint and compare it; returns their number.

    Raises:
        CheckpointError: It is incomplete or damaged, or cannot be read.
    """
    where = f"{folder.url}/step_{step:08d}"
    manifest = folder.manifest(step)
    if manifest is None:
        raise CheckpointError(f"{where} is not a complete checkpoint")
    for name, entry in manifest["files"].items():
        try:
            digest = hashlib.sha256()
            for block in folder.read(step, name):
                digest.update(block)
        except Exception as error:  # of any file system
            raise CheckpointError(f"{where}/{name}: cannot be read: {_reason(error)}") from None
        if digest.hexdigest() != entry.get("sha256"):
            raise CheckpointError(
                f"{where}/{name} was changed after it was written (sha256 differs)"
            )
    return len(manifest["files"])


def refuse_copies(remote: str, run_dir: str | Path) -> None:
    """A new run must not mix its copies with those of an earlier one of its name.

    Raises:
        ConfigError: There are some.
    """
    folder = RemoteFolder(run_url(remote, run_dir))
    try:
        steps = folder.steps()
    except Exception:  # of any file system; an alarm says so at the first copy
        return
    if steps:
        raise ConfigError(
            f"checkpoint.remote: {folder.url} holds checkpoints of an earlier run (step "
            f"{steps[-1]}); set run.resume=auto to go on from there, or another run.name"
        )


def fetch_newest(remote: str, run_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Copy the newest remote checkpoint that verifies into a run folder that has none.

    Args:
        remote: `checkpoint.remote`.
        run_dir: The run folder.

    Returns:
        The checkpoint, None where none is valid; and why newer ones were passed over.

    Raises:
        CheckpointError: The remote folder cannot be listed.
    """
    folder = RemoteFolder(run_url(remote, run_dir))
    skipped: list[str] = []
    try:
        steps = folder.steps()
    except Exception as error:  # of any file system
        raise CheckpointError(
            f"{folder.url}: cannot be listed ({_reason(error)}); try again, or unset "
            f"checkpoint.remote"
        ) from None
    for step in reversed(steps):
        try:
            return _fetch(folder, step, checkpoint_folder(run_dir, step)), skipped
        except Exception as error:  # of any file system
            skipped.append(f"{folder.url}/step_{step:08d}: {_reason(error)}")
    return None, skipped


def _fetch(folder: RemoteFolder, step: int, final: Path) -> Path:
    manifest = folder.manifest(step)
    if manifest is None:
        raise CheckpointError("not a complete checkpoint")
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")
    with files.only_writer(final.parent):
        files.disk.make_folder(temporary)
        try:
            for name in manifest["files"]:
                files.write_file(temporary / name, folder.read(step, name))
            files.write_file(temporary / MANIFEST, [json.dumps(manifest, indent=1).encode()])
            verify_checkpoint(temporary)
            files.flush(temporary)
            if final.exists():  # damaged, or nothing would be fetched
                discard(final)
            files.move(temporary, final)
        except Exception:
            with contextlib.suppress(OSError):
                files.remove_tree(temporary)
            raise
    return final


class Mirror:
    """A thread that makes the remote folder hold what the run folder holds, and prunes alike.

    Args:
        run_dir: The run folder.
        remote: `checkpoint.remote`.
        retention: What to keep there.
        scores: Step -> value of its metric, kept up to date by the owner.
        tell: See `Saver`.
    """

    def __init__(
        self,
        run_dir: Path,
        remote: str,
        retention: Retention,
        scores: dict[int, float],
        tell: Callable[[str, str, dict[str, Any]], None],
    ) -> None:
        self._run, self._retention, self._scores, self._tell = run_dir, retention, scores, tell
        self._folder = RemoteFolder(run_url(remote, run_dir))
        self._lock, self._wanted = threading.Lock(), False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is a new checkpoint; returns at once."""
        with self._lock:
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="clipkit-mirror", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Look once more, for what an earlier life or try left out, and wait until it is there.

        A remote folder that does not answer keeps nobody for ever.
        """
        self.wake()
        thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE_S)
        if thread is not None and thread.is_alive():
            self._alarm(f"{self._folder.url}: no end of the copy in {_PATIENCE_S:.0f} s")

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                self._wanted = False
            self._sync()

    def _sync(self) -> None:
        try:
            here = list_checkpoints(self._run)
            newest = step_of(here[-1]) if here else -1
            # later ones are of a past that the run went back from: they neither count nor go
            steps = [step for step in self._folder.steps() if step <= newest]
            held = {step: self._folder.manifest(step) for step in steps}
            for folder in reversed(here):
                self._send(folder, held)
            stay = self._retention.reasons(
                list(held), lambda step: held[step] is not None, self._scores
            )
            for step in held.keys() - stay.keys():
                self._folder.remove(step)
        except Exception as error:  # of any file system: the next save tries again
            self._alarm(f"{self._folder.url}: {_reason(error)}")

    def _send(self, folder: Path, held: dict[int, dict[str, Any] | None]) -> None:
        """Upload a checkpoint that is not there; `held` learns of it."""
        step = step_of(folder)
        try:
            if held.get(step) is None or held[step] != read_json(folder / MANIFEST):
                self._folder.upload(folder)
                held[step] = self._folder.manifest(step)
                text = f"copied {folder.name} to {self._folder.url}"
                self._tell("uploaded", text, {"step": step, "checkpoint": folder.name})
        except Exception as error:  # of any file system, and of a damaged checkpoint here
            if folder.exists():  # else it was pruned in between
                self._alarm(f"{folder.name} was not copied to {self._folder.url}: {_reason(error)}")

    def _alarm(self, text: str) -> None:
        self._tell("upload_failed", text, {})


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error or type(error).__name__)[:300]
