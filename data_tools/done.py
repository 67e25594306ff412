"""Done markers: what of a run need not be done again.

`OUT/.done/<shard>.<hash>.json` belongs to one function and one shard. It counts while the code of
the function, its parameters and the shard are the same and the outputs it lists lie there with
their sizes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clipkit
from clipkit.data.shards import is_url
from clipkit.errors import DataError

FOLDER = ".done"
DATA = Path(clipkit.__file__).parent / "data"  # what reads and decodes for every tool


def code_hash(module: str) -> str:
    """Hash of clipkit's version and data room, `tables.py`, and the module or, of a tool that is a
    folder, all of it.

    Nothing is imported.
    """
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, f"{module} has no source file"
    file = Path(spec.origin)
    one_file = file.parent == Path(__file__).parent  # data_tools itself: its tools are not related
    digest = hashlib.sha256(clipkit.__version__.encode())
    own = [file] if one_file else sorted(file.parent.glob("*.py"))
    for source in [*own, *sorted(DATA.glob("*.py")), Path(__file__).with_name("tables.py")]:
        digest.update(f"{source.name}\0".encode() + source.read_bytes())
    return digest.hexdigest()


def shard_identity(shard: str) -> list[Any]:
    """Where a shard lies and which version of it: [path or URL, size, time].

    What is neither a file nor a known URL is told by its name alone.
    """
    if is_url(shard):
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(shard)
            info = files.info(path)
        except Exception:  # each file system raises its own; the task will say what is wrong
            return [shard, None, None]
        time = info.get("ETag") or info.get("mtime") or info.get("created")
        return [shard, info.get("size"), str(time)]
    try:
        stat = os.stat(shard)
    except OSError:
        return [os.path.abspath(shard), None, None]
    return [os.path.abspath(shard), stat.st_size, stat.st_mtime_ns]


def fingerprint(code: str, params: Mapping[str, Any], identity: list[Any]) -> str:
    """Hash of all that the result hangs on."""
    text = json.dumps([code, params, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def marker_path(out: Path, function: str, shard: str) -> Path:
    """One marker per function and shard: a run with other parameters replaces it."""
    place = shard if is_url(shard) else os.path.abspath(shard)
    name = os.path.basename(place)[-100:].replace(os.sep, "_")
    digest = hashlib.sha256(f"{function}\0{place}".encode()).hexdigest()[:16]
    return out / FOLDER / f"{name}.{digest}.json"


def read_done(marker: Path, wanted: str, out: Path) -> dict[str, Any] | None:
    """The result kept in a marker, None if the work must be done (again)."""
    try:
        note = json.loads(marker.read_text(encoding="utf-8"))
        if note["fingerprint"] != wanted:
            return None
        if any((out / name).stat().st_size != size for name, size in note["outputs"].items()):
            return None
        return dict(note["result"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
        return None


def write_done(marker: Path, mark: str, out: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Note a result beside the sizes of its outputs; returns it as it will be read.

    Raises:
        TypeError: The result is not JSON.
        OSError: An output is not there.
        DataError: The marker cannot be written.
    """
    kept: dict[str, Any] = json.loads(json.dumps(dict(result)))
    names = kept.get("outputs", [])
    names = [names] if isinstance(names, str) else names
    sizes = {name: (out / name).stat().st_size for name in names}
    note = {"fingerprint": mark, "outputs": sizes, "result": kept}
    temporary = marker.with_name(f".{marker.name}.tmp-{os.getpid()}")
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(note), encoding="utf-8")
        os.replace(temporary, marker)
    except OSError as error:
        raise DataError(f"{marker}: cannot be written: {error.strerror or error}") from None
    return kept
