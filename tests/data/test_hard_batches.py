"""A permutation of each window that puts neighbours into one batch; any window by itself."""

import pickle

import numpy as np
import pytest

from clipkit.data.hard_batches import HardBatches, _pack
from clipkit.errors import ConfigError, DataError


def make(neighbours, group=4, batches=4, seed=0):
    return HardBatches(neighbours, group=group, batches=batches, seed=seed)


def random_graph(size, k, seed=0):
    return np.random.default_rng(seed).integers(-1, size, (size, k))


def clusters(size, of):
    """Each sample's neighbours are the others of its cluster: ids s, s + size / of, ..."""
    return np.arange(size)[:, None] % (size // of) + np.arange(of) * (size // of)


def together(ids, order, batch, neighbours):
    """Share of the (sample, neighbour) pairs inside the window that are in one batch."""
    place = {int(i): p // batch for p, i in enumerate(ids[order])}
    same = [
        place[int(i)] == place[int(j)]
        for i in ids
        for j in neighbours[i]
        if int(j) in place and i != j
    ]
    return np.mean(same)


@pytest.mark.parametrize("group", [2, 3, 7, 1000])
@pytest.mark.parametrize("batch", [1, 5, 8, 64])
def test_every_place_of_the_window_once(group, batch):
    size = 4 * batch
    hard = make(random_graph(3 * size, 5), group=group)
    for ids in (np.arange(size), np.random.default_rng(1).integers(0, 3 * size, size)):
        order = hard.permutation(0, ids, batch)
        assert sorted(order.tolist()) == list(range(size))


def test_planted_clusters_meet():
    size, batch = 1024, 128
    neighbours = clusters(4 * size, 4)  # a window holds about a quarter of each
    ids = np.random.default_rng(0).permutation(4 * size)[:size]
    order = make(neighbours, batches=8).permutation(3, ids, batch)
    assert together(ids, np.arange(size), batch, neighbours) < 0.2
    assert together(ids, order, batch, neighbours) == 1


def test_large_clusters_come_in_groups():
    """Of 16 alike, groups of 4: a pair is in a batch at least where it is in a group."""
    size, batch = 1024, 64
    neighbours = np.take_along_axis(
        clusters(size, 16),
        np.random.default_rng(1).permuted(np.tile(np.arange(16), (size, 1)), axis=1),
        1,
    )
    ids = np.random.default_rng(0).permutation(size)
    order = make(neighbours, batches=16).permutation(0, ids, batch)
    for cluster in range(64):
        batches = np.flatnonzero(ids[order] % 64 == cluster) // batch
        assert set(np.unique(batches, return_counts=True)[1] % 4) == {0}


def slow_groups(hard, ids, size):
    """The rule of the class, read off: first free sample, its nearest free neighbours."""
    free, groups = dict.fromkeys(range(len(ids))), []
    where = {}
    for at, number in enumerate(ids.tolist()):
        where.setdefault(number, at)
    while free:
        head = next(iter(free))
        group = [head]
        for near in hard.neighbours[ids[head]].tolist():
            at = where.get(near)
            if at in free and at not in group and len(group) < size:
                group.append(at)
        for at in group:
            del free[at]
        groups.append(group)
    return groups


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("repeated", [False, True])
def test_groups_are_the_nearest_free_neighbours(size, repeated):
    hard = make(random_graph(300, 8))
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 300, 200) if repeated else rng.permutation(300)[:200]
    assert hard._groups(ids, size) == slow_groups(hard, ids, size)


def test_samples_are_read_in_blocks(monkeypatch):
    hard, ids = make(random_graph(300, 8)), np.random.default_rng(3).permutation(300)
    whole, digest = hard._groups(ids, 4), hard.parameters()
    monkeypatch.setattr("clipkit.data.hard_batches._CHUNK", 17)
    assert hard._groups(ids, 4) == whole
    assert make(random_graph(300, 8)).parameters() == digest


def test_pack_lends_later_singles_and_keeps_the_rest_in_order():
    groups = [[0, 9], [1], [2, 7, 8], [3], [4], [5, 10], [6], [11]]
    # batch of 4: [2, 7, 8] does not fit after three samples; 3 comes first
    assert _pack(groups, 4) == [0, 9, 1, 3, 2, 7, 8, 4, 5, 10, 6, 11]


def test_pack_takes_no_single_that_was_placed_and_cuts_where_none_is_left():
    assert _pack([[0], [1, 2], [3, 4], [5, 6, 7]], 4) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert _pack([[0], [1, 2, 3], [4, 5], [6, 7, 8], [9], [10], [11]], 4) == [
        *(0, 1, 2, 3),
        *(4, 5, 9, 10),
        *(6, 7, 8, 11),
    ]


def test_no_group_lies_across_two_batches_while_singles_are_left():
    batch = 10
    neighbours = np.full((1000, 1), -1)
    neighbours[:600:3, 0] = np.arange(1, 600, 3)
    hard = make(np.hstack([neighbours, np.where(neighbours < 0, -1, neighbours + 1)]), batches=100)
    ids = np.random.default_rng(0).permutation(1000)
    packed = np.array(_pack(hard._groups(ids, 3), batch))
    batch_of = np.empty(1000, dtype=int)
    batch_of[packed] = np.arange(1000) // batch
    for group in hard._groups(ids, 3):
        assert len({int(batch_of[i]) for i in group}) == 1
    assert len([g for g in hard._groups(ids, 3) if len(g) == 3]) > 50


def test_groups_larger_than_a_batch_are_of_a_batch():
    hard, ids = make(clusters(64, 32), group=1000), np.random.default_rng(0).permutation(64)
    packed = ids[hard.permutation(0, ids, 8)].reshape(8, 8)
    assert all(len(set(row % 2)) == 1 for row in packed)  # 2 clusters of 32
    expected = make(clusters(64, 32), group=8).permutation(0, ids, 8)
    assert np.array_equal(hard.permutation(0, ids, 8), expected)


def test_ranks_are_balanced():
    """Unshuffled, the first ranks would have the groups of a batch, the last ones the singles."""
    batch = 512
    neighbours = np.full((4096, 1), -1)
    grouped = np.arange(4096) % batch < batch // 2
    neighbours[grouped, 0] = np.flatnonzero(grouped) ^ 1
    order = make(neighbours, batches=8).permutation(0, np.arange(4096), batch)
    ranks = grouped[order].reshape(8, 8, batch // 8)  # (batches, ranks, rows)
    assert (abs(ranks.mean(axis=(0, 2)) - 0.5) < 0.1).all()


def test_a_window_is_a_function_of_seed_and_number():
    neighbours, ids = random_graph(256, 4), np.random.default_rng(0).permutation(256)
    first = make(neighbours).permutation(5, ids, 64)
    other = make(neighbours)
    for window in (9, 1, 5):
        last = other.permutation(window, ids, 64)
    assert np.array_equal(first, last)
    assert not np.array_equal(first, make(neighbours, seed=1).permutation(5, ids, 64))
    assert not np.array_equal(first, make(neighbours).permutation(6, ids, 64))


def test_no_neighbours_shuffles_batches_only():
    for neighbours in (np.full((64, 3), -1), np.empty((64, 0), dtype=int)):
        order = make(neighbours).permutation(0, np.arange(64), 16)
        assert np.array_equal(np.sort(order.reshape(4, 16), axis=1).ravel(), np.arange(64))


@pytest.mark.parametrize("layout", ["C", "F"])
def test_a_mapped_file_is_sent_as_its_path(tmp_path, layout):
    neighbours = np.asarray(random_graph(50_000, 8), order=layout)
    np.save(tmp_path / "neighbours.npy", neighbours)
    mapped = np.load(tmp_path / "neighbours.npy", mmap_mode="r")
    hard = make(mapped)
    sent = pickle.dumps(hard)
    assert len(sent) < 2000
    again, ids = pickle.loads(sent), np.arange(1000)
    assert np.array_equal(again.neighbours, neighbours)
    assert np.array_equal(again.permutation(1, ids, 250), make(neighbours).permutation(1, ids, 250))
    assert hard.parameters() == again.parameters() == make(neighbours).parameters()
    view = pickle.loads(pickle.dumps(make(mapped[100:])))  # a part of the file is sent itself
    assert np.array_equal(view.neighbours, neighbours[100:])


def test_parameters_follow_the_content():
    neighbours = random_graph(100, 4)
    other = neighbours.copy()
    other[99, 3] = (other[99, 3] + 2) % 100
    digests = [
        str(make(a, **changes).parameters())
        for a, changes in [
            (neighbours, {}),
            (other, {}),
            (neighbours.reshape(200, 2), {}),
            (neighbours, {"group": 5}),
            (neighbours, {"batches": 5}),
            (neighbours, {"seed": 5}),
        ]
    ]
    assert len(set(digests)) == 6
    assert make(neighbours.astype(np.int32)).parameters() == make(neighbours).parameters()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (-2, "names sample -2, the data set has ids 0 to 9"),
        (10, "names sample 10, the data set has ids 0 to 9"),
    ],
)
def test_ids_out_of_range_are_refused(wrong, named):
    neighbours = random_graph(10, 2)
    make(neighbours).check(10)
    neighbours[9, 1] = wrong
    with pytest.raises(DataError, match=named):
        make(neighbours).check(10)


def test_neighbours_of_other_data_are_refused():
    with pytest.raises(
        DataError, match="of 10 samples, the data set has 11; run clipkit-data mine"
    ):
        make(random_graph(10, 2)).check(11)


@pytest.mark.parametrize("array", [np.zeros((4, 2)), np.zeros(4, dtype=int)])
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(DataError, match="give integers of shape"):
        make(array)


@pytest.mark.parametrize("changes", [{"group": 1}, {"batches": 1}])
def test_settings_without_an_effect_are_refused(changes):
    with pytest.raises(ConfigError, match="changes nothing"):
        make(random_graph(10, 2), **changes)
