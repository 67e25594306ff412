"""Streaming mode: disjoint shares, one order per seed, exact resume, damage told, never a hang."""

import itertools
import os
import pickle
from pathlib import Path

import fsspec
import pytest

from clipkit.data.shard_store import ShardStore
from clipkit.data.streaming import shard_list_hash
from clipkit.errors import CheckpointError, ConfigError, DataError
from tests.data.stream_loaders import captions, make, same, take
from tests.fixtures_shards import (
    noise_bytes,
    write_shards,
    write_tar,
)

COUNTS = [6, 8, 10, 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("stream"), COUNTS)


def test_two_ranks_times_two_workers_are_disjoint_and_cover(tmp_path):
    shards = write_shards(tmp_path, [8] * 8)
    seen = []
    for rank in range(2):  # each of the 4 streams holds 2 shards = 16 samples = 4 batches
        batches = take(make(shards, rank=rank, world_size=2, workers=2, global_batch_size=8), 8)
        seen += itertools.chain(*captions(batches))
    assert sorted(seen) == list(range(64))


def test_two_ranks_times_two_workers_same_seed_same_order(tmp_path):
    shards = write_shards(tmp_path, [8] * 8)

    def order(seed, shards=shards):
        return [
            captions(take(make(shards, rank=rank, world_size=2, workers=2, seed=seed), 6))
            for rank in range(2)
        ]

    assert order(1) == order(1, shards[::-1]) != order(2)


def test_a_pass_covers_every_sample_and_the_next_comes_in_another_order(shards):
    first, second = captions(take(make(shards), 14))[:7], captions(take(make(shards), 14))[7:]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(28))
    assert first != second


