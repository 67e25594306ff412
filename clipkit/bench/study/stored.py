"""Finds the stored results of a study's rows, and in them the items a metric is the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from clipkit.bench.study.commands import Places, values_of
from clipkit.bench.study.definition import Metric, Study
from clipkit.config.parts import suggest
from clipkit.errors import DataError
from clipkit.eval.base import Column, Record, column
from clipkit.eval.results import StoredResult, read_results

Value = Column | float  # items, or a number that is no mean of items


class Results:
    """The results of a study, each read once.

    Args:
        study: Says where they lie.
        places: What its placeholders stand for.
    """

    def __init__(self, study: Study, places: Places) -> None:
        self.study, self.places = study, places
        self._read = cache(_read)
        self._records: dict[Path, list[Record]] = {}

    def value(self, metric: Metric, row: str, cases: Sequence[str], seed: int) -> Value | None:
        """A metric at one seed over the items of all `cases`; None where one has no result.

        Items of several cases are told apart, but drawn together where they are one image.

        Raises:
            DataError: The result lacks the metric, or no item is left by the metric's filters.
        """
        found = {case: self._find(metric, row, case, seed) for case in cases}
        there = {case: result for case, result in found.items() if result is not None}
        if len(there) < len(found):
            return None
        items: list[Record] = []
        for case, result in there.items():
            values = values_of(self.study, row, case, seed)
            filters = {
                name: {self.places.fill(x, values) for x in wanted}
                for name, wanted in metric.filters.items()
            }
            own = [r for r in self._of(result) if metric.metric in r["values"]]
            kept = [r for r in own if _passes(r, filters)]
            if own and not kept:
                raise DataError(f"{result.path}: no item of '{metric.title}' passes its filters")
            items += [_named(r, case) for r in kept] if len(cases) > 1 else kept
        first = next(iter(there.values()))
        if items:
            return column(items, metric.metric, first.macro.get(metric.metric))
        numbers = [self._number(metric, result) for result in there.values()]
        return float(np.mean(numbers))

    def _of(self, result: StoredResult) -> list[Record]:
        if result.path not in self._records:
            self._records[result.path] = result.records()
        return self._records[result.path]

    def _find(self, metric: Metric, row: str, case: str, seed: int) -> StoredResult | None:
        """The result of the last step; None where there is none yet."""
        values = values_of(self.study, row, case, seed)
        place = Path(self.places.fill(self.study.results, values))
        dataset = self.places.fill(metric.dataset, values)
        found = [r for r in self._read(place) if (r.dataset, r.kind) == (dataset, metric.kind)]
        last = max((r.data.get("step") or 0 for r in found), default=0)
        found = [r for r in found if (r.data.get("step") or 0) == last]
        if len(found) > 1:
            raise DataError(
                f"{found[0].path} and {found[1].path} are both '{dataset}' {metric.kind}; name a "
                f"folder in 'results' that holds one of them"
            )
        return found[0] if found else None

    @staticmethod
    def _number(metric: Metric, result: StoredResult) -> float:
        """A metric that is no mean of items."""
        if metric.metric not in result.metrics or metric.filters:
            what = "items with" if metric.filters else "metric"
            hint = suggest(metric.metric, list(result.metrics))
            raise DataError(f"{result.path}: has no {what} '{metric.metric}'{hint}")
        return result.metrics[metric.metric]


def _read(place: Path) -> list[StoredResult]:
    return read_results(place) if place.exists() else []


def _passes(record: Record, filters: dict[str, set[str]]) -> bool:
    for name, wanted in filters.items():
        own = record.get(name)
        if not wanted & {str(x) for x in (own if isinstance(own, list) else [own])}:
            return False
    return True


def _named(record: Record, case: str) -> Record:
    """A record that is told from the same item's in another case."""
    image = record.get("cluster", record["id"])
    return {**record, "id": f"{case}/{record['id']}", "cluster": image}
