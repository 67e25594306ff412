"""A pure function of (seed, position), the same for every layout; each place once an epoch."""

import numpy as np
import pytest

from clipkit.data.order import Order, batch_checksum
from clipkit.errors import DataError

COUNTS = [37, 5, 90, 1, 64, 13]
B, C = 16, 8


def make(counts=COUNTS, **changes):
    return Order(
        counts, **{"seed": 3, "global_batch_size": B, "streams": C, "window": 7, **changes}
    )


def ids(order, step, rows=slice(0, B)):
    epoch, places = order.line_positions(step, rows)
    return order.locate(epoch, places)[2]


def epoch_ids(order, epoch):
    steps = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
    return np.concatenate([ids(order, step) for step in steps])


@pytest.mark.parametrize("streams", [1, 2, 8, 16, None])
@pytest.mark.parametrize("window", [1, 7, 4096])
def test_each_sample_at_most_once_and_nearly_all(streams, window):
    order = make(streams=streams, window=window)
    for epoch in (0, 1, 5):
        seen = epoch_ids(order, epoch)
        assert len(set(seen.tolist())) == len(seen) == order.batches_per_epoch * B
        assert seen.min() >= 0 and seen.max() < sum(COUNTS)
        assert sum(COUNTS) - len(seen) < B + order.streams


def test_each_epoch_and_each_seed_differs():
    first, second = epoch_ids(make(), 0), epoch_ids(make(), 1)
    assert (first != second).mean() > 0.9
    assert (first != epoch_ids(make(seed=4), 0)).mean() > 0.9
    assert set(first.tolist()) != set(second.tolist())  # others are left out


def test_windows_are_reshuffled_each_epoch_seed_and_stream():
    one = make([200], window=200)  # one shard: nothing but the windows can differ
    assert (epoch_ids(one, 0) != epoch_ids(one, 1)).mean() > 0.9
    assert (epoch_ids(one, 0) != epoch_ids(make([200], window=200, seed=4), 0)).mean() > 0.9
    within = [tuple((one._window(0, s, 0)).tolist()) for s in range(C)]
    assert len(set(within)) == C


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
def test_ranks_share_the_same_global_batch(world):
    local = B // world
    for step in (0, 3, 40):
        parts = [ids(make(), step, slice(r * local, (r + 1) * local)) for r in range(world)]
        assert np.concatenate(parts).tolist() == ids(make(), step).tolist()


def test_seekable():
    walked = make()
    for step in range(3 * walked.batches_per_epoch):
        assert ids(walked, step).tolist() == ids(make(), step).tolist()


def test_locate_agrees_with_the_counts():
    order = make()
    shard, index, number = order.locate(
        2, order.line_positions(2 * order.batches_per_epoch, slice(0, B))[1]
    )
    assert (index < np.array(COUNTS)[shard]).all() and (index >= 0).all()
    assert number.tolist() == [sum(COUNTS[:s]) + i for s, i in zip(shard, index)]


def test_every_place_on_the_line_is_one_sample():
    shard, index, number = make().locate(1, np.arange(sum(COUNTS)))
    assert sorted(number.tolist()) == list(range(sum(COUNTS)))


def test_substitute_stays_in_its_stream_and_visits_all_of_it():
    order = make()
    length = order.stream_length
    for place in (0, length - 1, length, 5 * length + 3, C * length - 1):
        others = [order.substitute(place, attempt) for attempt in range(length)]
        assert others[0] == place
        assert {o // length for o in others} == {place // length}
        assert len(set(others)) == length


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"counts": [3, 4]}, "7 samples are fewer than one global batch of 16"),
        ({"counts": []}, "0 samples"),
        ({"streams": 3}, "data.streams=3 must divide train.global_batch_size=16"),
    ],
)
def test_refused(changes, named):
    with pytest.raises(DataError, match=named):
        make(**changes)


def test_exactly_one_batch_is_enough():
    order = make([B])
    assert order.batches_per_epoch == 1
    assert sorted(epoch_ids(order, 0).tolist()) == list(range(B))


def test_augmentation_seeds_are_distinct_and_none_is_that_of_the_order():
    order = make()
    seeds = {tuple(order.sample_seed(step, row)) for step in range(20) for row in range(B)}
    assert len(seeds) == 20 * B


def test_seek_in_a_large_set():
    order = Order([9_700] * 41_000, seed=0, global_batch_size=32_768)
    epoch, places = order.line_positions(3 * order.batches_per_epoch + 11_111, slice(512, 640))
    shard, index, number = order.locate(epoch, places)
    assert epoch == 3 and len(set(number.tolist())) == 128
    assert number.max() < 41_000 * 9_700 and (index < 9_700).all()
    fresh = Order([9_700] * 41_000, seed=0, global_batch_size=32_768)
    again = fresh.line_positions(3 * order.batches_per_epoch + 11_111, slice(512, 640))[1]
    assert again.tolist() == places.tolist()


def test_parameters_are_what_gives_a_position_its_meaning():
    assert make().parameters() == {"seed": 3, "global_batch_size": B, "streams": C, "window": 7}


def test_checksum_adds_over_ranks_and_sees_order():
    numbers = np.arange(100, 116)
    whole = batch_checksum(numbers, 0)
    parts = batch_checksum(numbers[:8], 0) + batch_checksum(numbers[8:], 8)
    assert parts % 2**31 == whole
    assert batch_checksum(numbers[::-1], 0) != whole
