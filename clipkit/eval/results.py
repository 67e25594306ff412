"""Results on disk: one JSON and one file of records a task, each in place whole or not at all.

    OUT/<model>/<data set>.<kind>.json             metrics, intervals, details, provenance
    OUT/<model>/<data set>.<kind>.samples.jsonl    one record a line

A result carries the key of everything it depends on; the same key is not computed twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.checkpoint.files import sha256, write_text
from clipkit.errors import DataError
from clipkit.eval.base import EvalResult, Record

_SAMPLES = ".samples.jsonl"


@dataclass
class StoredResult:
    """A result read from its JSON.

    Attributes:
        path: The JSON file.
        data: Its content: EvalResult.to_json() and "model", "pretrained", "kind", "key", "step"
            (None where the checkpoint has none), "weights_hash", "versions", ...
    """

    path: Path
    data: dict[str, Any]

    @property
    def model(self) -> str:
        """Name of the checkpoint, as the folder shows it."""
        return str(self.data["model_name"])

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.data["dataset"])

    @property
    def kind(self) -> str:
        """Kind of the evaluator ("zero_shot")."""
        return str(self.data["kind"])

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> value."""
        return dict(self.data["metrics"])

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Metric -> (low, high) at 95 %."""
        return {k: (float(v[0]), float(v[1])) for k, v in self.data["intervals"].items()}

    @property
    def macro(self) -> dict[str, str]:
        """Metric -> field over whose values it is averaged."""
        return dict(self.data.get("macro", {}))

    def records(self) -> list[Record]:
        """The per-sample records.

        Raises:
            DataError: Missing, changed since it was written, or no JSON lines.
        """
        path = samples_path(self.path)
        try:
            if sha256(path) != self.data.get("samples_sha256"):
                raise DataError(f"{path} is not the file that {self.path.name} was written with")
            return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None


def result_path(out: Path, model_name: str, dataset: str, kind: str) -> Path:
    """Where a result stands."""
    return out / model_name / f"{dataset.replace('/', '_')}.{kind}.json"


def samples_path(path: Path) -> Path:
    """The records that belong to a result's JSON."""
    return path.with_name(path.name.removesuffix(".json") + _SAMPLES)


def write_result(path: Path, result: EvalResult, facts: dict[str, Any]) -> StoredResult:
    """Records first, then the JSON that names their hash: a JSON that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples_path(path)
    write_text(samples, "".join(_line(record) + "\n" for record in result.records))
    data = {**result.to_json(), **facts, "samples_sha256": sha256(samples)}
    write_text(path, json.dumps(data, indent=1, allow_nan=False))
    return read_result(path)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def read_result(path: Path) -> StoredResult:
    """Read one result.

    Raises:
        DataError: Missing, or no result of clipkit.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
    needed = ("dataset", "kind", "model_name", "metrics", "intervals", "key")
    missing = [k for k in needed if not isinstance(data, dict) or k not in data]
    if missing:
        raise DataError(f"{path}: is no result of clipkit eval: it has no '{missing[0]}'")
    return StoredResult(path, data)


def read_results(place: str | Path) -> list[StoredResult]:
    """The result at `place`, or all results in the folder and below it, by path.

    Raises:
        DataError: Nothing there.
    """
    place = Path(place)
    if place.is_file():
        return [read_result(place)]
    paths = [p for p in sorted(place.rglob("*.json")) if samples_path(p).is_file()]
    if not paths:
        raise DataError(
            f"{place}: holds no results; write some with clipkit eval run --out {place}"
        )
    return [read_result(path) for path in paths]
