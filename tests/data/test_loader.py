"""Indexed mode: the same global batches for every layout, exact resume, bad samples replaced."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
import pickle

import numpy as np
import pytest
import torch

from clipkit.data.bad_samples import BadSample
from clipkit.data.loader import IndexedLoader, check_state
from clipkit.data.mixture import Mixture, order_for_mixture
from clipkit.data.order import Order
from clipkit.data.sources import ShardSource
from clipkit.errors import CheckpointError, DataError
from tests.fixtures_shards import number_tokenizer, sample_members, small_reader, write_shards

B = 8
COUNTS = [13, 9, 20]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), COUNTS)


def make(shards, *, seed=0, reader=None, batch=B, streams=None, source=None, **options):
    source = source or ShardSource(shards)
    order = Order(source.counts, seed=seed, global_batch_size=batch, window=6, streams=streams)
    mixture = Mixture([order], seed=seed, global_batch_size=batch)
    return IndexedLoader([source], mixture, reader or small_reader(), number_tokenizer, **options)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.ids.tolist() == b.ids.tolist()
        assert torch.equal(a.images["image"], b.images["image"])
        assert torch.equal(a.texts["text"], b.texts["text"])


def joined(parts):
    """Global batches from the ranks' lists."""
    ids = [torch.cat([p.ids for p in step]).tolist() for step in zip(*parts)]
    images = [torch.cat([p.images["image"] for p in step]) for step in zip(*parts)]
    return ids, torch.stack(images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_global_batches_do_not_depend_on_the_layout(shards, world, workers):
    steps = 7  # into the second epoch
    reference_ids, reference_images = joined([take(make(shards), steps)])
    parts = [
        take(make(shards, rank=r, world_size=world, workers=workers), steps) for r in range(world)
    ]
    ids, images = joined(parts)
    assert ids == reference_ids
    assert torch.equal(images, reference_images)  # augmentation too


def test_samples_are_what_their_ids_say(shards):
    batch = take(make(shards), 1)[0]
    assert (
        batch.images["image"].shape == (B, 3, 8, 8) and batch.images["image"].dtype == torch.uint8
    )
    assert batch.texts["text"].tolist() == [[[i]] for i in batch.ids.tolist()]


def test_augmentation_differs_between_epochs(shards):
    loader = make(shards)
    seen = {}
    differs = 0
    for batch in take(loader, 2 * loader.batches_per_epoch):
        for number, image in zip(batch.ids.tolist(), batch.images["image"]):
            differs += number in seen and not torch.equal(seen[number], image)
            seen[number] = image
    assert differs > 20


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_each_step_is_the_tail(shards, workers):
    steps = 7
    whole = take(make(shards), steps)
    for done in range(0, steps, 3 if workers else 1):
        first = make(shards, workers=workers)
        take(first, done)
        state = first.state_dict()
        assert state["step"] == done
        second = make(shards)
        second.load_state_dict(state)
        same(take(second, steps - done), whole[done:])


def test_state_holds_no_layout(shards):
    states = [make(shards, world_size=w, workers=n).state_dict() for w, n in ((1, 0), (4, 2))]
    assert states[0] == states[1]


class TestOtherState:
    """A position means nothing for other data or another order."""

    def test_other_data(self, shards, tmp_path):
        state = make(shards).state_dict()
        with pytest.raises(CheckpointError, match="data.train is not the data set"):
            make(write_shards(tmp_path, [13, 9, 21])).load_state_dict(state)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [({"seed": 5}, "seed is 5, was 0"), ({"batch": 4}, "global_batch_size is 4, was 8")],
    )
    def test_other_order(self, shards, changes, named):
        with pytest.raises(CheckpointError, match=named):
            make(shards, **changes).load_state_dict(make(shards).state_dict())

    def test_other_mode(self, shards):
        own = make(shards).state_dict()
        with pytest.raises(CheckpointError, match="data.mode=streaming"):
            check_state({**own, "mode": "streaming"}, own)


