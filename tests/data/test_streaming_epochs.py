"""Virtual epochs of streaming mode: 5 batches of 4; the 28 samples last one and more."""

import itertools

import pytest

from clipkit.data import streaming
from clipkit.errors import CheckpointError, ConfigError
from tests.data.stream_loaders import captions, make, same, take
from tests.fixtures_shards import write_shards

COUNTS = [6, 8, 10, 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("stream"), COUNTS)


def virtual(shards, **options):
    return make(shards, **{"virtual_epoch": 23, **options})


def at(loader, step, **more):
    loader.load_state_dict({**loader.state_dict(), "step": step, **more})
    return loader


@pytest.mark.parametrize(("workers", "stops"), [(0, (0, 1, 4, 5, 6, 9, 10)), (2, (3, 5, 7))])
def test_resume_within_virtual_epochs_is_the_tail(shards, workers, stops):
    whole = take(virtual(shards, workers=workers), 13)
    assert virtual(shards).batches_per_epoch == 5
    for done in stops:
        first = virtual(shards, workers=workers)
        take(first, done)
        second = virtual(shards, workers=workers)
        second.load_state_dict(first.state_dict())
        same(take(second, 13 - done), whole[done:])


@pytest.mark.parametrize(("number", "buffer"), [(4, 1), (1, 50)])
def test_virtual_epochs_move_shards_and_samples(tmp_path, number, buffer):
    shards = write_shards(tmp_path, [28 // number] * number)
    numbers = captions(take(virtual(shards, buffer=buffer), 15))
    epochs = [list(itertools.chain(*numbers[i : i + 5])) for i in (0, 5, 10)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_augmentation_differs_between_virtual_epochs(tmp_path):
    first, second = take(virtual(write_shards(tmp_path, [1]), virtual_epoch=4), 2)
    assert not (first.images["image"] == second.images["image"]).all()


def test_a_virtual_epoch_deals_disjoint_shards(tmp_path):
    shards = write_shards(tmp_path, [8] * 8)
    for epoch in (0, 3):
        seen = []
        for rank in range(2):
            loader = make(
                shards, rank=rank, world_size=2, workers=2, global_batch_size=8, virtual_epoch=64
            )
            seen += itertools.chain(*captions(take(at(loader, epoch * 8), 8)))
        assert sorted(seen) == list(range(64))


def test_a_virtual_epoch_longer_than_the_data_goes_round(shards):
    numbers = captions(take(virtual(shards, virtual_epoch=100), 25))
    seen = list(itertools.chain(*numbers))
    assert {seen.count(i) for i in range(28)} == {3, 4}


@pytest.fixture()
def raws(monkeypatch):
    """Counts the raw samples that are read."""
    count = [0]
    real = streaming.read_shard

    def counting(*args, **options):
        for raw in real(*args, **options):
            count[0] += 1
            yield raw

    monkeypatch.setattr(streaming, "read_shard", counting)
    return count


def test_resume_reads_one_virtual_epoch_at_most(shards, raws):
    take(at(virtual(shards), 5 * 10**6), 1)
    assert raws[0] <= 5 + 4 + 1  # the buffer, and one batch
    raws[0] = 0
    take(at(virtual(shards), 5 * 10**6 + 3), 1)
    assert raws[0] <= 5 + 4 * 4 + 1


@pytest.mark.parametrize(
    "layout", [{"workers": 1}, {"world_size": 2}, {"world_size": 2, "workers": 2}]
)
def test_another_layout_goes_on_at_the_next_virtual_epoch(shards, layout):
    first = virtual(shards)
    take(first, 7)
    moved = virtual(shards, **layout)
    moved.load_state_dict(first.state_dict())
    assert moved.step == 7
    (note,) = moved.notes
    assert "virtual epoch 2, 3 batches of the one before are left out" in note
    assert all(f"{key} " in note for key in layout)
    straight = take(at(virtual(shards, **layout), 10), 6)
    same(take(moved, 4), straight[:4])
    again = virtual(shards, **layout)  # the trainer's step counts what it trained
    again.load_state_dict({**moved.state_dict(), "step": 11})
    assert again.notes == [] and again.step == 11
    same(take(again, 2), straight[4:])


def test_another_layout_at_a_boundary_leaves_nothing_out(shards):
    moved = virtual(shards, workers=1)
    moved.load_state_dict({**virtual(shards).state_dict(), "step": 10})
    assert "virtual epoch 2, 0 batches" in moved.notes[0]
    same(take(moved, 3), take(at(virtual(shards, workers=1), 10), 3))


def test_virtual_epochs_hold_to_everything_else(shards):
    state = virtual(shards).state_dict()
    with pytest.raises(CheckpointError, match="virtual_epoch is 40, was 23"):
        virtual(shards, virtual_epoch=40).load_state_dict(state)
    with pytest.raises(CheckpointError, match="shuffle_buffer is 9"):
        virtual(shards, buffer=9, workers=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="not the data set"):
        virtual(shards[:3], workers=1).load_state_dict(state)
    with pytest.raises(ConfigError, match="3 samples is smaller than one global batch of 4"):
        virtual(shards, virtual_epoch=3)
