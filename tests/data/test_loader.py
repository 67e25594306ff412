"""Indexed mode: the same global batches for every layout, exact resume."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import signal
import time
from multiprocessing import resource_sharer
from types import SimpleNamespace

import pytest
import torch

from clipkit.data.loader import IndexedLoader, check_state, worker_lost
from clipkit.data.mixture import Mixture, order_for_mixture
from clipkit.errors import CheckpointError, DataError, LostWorkerError
from tests.data.indexed_loaders import COUNTS, B, Planted, joined, make, take
from tests.fixtures_shards import number_tokenizer, small_reader, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), COUNTS)


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.ids.tolist() == b.ids.tolist()
        assert torch.equal(a.images["image"], b.images["image"])
        assert torch.equal(a.texts["text"], b.texts["text"])


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
    batches = take(loader, 20)
    assert len(source.told) == 3  # at step 0, 8 and 16
    read = [part for part, *_ in source.asked]
    assert set(read[: 16 * B]) <= set(source.told[0]) and source.told[0][0] == read[0]
    quiet = Planted([4] * 40)
    take(make(None, source=quiet), 2)
    assert not quiet.told and len(batches) == 20


def test_only_what_the_reader_wants_is_asked_for():
    source, reader = Planted([20]), small_reader()
    take(make(None, source=source, reader=reader), 1)
    assert {asked[2:] for asked in source.asked} == {(reader.wanted, reader.max_bytes)}


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


def test_a_killed_worker_is_told_from_other_errors(shards, tmp_path):
    before = multiprocessing.active_children()  # another test's may not be gone yet
    batches = iter(make(shards, workers=1))
    next(batches)
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    with pytest.raises(Exception) as killed:  # noqa: PT011  (of whichever kind)
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(100):
            time.sleep(0.01)
            next(batches)
    with pytest.raises(FileNotFoundError) as unfetched:  # a tensor of a worker that is gone
        resource_sharer.DupFd.detach(SimpleNamespace(_id=(str(tmp_path / "gone"), 0)))
    for error in (killed.value, unfetched.value):
        lost = worker_lost(error)
        assert isinstance(lost, LostWorkerError) and "\n" not in str(lost)
        assert "data.workers" in str(lost) and "out of memory" in str(lost)
        wrapped = ValueError("on the way out")
        wrapped.__context__ = error
        assert str(worker_lost(wrapped)) == str(lost)
    for other in (RuntimeError("CUDA error"), ConnectionResetError("by a peer"), EOFError()):
        assert worker_lost(other) is None