class TestBadSamples:
    """Replaced, counted, and too many of them end the run."""

    bad = (1, 2, 3, 15, 30)

    @pytest.fixture
    def damaged(self, tmp_path):
        return write_shards(tmp_path, COUNTS, self.bad)

    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (2, 2)])
    def test_replacement_does_not_depend_on_the_layout(self, shards, damaged, world, workers):
        steps = 5
        reference = take(make(damaged), steps)
        whole = take(make(shards), steps)
        for got, wanted in zip(reference, whole):
            for a, b in zip(got.ids.tolist(), wanted.ids.tolist()):
                assert (a == b) == (b not in self.bad)  # the order does not slide
                assert a not in self.bad
        loaders = [make(damaged, rank=r, world_size=world, workers=workers) for r in range(world)]
        parts = [take(loader, steps) for loader in loaders]
        assert joined(parts)[0] == [b.ids.tolist() for b in reference]
        assert sum(loader.bad.total for loader in loaders) == self.counted(damaged, steps)

    @staticmethod
    def counted(damaged, steps):
        loader = make(damaged)
        take(loader, steps)
        assert set(loader.bad.causes) == {"unreadable_image"} and loader.bad.seen == steps * B
        assert loader.bad.total >= 5
        return loader.bad.total

    def test_too_many_name_the_worst_shard(self, tmp_path):
        damaged = write_shards(tmp_path, COUNTS, tuple(range(13, 20)))
        with pytest.raises(
            DataError, match=r"unusable.*worst shards: 001\.tar.*data\.max_bad_fraction"
        ):
            take(make(damaged, max_bad_fraction=0.002, streams=1), 10)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_nothing_but_bad_samples_ends_at_once_in_one_line(self, tmp_path, workers):
        damaged = write_shards(tmp_path, [10], tuple(range(10)))
        with pytest.raises(DataError, match="samples in a row are unusable") as caught:
            take(make(damaged, workers=workers), 1)
        assert "\n" not in str(caught.value) and "000.tar" in str(caught.value)

    def test_shard_shrunk_or_gone_after_indexing(self, tmp_path):
        for harm, cause in (
            (lambda p: os.truncate(p, 5000), "changed_shard"),
            (os.remove, "unreadable_shard"),
        ):
            paths = write_shards(tmp_path, [20, 20])
            loader = make(paths, streams=1, max_bad_fraction=1.0)
            harm(paths[0])
            take(loader, 3)
            assert loader.bad.causes[cause] > 0 and set(loader.bad.shards) == {paths[0]}

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_substitute_is_recorded_with_its_own_id(self, shards, damaged, workers):
        whole = take(make(shards), 5)
        loader, records = make(damaged, workers=workers), []
        loader.bad.sink = records.append
        batches = take(loader, 5)
        moved = {
            (step, row)
            for step in range(5)
            for row in np.flatnonzero(batches[step].ids != whole[step].ids).tolist()
        }
        assert {(r.step, r.row) for r in records} == moved and len(moved) >= 3
        for batch in batches:  # what was trained is what its id says
            assert batch.texts["text"].flatten().tolist() == batch.ids.tolist()
        by_place = {}
        for record in records:
            by_place.setdefault((record.step, record.row), []).append(record)
        for (step, row), group in by_place.items():
            assert group[0].key == f"{whole[step].ids[row]:06d}"  # the one that was drawn
            assert {r.substitute for r in group} == {int(batches[step].ids[row])}
            drawn = loader.mixture.rows(step, slice(0, B))  # the next usable one of its stream
            assert loader.mixture.substitute(drawn, row, len(group))[3] == group[0].substitute
            assert {r.cause for r in group} == {"unreadable_image"}
            assert all(r.shard in damaged and int(r.key) in self.bad for r in group)
        assert len(records) == loader.bad.total >= len(self.bad)

    def test_a_substitute_is_augmented_as_the_one_it_stands_for(self, shards, damaged):
        seeds = []

        class Spy(type(small_reader())):
            def read(self, members, sample_id, rng, key=""):
                seeds.append(copy.deepcopy(rng).integers(1 << 62))
                return super().read(members, sample_id, rng, key)

        loader = make(damaged, reader=Spy(small_reader().views))
        take(loader, 5)
        assert loader.bad.total > 4
        assert len(seeds) == 5 * B + loader.bad.total and len(set(seeds)) == 5 * B

    def test_counts_survive_a_restart(self, damaged):
        whole, first = (make(damaged, max_bad_fraction=1.0) for _ in range(2))
        take(whole, 10)
        take(first, 4)
        second = make(damaged, workers=2, max_bad_fraction=1.0)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        take(second, 6)
        assert second.state_dict()["bad"] == whole.state_dict()["bad"]
        assert second.bad.total < whole.bad.total  # its own; the rest came with the state

    def test_the_limit_holds_over_restarts(self, damaged):
        loader = make(damaged, max_bad_fraction=0.01)
        state = loader.state_dict()
        state["bad"] = {"seen": 0, "causes": {"x": 10}, "shards": {"/far/old.tar": 10}}
        loader.load_state_dict(state)
        with pytest.raises(DataError, match=r"10 x.*worst shards: old\.tar"):
            take(loader, 5)


class Planted:
    """A source whose samples are told, not read; remembers what it was asked."""

    notes, lost = ["planted"], []

    def __init__(self, counts, name="planted", bad=()):
        self.counts, self.name, self.bad = np.array(counts), name, bad
        self.manifest, self.asked, self.told = f"{name}{counts}", [], []

    def part_name(self, part):
        return f"{self.name}-{part}"

    def key(self, part, row):
        return f"{part}/{row}"

    def members(self, part, row, wanted, max_bytes):
        self.asked.append((part, row, wanted, max_bytes))
        if (part, row) in self.bad:
            raise BadSample("planted_fault")
        number = int(self.counts[:part].sum()) + row
        return dict(data for name, data in sample_members(number, 1) for data in [(name[7:], data)])

    def prefetch(self, parts):
        self.told.append(list(parts))


