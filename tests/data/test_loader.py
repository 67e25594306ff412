"""Indexed mode: the same global batches for every layout, exact resume, bad samples replaced."""

import itertools
import os

import numpy as np
import pytest
import torch

from clipkit.data.loader import IndexedLoader, check_state
from clipkit.data.order import Order
from clipkit.data.samples import SampleReader
from clipkit.data.tar_index import load_indexes
from clipkit.data.transforms import TrainTransform
from clipkit.errors import CheckpointError, DataError
from tests.fixtures_shards import number_tokenizer, small_reader, write_shards

B = 8
COUNTS = [13, 9, 20]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), COUNTS)


def make(shards, *, seed=0, reader=None, batch=B, streams=None, **options):
    indexes = load_indexes(shards)
    counts = [len(i) for i in indexes]
    order = Order(counts, seed=seed, global_batch_size=batch, window=6, streams=streams)
    return IndexedLoader(indexes, order, reader or small_reader(), number_tokenizer, **options)


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
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
        paths = write_shards(tmp_path, [20, 20])
        loader = make(paths, streams=1, max_bad_fraction=1.0)
        os.truncate(paths[0], 5000)
        take(loader, 3)
        assert loader.bad.causes["shard_cut_short"] > 0
        paths = write_shards(tmp_path, [20, 20])
        loader = make(paths, streams=1, max_bad_fraction=1.0)
        os.remove(paths[0])
        take(loader, 3)
        assert loader.bad.causes["unreadable_shard"] > 0

    def test_member_over_the_limit_is_never_read(self, shards, monkeypatch):
        reader = SampleReader(TrainTransform((8, 8)), max_bytes=100)
        read = os.pread
        sizes = []
        monkeypatch.setattr(
            os, "pread", lambda fd, size, at: sizes.append(size) or read(fd, size, at)
        )
        with pytest.raises(DataError, match="too_many_bytes"):
            take(make(shards, reader=reader), 1)
        assert max(sizes, default=0) <= 100


def test_only_wanted_members_are_read(tmp_path):
    from tests.fixtures_shards import sample_members, write_tar

    members = []
    for i in range(10):
        members += sample_members(i, 1) + [
            (f"{i:06d}.{e}", b"evil") for e in ("pyd", "pkl", "pth", "gif")
        ]
    path = str(write_tar(tmp_path / "a.tar", members))
    seen = []

    class Spy(SampleReader):
        def read(self, members, sample_id, rng):
            seen.append(set(members))
            return super().read(members, sample_id, rng)

    take(make([path], reader=Spy(TrainTransform((8, 8)))), 1)
    assert seen == [{"png", "txt"}] * B


def test_files_stay_open_only_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr("clipkit.data.loader._OPEN_FILES", 3)
    loader = make(write_shards(tmp_path, [4] * 10))
    take(loader, 12)
    assert len(loader._batches._files) == 3
    for descriptor in loader._batches._files.values():
        os.fstat(descriptor)


def test_workers_may_be_spawned(shards):
    import pickle

    dataset = make(shards)._batches
    again = pickle.loads(pickle.dumps(dataset))
    assert again[2][0].ids.tolist() == dataset[2][0].ids.tolist()
    assert isinstance(np.asarray(again.order.counts), np.ndarray)
