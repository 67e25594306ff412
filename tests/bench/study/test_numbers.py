"""Numbers against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clipkit.bench.study.commands import Places
from clipkit.bench.study.definition import load_study
from clipkit.bench.study.numbers import POOLED, cells, gap, mean_of
from clipkit.bench.study.stored import Results
from clipkit.errors import DataError
from clipkit.eval.base import column
from clipkit.eval.paired import difference, match
from tests.bench.study.conftest import RIGHT, TAGS
from tests.fixtures_results import records, store


def _cells(path):
    study = load_study(path)
    return cells(study, Results(study, Places(path.parent / "out", path.parent)))


def _store_all(tmp_path) -> None:
    for (row, seed), right in RIGHT.items():
        store(tmp_path / "out/eval" / row / seed, "run", records(right, **TAGS))


def test_by_hand(study_file, tmp_path) -> None:
    _store_all(tmp_path)
    plain, tuned, plain_b, tuned_b = _cells(study_file())
    assert (plain.seeds, plain.mean, plain.n) == ({0: 0.25, 1: 0.5}, 0.375, 4)
    assert (tuned.seeds, tuned.mean, plain.gaps) == ({0: 0.75, 1: 0.75}, 0.75, {})
    against = tuned.gaps["plain"]
    assert against.value == 0.375
    assert against.seeds == {0: 0.5, 1: 0.25}
    assert (against.same_sign, against.over) == (2, "items")
    # items with the tag b: s1, s2, s3
    assert plain_b.seeds == pytest.approx({0: 0, 1: 1 / 3})
    assert tuned_b.seeds == pytest.approx({0: 2 / 3, 1: 2 / 3})
    assert (plain_b.n, tuned_b.gaps["plain"].value) == (3, pytest.approx(0.5))


def test_interval_is_that_of_the_per_item_means(study_file, tmp_path) -> None:
    _store_all(tmp_path)
    own = _cells(study_file())[1].gaps["plain"]
    per_item = {r: np.mean([RIGHT[r, "0"], RIGHT[r, "1"]], axis=0) for r in ("plain", "tuned")}
    a, b = (column(records(per_item[r]), "acc1") for r in ("plain", "tuned"))
    assert own.interval == difference(match(a, b)).interval
    assert np.array_equal(per_item["tuned"] - per_item["plain"], [0, 0, 1, 0.5])


def test_the_order_of_items_does_not_matter() -> None:
    forth = records([1, 0, 1, 1])
    value = mean_of({0: column(forth, "acc1"), 1: column(forth[::-1], "acc1")}, "x")
    assert value.values.tolist() == [1, 0, 1, 1]


def test_clusters_are_drawn_together() -> None:
    right, images = [1] * 4 + [0] * 4, ["p"] * 4 + ["q"] * 4
    own, alone = (
        gap(
            {0: column(records(right, **extra), "acc1")},
            {0: column(records([0] * 8, **extra), "acc1")},
            "x",
        )
        for extra in ({"cluster": images}, {})
    )
    assert own.interval == (0.0, 1.0)  # one of two images
    assert alone.interval is not None and alone.interval[0] > 0 and alone.interval[1] < 1


def test_no_mean_of_items_has_an_interval_over_seeds(study_file, tmp_path) -> None:
    for row, shift in (("plain", 0.0), ("tuned", 0.5)):
        for seed, wobble in (("0", 0.0), ("1", 0.1)):
            folder = tmp_path / "out/eval" / row / seed
            metrics = {"gap": 1 - shift - wobble * (row == "tuned")}
            store(folder, "run", records([1]), metrics=metrics)
    metric = {"dataset": "digits", "kind": "zero_shot", "metric": "gap", "better": "lower"}
    plain, tuned = _cells(study_file(metrics=[metric]))
    own = tuned.gaps["plain"]
    half = stats.t.ppf(0.975, 1) * np.std([-0.5, -0.6], ddof=1) / np.sqrt(2)
    assert (own.value, own.over, tuned.n) == (pytest.approx(-0.55), "seeds", None)
    assert own.interval == pytest.approx((-0.55 - half, -0.55 + half))


def test_seeds_of_the_same_sign() -> None:
    base = {s: column(records([1, 1, 1, 0]), "acc1") for s in range(4)}
    rows = ([1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1])  # the last as good
    own = gap({s: column(records(r), "acc1") for s, r in enumerate(rows)}, base, "x")
    assert own.value < 0 and own.same_sign == 2


@pytest.mark.parametrize("short", ["plain", "tuned"])
def test_partial_results(study_file, tmp_path, short) -> None:
    for (row, seed), right in RIGHT.items():
        if (row, seed) != (short, "0"):
            store(tmp_path / "out/eval" / row / seed, "run", records(right, **TAGS))
    tuned = _cells(study_file())[1]
    assert tuned.seeds == ({1: 0.75} if short == "tuned" else {0: 0.75, 1: 0.75})
    assert tuned.gaps["plain"].seeds == {1: 0.25}  # of the seeds that both have


def test_different_items_are_refused(study_file, tmp_path) -> None:
    _store_all(tmp_path)
    store(tmp_path / "out/eval/tuned/1", "run", records([1, 1, 1], tags=TAGS["tags"][:3]))
    with pytest.raises(DataError, match="accuracy, tuned: seeds were evaluated on different items"):
        _cells(study_file())
    store(tmp_path / "out/eval/tuned/0", "run", records([1, 1, 1], tags=TAGS["tags"][:3]))
    with pytest.raises(DataError, match="tuned and plain: were evaluated on different items"):
        _cells(study_file())


def test_cases_are_pooled_by_item_and_drawn_by_image(study_file, tmp_path) -> None:
    for (row, seed), right in RIGHT.items():
        for case, own in (("x", right), ("y", right[::-1])):
            store(tmp_path / "out" / case / row / seed, "run", records(own))
    path = study_file(
        cases=["x", "y"],
        results="{out}/{case}/{row}/{seed}",
        metrics=[{"dataset": "digits", "kind": "zero_shot", "metric": "acc1"}],
    )
    found = _cells(path)
    assert [c.case for c in found] == ["x", "x", "y", "y", POOLED, POOLED]
    pooled = found[-1]
    assert (pooled.n, pooled.mean, pooled.seeds[0]) == (8, 0.75, 0.75)
    # the gaps per image over both cases: (0 + .5, 0 + 1, 1 + 0, .5 + 0) / 2; images are clusters
    images = records([0.25, 0.5, 0.5, 0.25])
    alone = difference(match(column(records([0] * 4), "acc1"), column(images, "acc1")))
    assert pooled.gaps["plain"].value == 0.375
    assert pooled.gaps["plain"].interval == pytest.approx(alone.interval)