def mixed(sources, seed=0, weights=None, **options):
    orders = [
        order_for_mixture(s.counts, seed=seed, number=n, window=6) for n, s in enumerate(sources)
    ]
    mixture = Mixture(orders, seed=seed, global_batch_size=B, weights=weights)
    return IndexedLoader(sources, mixture, small_reader(), number_tokenizer, **options)


class TestSeveralSources:
    """A mixture draws from each by weight; a bad sample's substitute comes from its own source."""

    def test_shares_ids_and_layouts(self):
        def sources():
            return [Planted([30, 30], "a"), Planted([5], "b")]

        batches = take(mixed(sources(), weights=[1, 3]), 20)
        ids = torch.cat([b.ids for b in batches])
        assert abs(int((ids >= 60).sum()) - 120) <= 1 and int(ids.max()) < 65
        parts = [take(mixed(sources(), weights=[1, 3], rank=r, world_size=2), 20) for r in (0, 1)]
        assert joined(parts)[0] == [b.ids.tolist() for b in batches]

    def test_substitutes_and_records(self):
        sources = [Planted([30], "a"), Planted([8], "b", bad=[(0, 3)])]
        loader, records = mixed(sources, max_bad_fraction=1.0), []
        loader.bad.sink = records.append
        ids = torch.cat([b.ids for b in take(loader, 20)]).tolist()
        assert 33 not in ids and records
        assert {(r.source, r.shard, r.key) for r in records} == {("b", "b-0", "0/3")}
        assert all(r.substitute >= 30 for r in records)

    def test_no_epochs_and_notes_of_all(self):
        loader = mixed([Planted([30], "a"), Planted([8], "b")])
        assert loader.batches_per_epoch is None and loader.notes == ["planted", "planted"]

    def test_the_state_names_the_source_that_differs(self):
        def state_of(*sources, **options):
            return mixed(sources, **options).state_dict()

        own = state_of(Planted([30], "a"), Planted([8], "b"))
        loader = mixed([Planted([30], "a"), Planted([8], "b")])
        loader.load_state_dict(json.loads(json.dumps(own)))
        with pytest.raises(CheckpointError, match="source 'b' is not the data set"):
            other = Planted([8], "b")
            other.manifest = "else"
            loader.load_state_dict(state_of(Planted([30], "a"), other))
        with pytest.raises(CheckpointError, match=r"weights\.0 is 0\.\d+, was 0\.5"):
            loader.load_state_dict(state_of(Planted([30], "a"), Planted([8], "b"), weights=[1, 1]))
        with pytest.raises(CheckpointError, match="the data order differs"):
            loader.load_state_dict(make(None, source=Planted([30])).state_dict())


def test_sources_hear_what_comes_next():
    source = Planted([4] * 40)
    loader = make(None, source=source, prefetch_steps=16)
    batches = take(loader, 9)
    assert len(source.told) == 2  # at step 0 and 8
    read = [part for part, *_ in source.asked]
    assert set(read) <= set(source.told[0]) and source.told[0][0] == read[0]
    quiet = Planted([4] * 40)
    take(make(None, source=quiet), 2)
    assert not quiet.told and len(batches) == 9


def test_only_what_the_reader_wants_is_asked_for():
    source, reader = Planted([20]), small_reader()
    take(make(None, source=source, reader=reader), 1)
    assert {asked[2:] for asked in source.asked} == {(reader.wanted, reader.max_bytes)}


class TestLost:
    """What the sources know to be missing is held against the limit before the first step."""

    def test_too_much_ends_before_the_first_step(self):
        source = Planted([90])
        source.lost = [("/d/cut.tar", "missing_samples", 10)]
        with pytest.raises(DataError) as caught:
            make(None, source=source, max_bad_fraction=0.09)
        assert "10 of 100 samples" in str(caught.value)
        assert "10 missing_samples; worst shards: cut.tar" in str(caught.value)
        assert not source.asked

    def test_little_is_told(self):
        source = Planted([90])
        source.lost = [("/d/cut.tar", "missing_samples", 10)]
        loader = make(None, source=source, max_bad_fraction=0.11)
        assert loader.lost.total == 10 and "missing: 10 of 100" in loader.notes[-1]


def test_errors_of_a_worker_arrive_as_one_line(shards):
    class Broken(Planted):
        def members(self, part, row, wanted, max_bytes):
            raise DataError("the shard cache is full")

    for workers in (0, 1):
        with pytest.raises(DataError, match="^the shard cache is full$"):
            take(make(None, source=Broken([20]), workers=workers), 1)


def test_workers_may_be_spawned(shards):
    dataset = make(shards)._batches
    again = pickle.loads(pickle.dumps(dataset))
    assert again[2][0].ids.tolist() == dataset[2][0].ids.tolist()


def resident():
    """Bytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat_over_epochs(tmp_path):
    """One 64 x 64 image kept per sample would add 20 MB."""
    loader = make(write_shards(tmp_path, [40, 30, 30]), reader=small_reader(size=64))
    batches, sizes = iter(loader), []
    for epochs in (3, 17):
        for _ in range(epochs * loader.batches_per_epoch):
            next(batches)
        sizes.append(resident())
    assert sizes[1] - sizes[0] < 6e6
