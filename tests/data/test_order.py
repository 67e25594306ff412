"""A pure function of (seed, position), the same for every layout; each place once an epoch."""

import hashlib
import pickle

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


def batch(order, step, rows=slice(0, B)):
    """(epochs, places) of rows of a global batch."""
    return order.draw(step * order.batch + np.arange(rows.start, rows.stop))


def ids(order, step, rows=slice(0, B)):
    return order.locate(*batch(order, step, rows))[2]


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


def checksum(order, steps, rows):
    """Of epochs, places, parts, rows and ids of some batches."""
    digest = hashlib.sha256()
    for step in steps:
        drawn = batch(order, step, rows)
        for values in (*drawn, *order.locate(*drawn)):
            digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def test_order_of_a_run_begun_before_is_kept():
    """Golden: a change here makes every checkpoint continue with other samples."""
    assert checksum(make(), range(40), slice(0, B)) == "be5c892fe277d416"
    plain = Order(COUNTS, seed=3, global_batch_size=B)
    assert checksum(plain, range(40), slice(4, 12)) == "a805e7f4cba4ea1c"
    wide = Order([1000] * 50, seed=123456789012, global_batch_size=512, streams=512, window=31)
    assert checksum(wide, [0, 1, 96, 97, 98, 5000], slice(0, 512)) == "7e27fb97141f0b8e"
    large = Order([9_700] * 41_000, seed=0, global_batch_size=32_768)
    steps = [11_111, 3 * large.batches_per_epoch + 11_111]
    assert checksum(large, steps, slice(512, 640)) == "ae9bb739a7fe8a80"


def slow_draw(order, number):
    """The docstring, one draw at a time."""
    epoch, within = divmod(number, order.batches_per_epoch * order.batch)
    t, row = divmod(within, order.batch)
    stream, i = divmod(row, order.batch // order.streams)
    window, inside = divmod(t * (order.batch // order.streams) + i, order.window)
    begin = window * order.window
    length = min(order.window, order.stream_length - begin)
    generator = np.random.Generator(np.random.PCG64([order.seed, epoch, stream, window]))
    return epoch, stream * order.stream_length + begin + generator.permutation(length)[inside]


@pytest.mark.parametrize(
    "shape", [{}, {"streams": 16}, {"window": 500}, {"streams": 1, "window": 500}]
)
def test_draws_in_any_order_and_of_several_epochs_in_one_call(shape):
    order = make(**shape)
    numbers = np.random.default_rng(0).integers(0, 5 * sum(COUNTS), 300)
    epoch, place = order.draw(numbers)
    assert list(zip(epoch, place)) == [slow_draw(order, int(n)) for n in numbers]
    assert len(set(epoch.tolist())) >= 5
    singly = [order.locate(int(e), np.array([p])) for e, p in zip(epoch, place)]
    assert np.array_equal(order.locate(epoch, place), np.array(singly)[:, :, 0].T)


def test_no_draws():
    order = make()
    epoch, place = order.draw(np.arange(0))
    assert len(epoch) == len(place) == 0
    assert all(len(x) == 0 for x in order.locate(epoch, place))


def test_caches_are_bounded_change_nothing_and_stay_behind():
    order = make(window=1, streams=8)  # more windows in one call than are kept
    numbers = np.arange(6 * sum(COUNTS))
    order.locate(*order.draw(numbers))
    assert len(order._windows) == 64 and len(order._epochs) == 4
    again = pickle.loads(pickle.dumps(order))
    assert not again._windows and not again._epochs
    assert np.array_equal(again.draw(numbers[::-1]), np.array(order.draw(numbers))[:, ::-1])


def test_locate_agrees_with_the_counts():
    order = make()
    part, row, number = order.locate(*batch(order, 2 * order.batches_per_epoch))
    assert (row < np.array(COUNTS)[part]).all() and (row >= 0).all()
    assert number.tolist() == [sum(COUNTS[:s]) + i for s, i in zip(part, row)]


def test_parts_without_samples_are_never_named():
    order = make([0, 20, 0, 0, 30, 0])
    part, row, number = order.locate(0, np.arange(50))
    assert sorted(zip(part.tolist(), row.tolist())) == [(1, i) for i in range(20)] + [
        (4, i) for i in range(30)
    ]
    assert sorted(number.tolist()) == list(range(50))


def test_every_place_on_the_line_is_one_sample():
    shard, index, number = make().locate(1, np.arange(sum(COUNTS)))
    assert sorted(number.tolist()) == list(range(sum(COUNTS)))


@pytest.mark.parametrize("counts", [COUNTS, [B], [100] * 40, [2**61, 2**61, 2**62 - 1]])
def test_substitutes_are_places_of_the_line_and_none_comes_twice(counts):
    order, total = make(counts), sum(counts)
    tried = min(total, 300)
    for place in (0, total // 3, total - 1):
        others = [order.substitute(place, attempt) for attempt in range(tried)]
        assert others[0] == place and min(others) >= 0 and max(others) < total
        assert len(set(others)) == tried  # where these are all, every sample may stand in


def test_substitutes_come_from_far_away():
    order = make([100] * 40)
    for place in range(0, 4000, 77):
        line = [order.substitute(place, attempt) // 100 for attempt in range(20)]
        assert len(set(line)) >= 15  # of 40 shards
        assert len(set(line[:4])) == 4


def test_a_block_of_bad_neighbours_has_as_many_substitutes():
    order = make([100] * 40)
    instead = {order.substitute(place, 1) for place in range(500, 700)}
    assert len(instead) == 200 and not instead & set(range(500, 700))


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


def test_seek_in_a_large_set():
    counts = np.random.default_rng(0).integers(9_000, 10_600, 41_000)
    order = Order(counts, seed=0, global_batch_size=32_768, streams=512)
    number = (30 * order.batches_per_epoch + 11_111) * 32_768
    epoch, places = order.draw(number + np.arange(512, 1024))
    part, row, ids = order.locate(epoch, places)
    assert set(epoch.tolist()) == {30} and len(set(ids.tolist())) == 512
    assert ids.max() < counts.sum() and (row < counts[part]).all()
    assert len(order._windows) <= 2 * 512 / 64  # no more than the streams of these rows
    assert len(order._epochs) == 1
    assert len(pickle.dumps(order)) < 1e6


def test_ids_up_to_the_largest():
    counts = [2**61, 2**61, 2**62 - 1]
    order = Order(counts, seed=0, global_batch_size=8, window=16)
    last = order.batches_per_epoch * 8 - 1
    epoch, places = order.draw(np.array([0, last // 2, last]))
    part, row, ids = order.locate(epoch, places)
    assert not epoch.any() and places.max() > 2**62 and (places >= 0).all()
    assert [sum(counts[: int(p)]) + int(r) for p, r in zip(part, row)] == ids.tolist()
    everywhere = order.locate(0, np.array([2**63 - 2]))
    assert everywhere[0][0] == order._line(0)[0][-1]


def test_parameters_are_what_gives_a_position_its_meaning():
    assert make().parameters() == {"seed": 3, "global_batch_size": B, "streams": C, "window": 7}


def test_checksum_adds_over_ranks_and_sees_order():
    numbers = np.arange(100, 116)
    whole = batch_checksum(numbers, 0)
    parts = batch_checksum(numbers[:8], 0) + batch_checksum(numbers[8:], 8)
    assert parts % 2**31 == whole
    assert batch_checksum(numbers[::-1], 0) != whole