def test_each_pass_deals_all_shards_anew(tmp_path):
    shards = write_shards(tmp_path, [2] * 8)
    dealt = [captions(take(make(shards, rank=r, world_size=2, buffer=50), 12)) for r in (0, 1)]
    passes = [[{*sum(rank[i : i + 4], [])} for rank in dealt] for i in (0, 4, 8)]
    assert all(one | other == set(range(16)) for one, other in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_each_worker_shuffles_in_its_own_order(tmp_path):
    shards = write_shards(tmp_path, [20, 20])
    first, second = (captions(take(make(shards, rank=r, world_size=2), 10)) for r in (0, 1))
    assert [n % 20 for n in sum(first, [])] != [n % 20 for n in sum(second, [])]


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_order(shards, workers):
    same(take(make(shards, workers=workers), 9), take(make(shards, workers=workers), 9))


@pytest.mark.parametrize(("number", "buffer"), [(4, 1), (1, 50)])
def test_the_seed_moves_shards_and_samples(tmp_path, number, buffer):
    shards = write_shards(tmp_path, [28 // number] * number)
    orders = [captions(take(make(shards, seed=s, buffer=buffer), 14)) for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:7] != orders[0][7:]  # and so does the pass


@pytest.mark.parametrize(("workers", "stops"), [(0, range(9)), (2, (1, 4))])
def test_resume_is_the_tail(shards, workers, stops):
    whole = take(make(shards, workers=workers), 10)
    for done in stops:
        first = make(shards, workers=workers)
        take(first, done)
        second = make(shards, workers=workers)
        second.load_state_dict(first.state_dict())
        same(take(second, 10 - done), whole[done:])


def test_resume_with_bad_samples_is_the_tail(tmp_path):
    shards = write_shards(tmp_path, [9, 9], bad=(0, 1, 5, 9, 16))
    whole = take(make(shards), 8)
    assert all(len(b) == 4 for b in captions(whole))
    assert not {0, 1, 5, 9, 16} & set(itertools.chain(*captions(whole)))
    for done in range(8):
        loader = make(shards)
        loader.load_state_dict({**loader.state_dict(), "step": done})
        same(take(loader, 8 - done), whole[done:])


def test_bad_samples_are_counted_with_their_shard(tmp_path):
    shards = write_shards(tmp_path, [8], bad=(3,))
    loader = make(shards)
    take(loader, 4)
    assert loader.bad.causes == {"unreadable_image": 2} and list(loader.bad.shards) == shards


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": 2}, "workers is 2"),
        ({"world_size": 2}, "world_size is 2"),
        ({"buffer": 9}, "shuffle_buffer is 9"),
    ],
)
def test_state_of_another_layout_is_refused(shards, changes, named):
    with pytest.raises(CheckpointError, match=named):
        make(shards, **changes).load_state_dict(make(shards).state_dict())


def test_state_of_other_shards_is_refused(shards):
    with pytest.raises(CheckpointError, match="not the data set"):
        make(shards[:3]).load_state_dict(make(shards).state_dict())


def test_fewer_shards_than_workers_are_refused(shards):
    with pytest.raises(DataError, match="4 shards cannot be dealt to 2 ranks x 3 workers"):
        make(shards, world_size=2, workers=3)


def test_nothing_but_bad_samples_or_none_at_all_ends(tmp_path):
    with pytest.raises(DataError, match="samples in a row are unusable"):
        take(make(write_shards(tmp_path, [8], bad=tuple(range(8)))), 1)
    empty = write_tar(tmp_path / "empty.tar", [("readme.md", b"x")])
    with pytest.raises(DataError, match=r"no sample in .*empty\.tar"):
        take(make([str(empty)]), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_in_workers_stay_one_line(tmp_path, workers):
    shards = write_shards(tmp_path, [8], bad=tuple(range(8)))
    with pytest.raises(DataError) as caught:
        take(make(shards, workers=workers), 1)
    assert "\n" not in str(caught.value)


def test_evil_members_are_never_decoded(tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return open, (str(canary), "w")

    payload = pickle.dumps(Evil())
    members = [("../../canary.pkl", payload), ("../../up.png", b"x"), ("/etc/root.pth", payload)]
    for i in range(8):
        members += [
            (f"{i}.png", noise_bytes(i)),
            (f"{i}.txt", b"caption %d" % i),
            (f"{i}.json", b"{}"),
        ]
        members += [
            (f"{i}.{e}", payload)
            for e in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "cbor", "mp", "cls")
        ]
    write_tar(tmp_path / "evil.tar", members)
    loader = make([str(tmp_path / "evil.tar")])
    batches = take(loader, 2)
    assert set(itertools.chain(*captions(batches))) <= set(range(8))
    assert sum(loader.bad.causes.values()) == loader.bad.causes["no_caption"] <= 2  # ../../up
    assert sorted(os.listdir(tmp_path)) == ["evil.tar"]
    assert not canary.exists()
    pickle.loads(payload).close()
    assert canary.exists()  # the payload is live


def test_the_state_holds_no_credentials() -> None:
    plain = shard_list_hash(["https://host/a.tar"])
    assert plain == shard_list_hash(["https://bob:secret@host/a.tar?token=hf_abc"])
    assert len(plain) == 64 and plain != shard_list_hash(["https://host/b.tar"])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_come_in_the_order_of_their_names(tmp_path, shards, workers, cached):
    store = ShardStore(tmp_path / "cache", 10**7) if cached else None
    urls = [f"file://{shard}" for shard in shards]
    batches = take(make(urls, workers=workers, store=store), 9)
    assert captions(batches) == captions(take(make(shards, workers=workers), 9))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == (4 if cached else 0)


def test_the_next_shard_is_fetched_ahead(tmp_path, shards):
    store, told = ShardStore(tmp_path / "cache", 10**7), []
    store.prefetch = told.append
    urls = [f"file://{shard}" for shard in shards]
    take(make(urls, store=store, buffer=1), 7)
    assert len(told) == 3 and all(len(ahead) == 1 for ahead in told)
    assert len({ahead[0] for ahead in told}) == 3


def test_memory_urls_in_this_process(shards):
    files = fsspec.filesystem("memory")
    for number, shard in enumerate(shards):
        files.pipe(f"/stream/{number:03d}.tar", Path(shard).read_bytes())
    urls = [f"memory://user:pw@stream/{n:03d}.tar?sig=1" for n in range(2)]
    plain = [f"memory://stream/{n:03d}.tar" for n in range(4)]
    assert captions(take(make(plain), 7)) == captions(take(make(shards), 7))
    with pytest.raises(DataError) as caught:  # such a name is not there
        take(make(urls), 1)
    assert "pw" not in str(caught.value) and "sig" not in str(caught.value)
    files.rm("/stream", recursive=True)


def test_a_full_cache_disk_ends_the_run_in_one_line(tmp_path, shards):
    store = ShardStore(tmp_path / "cache", 10**7)

    def full(url):
        raise store._full()

    store.open = full
    with pytest.raises(DataError, match="is full") as caught:
        take(make([f"file://{s}" for s in shards], store=store), 1)
    assert "\n" not in str(caught.value)


def test_what_cannot_work_is_said_before_any_worker_starts(shards, monkeypatch):
    with pytest.raises(DataError, match="pipe: .*would run a shell command; set data.allow_pipe"):
        make(["pipe:touch /tmp/x.tar", *shards])
    with pytest.raises(ConfigError, match="no protocol 'nonsense'"):
        make(["nonsense://b/0.tar", *shards])


def test_allowed_pipes_stream(shards):
    pipes = [f"pipe:cat {shard}" for shard in shards]
    numbers = captions(take(make(pipes, allow_pipe=True), 7))
    assert sorted(itertools.chain(*numbers)) == list(range(28))
