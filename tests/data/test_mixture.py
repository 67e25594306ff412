"""Shares, epochs and places of several sources, the same for every layout and reached directly."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest

from clipkit.data.hard_batches import HardBatches
from clipkit.data.mixture import Mixture, _interleave, _quotas, order_for_mixture
from clipkit.data.order import Order
from clipkit.errors import ConfigError, DataError

SOURCES = [[37, 5, 90, 1, 64, 13], [300], [11, 2], [80, 70, 60]]
SIZES = [sum(s) for s in SOURCES]
TOTAL = sum(SIZES)
WEIGHTS = [5, 3, 0.4, 1.6]
B = 16
WHOLE = slice(0, B)


def orders(sources=SOURCES, seed=3, **options):
    options = {"streams": 4, "window": 7, **options}
    return [order_for_mixture(c, seed=seed, number=i, **options) for i, c in enumerate(sources)]


def hard_batches(size=TOTAL, batches=5, seed=1):
    neighbours = np.random.default_rng(2).integers(-1, size, (size, 6))
    return HardBatches(neighbours, group=3, batches=batches, seed=seed)


def make(seed=3, weights=WEIGHTS, hard=None, **options):
    return Mixture(
        orders(seed=seed, **options), seed=seed, global_batch_size=B, weights=weights, hard=hard
    )


def alone(hard=None, weights=None, seed=3):
    order = Order(SOURCES[0], seed=seed, global_batch_size=B, streams=8, window=7)
    return Mixture([order], seed=seed, global_batch_size=B, weights=weights, hard=hard)


def fields(drawn):
    return np.stack([drawn.source, drawn.epoch, drawn.place, drawn.part, drawn.row, drawn.id])


def walk(mixture, steps):
    """(6, steps * B) of whole global batches."""
    return np.concatenate([fields(mixture.rows(step, WHOLE)) for step in range(steps)], axis=1)


MAKERS = {
    "one": alone,
    "one hard": lambda: alone(hard=hard_batches(SIZES[0])),
    "several": make,
    "several hard": lambda: make(hard=hard_batches()),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_the_same_global_batches(maker, world):
    local = B // world
    ranks, whole = [maker() for _ in range(world)], maker()
    for step in (0, 3, 40, 1001):
        rows = [slice(r * local, (r + 1) * local) for r in range(world)]
        parts = [fields(m.rows(step, where)) for m, where in zip(ranks, rows)]
        assert np.array_equal(np.concatenate(parts, axis=1), fields(whole.rows(step, WHOLE)))


def test_any_position_is_reached_directly(maker):
    walked = walk(maker(), 90).reshape(6, 90, B)
    mixture = maker()
    for step in np.random.default_rng(0).permutation(90):
        assert np.array_equal(fields(mixture.rows(int(step), WHOLE)), walked[:, step])
    assert np.array_equal(fields(maker().rows(64, WHOLE)), walked[:, 64])


def test_a_worker_has_the_same_order(maker):
    mixture = maker()
    before = fields(mixture.rows(7, WHOLE))
    sent = pickle.loads(pickle.dumps(mixture))
    assert not sent._hard_windows
    assert np.array_equal(fields(sent.rows(7, WHOLE)), before)


def test_every_place_at_most_once_an_epoch_and_nearly_all(maker):
    mixture = maker()
    source, epoch, place = walk(mixture, 400)[:3]
    drawn = list(zip(source, epoch, place))
    assert len(set(drawn)) == len(drawn)
    for s, order in enumerate(mixture.orders):
        size = int(order.counts.sum())
        numbers = Counter(epoch[source == s].tolist())
        assert len(numbers) >= 4
        # hard windows may hold draws of the last two epochs back
        assert {numbers[e] for e in range(max(numbers) - 1)} == {
            order.batches_per_epoch * order.batch
        }
        assert 0 <= size - numbers[0] < order.batch + order.streams


def test_ids_name_one_sample_each_over_all_sources(maker):
    mixture = maker()
    counts = [order.counts for order in mixture.orders]
    begins = np.cumsum([0] + [c.sum() for c in counts])
    for source, _, _, part, row, number in walk(mixture, 50).T:
        assert 0 <= row < counts[source][part]
        assert number == begins[source] + counts[source][:part].sum() + row


@pytest.mark.parametrize("weights", [None, [1], [0.25]])
def test_one_source_is_its_order(weights):
    order, mixture = alone().orders[0], alone(weights=weights)
    assert mixture.batches_per_epoch == order.batches_per_epoch
    for step in (0, 5, 7 * order.batches_per_epoch + 3):
        drawn = mixture.rows(step, slice(3, 12))
        epoch, places = order.draw(step * B + np.arange(3, 12))
        assert (drawn.source == 0).all() and (drawn.epoch == epoch).all()
        assert np.array_equal(drawn.place, places)
        located = np.stack([drawn.part, drawn.row, drawn.id])
        assert np.array_equal(located, order.locate(epoch, places))


def test_each_source_goes_through_its_own_order_without_gaps():
    mixture = make()
    assert mixture.batches_per_epoch is None
    source, epoch, place = walk(mixture, 520)[:3]  # over one block of slots
    for s, order in enumerate(mixture.orders):
        mine = source == s
        expected = order.draw(np.arange(mine.sum()))
        assert np.array_equal([epoch[mine], place[mine]], expected)


def test_a_position_far_away_continues_the_count():
    """The closed form against counting: blocks of 8192 slots, the quota of each source in each."""
    mixture = make()
    quota = np.bincount(mixture.rows(0, slice(0, 8192)).source)
    blocks = 10**9
    drawn = mixture.rows(blocks * 8192 // B + 3, WHOLE)
    before = np.bincount(mixture.rows(0, slice(0, 3 * B)).source)
    for s, order in enumerate(mixture.orders):
        mine = drawn.source == s
        first = blocks * quota[s] + before[s]
        expected = order.draw(first + np.arange(mine.sum()))
        assert np.array_equal([drawn.epoch[mine], drawn.place[mine]], expected)


@pytest.mark.parametrize(
    "weights", [WEIGHTS, None, [1, 1, 1, 1], [9000, 1.2, 1.2, 1.2], [1, 0, 2, 0]]
)
def test_every_batch_and_every_stretch_holds_each_share(weights):
    mixture = make(weights=weights)
    shares = np.array(SIZES if weights is None else weights, dtype=float)
    shares = shares / shares.sum()
    source = walk(mixture, 700)[0]
    taken = np.cumsum(source == np.arange(4)[:, None], axis=1)
    for length in (B, 100, 8192):
        held = taken[:, length:] - taken[:, :-length]
        # a slot at either end of a stretch; quotas are rounded to one in 8192
        assert (abs(held - shares[:, None] * length) < 2 + length / 8192).all()


@pytest.mark.parametrize("weights", [[90] + [1] * 10, [1] * 10 + [90], [1] * 20, range(1, 8)])
def test_no_source_is_ahead_or_behind_by_a_slot(weights):
    """Slots merely sorted by their ideal times put the small sources next to each other."""
    slots = _quotas(weights, len(weights))
    taken = np.arange(len(weights))[:, None] == _interleave(slots)
    ideal = slots[:, None] * np.arange(1, 8193) / 8192
    assert abs(np.cumsum(taken, axis=1) - ideal).max() < 1  # Tijdeman's bound
    assert np.array_equal(taken.sum(axis=1), slots)


def test_quotas_are_whole_and_nearest():
    assert _quotas([1, 1, 1], 3).tolist() == [2731, 2731, 2730]
    assert _quotas([0.1] * 10, 10).sum() == 8192
    assert _quotas([3, 1], 2).tolist() == [6144, 2048]
    assert _quotas([400_000_000, 100_000], 2).tolist() == [8190, 2]


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ([1, 1], "2 weights for 4 sources"),
        ([1, -2, 1, 1], r"sources\[1\].weight=-2"),
        ([1, 1, float("nan"), 1], r"sources\[2\].weight=nan"),
        ([0, 0, 0, 0], "every weight is 0"),
        ([1, 1, 1, 1e-6], r"sources\[3\] has 3.3e-07 of the weights' sum, less than 1/8192"),
    ],
)
def test_weights_refused(weights, named):
    with pytest.raises(ConfigError, match=named):
        make(weights=weights)


def test_sources_are_permuted_apart():
    first, second = (order_for_mixture([500], seed=3, number=n) for n in (0, 1))
    other_run = order_for_mixture([500], seed=4, number=1)
    assert first.seed == 3 and second.seed not in (3, other_run.seed)
    assert (first.draw(np.arange(400))[1] != second.draw(np.arange(400))[1]).mean() > 0.9
    with pytest.raises(AssertionError, match="share a seed"):
        Mixture([first, first], seed=3, global_batch_size=B)


@pytest.mark.parametrize("size", [1, 7, 13, 100, 4095, 9000, 100_000])
def test_a_source_of_any_size_takes_part(size):
    order = order_for_mixture([size], seed=3, number=0)
    drawn = order.batches_per_epoch * order.batch
    assert size - drawn < order.streams <= max(1, size // 4096)
    epoch, place = order.draw(np.arange(drawn))
    assert not epoch.any() and len(set(place.tolist())) == drawn


def test_few_draws_come_from_many_streams():
    order = order_for_mixture([10_000] * 100, seed=3, number=0)
    assert order.streams == 64
    places = order.draw(5_000 + np.arange(64))[1]
    assert sorted(places // order.stream_length) == list(range(64))
    assert order_for_mixture([10_000] * 100, seed=3, number=0, streams=16).streams == 16


def test_a_source_without_samples_is_named():
    with pytest.raises(DataError, match=r"data.sources\[2\] holds no samples"):
        order_for_mixture([0, 0], seed=3, number=2)


def test_substitutes_are_of_their_own_source_and_epoch(maker):
    mixture = maker()
    for step in (0, 77):
        drawn = mixture.rows(step, WHOLE)
        for i in range(0, B, 3):
            order = mixture.orders[drawn.source[i]]
            begin = sum(int(o.counts.sum()) for o in mixture.orders[: drawn.source[i]])
            assert mixture.substitute(drawn, i, 0) == (
                drawn.source[i],
                drawn.part[i],
                drawn.row[i],
                drawn.id[i],
            )
            tried = min(order.counts.sum(), 20)
            others = [mixture.substitute(drawn, i, a) for a in range(tried)]
            assert len({number for *_, number in others}) == tried
            for attempt, (source, part, row, number) in enumerate(others):
                place = order.substitute(int(drawn.place[i]), attempt)
                expected = order.locate(int(drawn.epoch[i]), np.array([place]))
                assert source == drawn.source[i]
                assert [part, row, number - begin] == [int(x[0]) for x in expected]


def test_upcoming_parts_are_those_touched_in_order_of_use(maker):
    mixture, rows = maker(), slice(4, 12)
    told = mixture.upcoming(30, rows, 6)
    drawn = [mixture.rows(step, rows) for step in range(30, 36)]
    for s in range(len(mixture.orders)):
        parts = np.concatenate([d.part[d.source == s] for d in drawn])
        assert told[s].tolist() == list(dict.fromkeys(parts.tolist()))
    assert all(len(parts) == 0 for parts in mixture.upcoming(30, rows, 0))


def test_hard_batches_permute_each_window_and_nothing_else():
    plain, hard = walk(make(), 40), walk(make(hard=hard_batches()), 40)
    for window in range(8):
        here = slice(window * 5 * B, (window + 1) * 5 * B)
        rows = sorted(map(tuple, plain[:, here].T))
        assert sorted(map(tuple, hard[:, here].T)) == rows
        order = hard_batches().permutation(window, plain[5, here], B)
        assert np.array_equal(plain[:, here][:, order], hard[:, here])


def test_hard_windows_of_one_source_end_with_its_epochs():
    """13 batches an epoch in windows of 5: 5, 5 and 3, so that each epoch holds what it would."""
    hard = hard_batches(SIZES[0])
    plain, moved = alone(), alone(hard=hard)
    count = plain.batches_per_epoch
    assert count == 13
    for epoch in (0, 1, 7):
        steps = range(epoch * count, (epoch + 1) * count)
        ids, hard_ids = (
            np.stack([m.rows(step, WHOLE).id for step in steps]) for m in (plain, moved)
        )
        assert len(np.unique(hard_ids)) == count * B
        for number, (begin, stop) in enumerate([(0, 5), (5, 10), (10, 13)]):
            window, flat = 3 * epoch + number, ids[begin:stop].ravel()
            expected = flat[hard.permutation(window, flat, B)]
            assert np.array_equal(expected, hard_ids[begin:stop].ravel())


def test_hard_batches_bring_planted_neighbours_together():
    size, batches = SIZES[0], 6
    mates = np.random.default_rng(5).permutation(size).reshape(-1, 2)  # pairs of samples
    neighbours = np.full((size, 1), -1)
    neighbours[mates[:, 0], 0], neighbours[mates[:, 1], 0] = mates[:, 1], mates[:, 0]
    hard = HardBatches(neighbours, group=2, batches=batches, seed=0)
    shares = []
    for mixture in (alone(), alone(hard=hard)):
        ids = walk(mixture, batches)[5].reshape(batches, B)
        window = set(ids.ravel().tolist())
        pairs = [pair for pair in mates.tolist() if window.issuperset(pair)]
        assert len(pairs) > 10
        shares.append(np.mean([any(set(p) <= set(b.tolist()) for b in ids) for p in pairs]))
    assert shares[0] < 0.5 and shares[1] == 1


def test_hard_batches_of_another_data_set_are_refused():
    with pytest.raises(DataError, match="is of 5 samples, the data set has 733"):
        make(hard=hard_batches(5))


def test_hard_windows_kept_are_few():
    mixture = make(hard=hard_batches())
    walk(mixture, 50)
    assert len(mixture._hard_windows) == 4


def test_augmentation_seeds_are_distinct():
    mixture = make()
    seeds = {tuple(mixture.sample_seed(step, row)) for step in range(20) for row in range(B)}
    assert len(seeds) == 20 * B
    assert mixture.sample_seed(5, 6) == [3, 1, 5, 6]  # a run begun before keeps its pixels


def test_parameters_are_json_and_tell_orders_apart():
    variants = [
        alone(),
        alone(seed=4),
        alone(hard=hard_batches(SIZES[0])),
        alone(hard=hard_batches(SIZES[0], batches=4)),
        make(),
        make(seed=4),
        make(weights=None),
        make(streams=2),
        make(window=8),
        make(hard=hard_batches()),
        make(hard=hard_batches(seed=2)),
    ]
    texts = [json.dumps(m.parameters(), sort_keys=True) for m in variants]
    assert len(set(texts)) == len(texts)
    assert json.loads(texts[4]) == make().parameters()
    assert make(weights=[2 * w for w in WEIGHTS]).parameters() == make().parameters()


def test_parameters_of_one_source_go_on_with_an_earlier_checkpoint():
    saved = {"seed": 3, "global_batch_size": B, "streams": 8, "window": 7}
    assert {k: v for k, v in alone(weights=[2]).parameters().items() if v is not None} == saved
