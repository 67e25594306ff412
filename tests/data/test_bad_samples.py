"""Bad samples are counted, and too many end the run."""

import json

import pytest

from clipkit.data.bad_samples import BadRecord, BadSampleCounter, BadTotals, check_lost
from clipkit.errors import DataError


def test_counts_by_cause_and_shard():
    counter = BadSampleCounter(1.0)
    counter.add(8, [("/d/a.tar", "no_image"), ("/d/a.tar", "no_caption"), ("/d/b.tar", "no_image")])
    counter.add(8, [])
    assert (counter.seen, counter.total) == (16, 3)
    assert counter.causes == {"no_image": 2, "no_caption": 1}
    assert counter.shards == {"/d/a.tar": 2, "/d/b.tar": 1}


def test_one_bad_file_in_the_first_batch_is_forgiven():
    BadSampleCounter(0.01).add(4, [("a.tar", "x")])


def test_over_the_limit_names_rate_cause_and_worst_shard():
    counter = BadSampleCounter(0.01)
    counter.add(100, [("/d/good.tar", "no_caption")] + [("/d/worst.tar", "unreadable_image")] * 9)
    with pytest.raises(DataError) as caught:
        counter.add(0, [("/d/worst.tar", "unreadable_image")])
    text = str(caught.value)
    assert "11 of 100 samples" in text and "10 unreadable_image" in text
    assert "worst shards: worst.tar, good.tar" in text and "data.max_bad_fraction=0.01" in text


def test_the_share_counts_once_enough_was_seen():
    counter = BadSampleCounter(0.01)
    counter.add(100_000, [("a", "x")] * 1000)
    with pytest.raises(DataError):
        counter.add(0, [("a", "x")])


def test_zero_tolerates_nothing():
    with pytest.raises(DataError):
        BadSampleCounter(0.0).add(4, [("a", "x")])


def test_one_rank_alone_ends_the_run_only_when_it_is_too_much_for_all():
    alone, of_four = BadSampleCounter(0.01), BadSampleCounter(0.01, world_size=4)
    bad = [("a", "x")] * 30
    with pytest.raises(DataError):
        alone.add(1000, bad)
    of_four.add(1000, bad)  # 30 of 4,000 if the others have none
    with pytest.raises(DataError, match="^at least 41 of 4000 samples"):
        of_four.add(0, [("a", "x")] * 11)


def test_what_was_before_a_restart_counts():
    counter = BadSampleCounter(0.01)
    counter.before = BadTotals.from_json({"seen": 5000, "causes": {"y": 50}, "shards": {"b": 50}})
    counter.add(10, [])
    with pytest.raises(DataError, match=r"^51 of 5010 .*50 y, 1 x; worst shards: b, a"):
        counter.add(0, [("a", "x")])
    assert counter.total == 1


def test_each_record_reaches_the_sink_and_gets_the_step_it_does_not_know():
    counter, records = BadSampleCounter(0.0), []
    counter.sink = records.append
    known = BadRecord("a", "x", key="k", step=3, batch_row=1, substitute=9)
    with pytest.raises(DataError):  # over the limit: they are listed all the same
        counter.add(4, [known, ("b", "y")], step=5)
    assert records == [known, BadRecord("b", "y", step=5)]


def test_totals_join_and_come_back_from_json():
    one, two = BadTotals(10), BadTotals(20)
    one.count("a", "x", 3)
    two.count("a", "y")
    both = BadTotals.from_json(json.loads(json.dumps(one.plus(two).as_json())))
    assert (both.seen, both.total, both.causes, both.shards) == (30, 4, {"x": 3, "y": 1}, {"a": 4})
    assert BadTotals.from_json(None) == BadTotals()


def test_only_the_worst_shards_are_kept():
    totals = BadTotals()
    for i in range(1000):
        totals.count(f"{i}.tar", "x", 1 + (i == 77))
    kept = totals.as_json()
    assert len(kept["shards"]) == 200 and kept["shards"]["77.tar"] == 2
    assert kept["causes"] == {"x": 1001}


class TestLost:
    """Samples known to be missing are a share of what there should be."""

    lost = [("/d/a.tar", "missing_samples", 4), ("/d/b.tar", "missing_samples", 6)]

    def test_within_the_limit(self):
        totals = check_lost(self.lost, 90, 0.1)
        assert totals.total == 10 and totals.shards["/d/b.tar"] == 6

    def test_over_it(self):
        with pytest.raises(DataError, match=r"10 of 100 .*10 missing_samples.*b\.tar, a\.tar"):
            check_lost(self.lost, 90, 0.099)

    def test_nothing_lost_passes_any_limit(self):
        assert check_lost([], 0, 0.0).total == 0
