"""Bad samples are counted, and too many end the run."""

import pytest

from clipkit.data.bad_samples import BadSampleCounter
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
    assert "11 of 111" in text and "10 unreadable_image" in text
    assert "worst shards: worst.tar, good.tar" in text and "data.max_bad_fraction=0.01" in text


def test_the_share_counts_once_enough_was_seen():
    counter = BadSampleCounter(0.01)
    counter.add(100_000, [("a", "x")] * 1000)
    with pytest.raises(DataError):
        counter.add(0, [("a", "x")])


def test_zero_tolerates_nothing():
    with pytest.raises(DataError):
        BadSampleCounter(0.0).add(4, [("a", "x")])
