"""Results on disk: one JSON and one file of records a task, each in place whole or not at all.

    OUT/<model>/<data set>.<kind>.json             metrics, intervals, details, provenance
    OUT/<model>/<data set>.<kind>.samples.jsonl    one record a line

A result carries the key of everything it depends on; the same key is not computed twice. What is
read is checked here, once: who uses a StoredResult finds names, finite numbers and whole intervals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

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
            DataError: Missing, changed since it was written, or not one record a line.
        """
        path = samples_path(self.path)
        try:
            if sha256(path) != self.data.get("samples_sha256"):
                raise DataError(f"{path} is not the file that {self.path.name} was written with")
            found = [_parsed(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
        for i, record in enumerate(found, 1):
            for flaw in _flaws_of_record(record, self.macro):
                raise DataError(f"{path}: line {i}: {flaw}; evaluate again")
        return found


def result_path(out: Path, model_name: str, dataset: str, kind: str) -> Path:
    """Where a result stands."""
    return out / model_name / f"{dataset.replace('/', '@')}.{kind}.json"


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


def _parsed(text: str) -> Any:
    """JSON as the standard has it, without NaN and infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


def is_number(x: Any) -> TypeGuard[float]:
    """Whether a value read from JSON is a number that a float can hold."""
    largest = sys.float_info.max
    return isinstance(x, int | float) and not isinstance(x, bool) and -largest <= x <= largest


def _is_interval(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(map(is_number, x)) and x[0] <= x[1]


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "metrics": (is_number, "a finite number"),
    "intervals": (_is_interval, "two finite numbers, the lower first"),
    "counts": (is_number, "a finite number"),
    "macro": (lambda x: isinstance(x, str), "the name of a field"),
}


def _flaws(data: dict[str, Any]) -> Iterator[str]:
    """What users of a result would stumble over."""
    for part, (fits, what) in _ENTRIES.items():
        entries = data.get(part, {})
        if not isinstance(entries, dict):
            yield f"'{part}' is no mapping of metrics"
            continue
        yield from (f"{part}: {k!r} is not {what}" for k, v in entries.items() if not fits(v))


def _flaws_of_record(record: Any, macro: dict[str, str]) -> Iterator[str]:
    """The same of one record, whose metrics are averaged over the fields in `macro`."""
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        yield "is no record with a text as 'id'"
        return
    values = record.get("values")
    if not isinstance(values, dict):
        yield "'values' is no mapping of metrics"
        return
    yield from (f"values: {k!r} is not a finite number" for k in values if not is_number(values[k]))
    labels = {"cluster"} & record.keys() | {macro[name] for name in values.keys() & macro.keys()}
    for name in sorted(labels):
        if isinstance(record.get(name, []), list | dict):
            yield f"{name!r}, which an average needs, is no name"


def read_result(path: Path) -> StoredResult:
    """Read one result.

    Raises:
        DataError: Missing, no result of clipkit, or its metrics are no finite numbers.
    """
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {str(error)[:200]}") from None
    needed = ("dataset", "kind", "model_name", "metrics", "intervals", "key")
    missing = [k for k in needed if not isinstance(data, dict) or k not in data]
    if missing:
        raise DataError(f"{path}: is no result of clipkit eval: it has no '{missing[0]}'")
    for flaw in _flaws(data):
        raise DataError(f"{path}: {flaw}; run the task again")
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
            f"{place}: holds no results; clipkit eval run --out OUT writes OUT/<checkpoint>/"
        )
    return [read_result(path) for path in paths]
