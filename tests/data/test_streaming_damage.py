"""Streaming over damaged, missing and too few shards: all is counted, the run goes on or ends."""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from clipkit.data import streaming
from clipkit.data.shards import resolve_shards
from clipkit.data.streaming import StreamingLoader
from clipkit.errors import ClipkitError, DataError
from tests.data.stream_loaders import captions, make, take
from tests.fixtures_shards import (
    number_tokenizer,
    sample_members,
    small_reader,
    tar_bytes,
    write_shards,
    write_tar,
)


def flip_header(path, number):
    """Damage the header of a member; members of these shards are padded to 512 bytes."""
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"%06d.png" % number)
    data[at : at + 20] = bytes(20)
    Path(path).write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_shards_are_counted_and_the_stream_goes_on(tmp_path, workers):
    shards = write_shards(tmp_path, [8] * 6)
    os.truncate(shards[0], tar_bytes(sample_members(0, 8)).index(b"000004.png") + 600)
    flip_header(shards[1], 13)
    Path(shards[2]).write_bytes(b"")
    Path(shards[3]).write_text("<html>no such key</html>")
    os.unlink(shards[4])
    kept = [*range(4), *range(8, 13), *range(40, 48)]  # 17 samples per pass
    loader = make(shards, workers=workers, global_batch_size=1, max_bad_fraction=1)
    batches = take(loader, 17 * 4)
    seen = list(itertools.chain(*captions(batches)))
    assert set(seen) == set(kept)
    if not workers:
        assert sorted(seen) == sorted(kept * 4)
    assert set(loader.bad.causes) == {"broken_shard", "rest_of_shard_lost"}
    assert set(loader.bad.shards) == set(shards[:5])
    causes = loader.bad.causes
    assert causes["broken_shard"] > 2 * causes["rest_of_shard_lost"] > 4  # at every pass


def test_a_pipe_among_the_shards_is_not_waited_for(tmp_path):
    shards = [*write_shards(tmp_path, [8]), str(tmp_path / "pipe.tar")]
    os.mkfifo(shards[1])

    def give_up(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    try:
        loader = make(shards, global_batch_size=1, max_bad_fraction=1)
        take(loader, 20)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert loader.bad.shards[shards[1]] == loader.bad.causes["broken_shard"] > 1


def test_a_cut_shard_alone_runs_into_the_limit(tmp_path):
    path = tmp_path / "cut.tar"
    path.write_bytes(tar_bytes(sample_members(0, 20))[:5000])
    with pytest.raises(DataError, match=r"broken_shard.*cut\.tar.*max_bad_fraction"):
        take(make([str(path)], virtual_epoch=1000), 60)


def test_damage_met_again_on_resume_is_not_counted_again(tmp_path):
    shards = write_shards(tmp_path, [8] * 6, bad=(3, 20))
    Path(shards[0]).write_bytes(b"")
    first = make(shards, max_bad_fraction=0.5)
    take(first, 24)
    second = make(shards, max_bad_fraction=0.5)
    second.load_state_dict(first.state_dict())
    assert second.bad.before.causes == first.bad.causes
    take(second, 1)
    assert second.bad.total <= 3 < first.bad.total


def test_large_members_are_counted_as_such(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar", [*sample_members(0, 8), ("big.png", bytes(5000)), ("big.txt", b"x")]
    )
    reader = small_reader()
    reader.max_bytes = 4000
    loader = StreamingLoader([str(shard)], reader, number_tokenizer, global_batch_size=9, buffer=1)
    take(loader, 1)
    assert loader.bad.causes == {"too_many_bytes": 1}


def test_fewer_samples_than_a_batch_go_round(tmp_path):
    shards = write_shards(tmp_path, [1, 1, 2, 1])
    for options in ({}, {"virtual_epoch": 32}, {"workers": 2}):
        batches = captions(take(make(shards, global_batch_size=16, **options), 3))
        assert set(itertools.chain(*batches)) == set(range(5))


def test_a_worker_whose_shard_is_broken_takes_another(tmp_path, monkeypatch):
    tries = iter([streaming.read_shard] * 99)  # then it fails, rather than go on for ever
    monkeypatch.setattr(streaming, "read_shard", lambda *args, **more: next(tries)(*args, **more))
    shards = write_shards(tmp_path, [4, 4])
    os.unlink(shards[1])
    for rank in range(2):
        loader = make(shards, rank=rank, world_size=2, max_bad_fraction=0.5)
        assert set(itertools.chain(*captions(take(loader, 6)))) == set(range(4))


def ending(patterns, workers, out):
    """Tells how a run over these shards ends."""
    try:
        shards = resolve_shards(patterns, "streaming") if "*" in patterns[0] else patterns
        for _ in zip(range(50), make(shards, workers=workers, virtual_epoch=8)):
            pass
    except ClipkitError as error:
        out.put(str(error))
    else:
        out.put("trained")


SHORT = "no sample in {} shards one after another (broken_shard)"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gone", SHORT.format(16)),
        ("html", SHORT.format(3)),
        ("same name", SHORT.format(3)),
        ("empty", "no file matches"),
        ("few", "trained"),
    ],
)
def test_a_hopeless_shard_list_never_hangs(tmp_path, kind, said, workers):
    patterns = {
        "gone": [f"{prefix}{tmp_path}/{i}.tar" for i in range(20) for prefix in ("", "file://")],
        "html": [f"{tmp_path}/{i}.tar" for i in range(3)],
        "same name": [f"file://{tmp_path}/get?file={i}.tar" for i in range(3)],
        "empty": [f"{tmp_path}/*.tar"],
        "few": [],
    }[kind]
    if kind == "html":
        for path in patterns:
            Path(path).write_text("<html>")
    if kind == "few":
        patterns = write_shards(tmp_path, [1, 1])
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    process = context.Process(target=ending, args=(patterns, workers, out))
    process.start()
    process.join(30)  # seconds; it ends in less than one
    if process.is_alive():
        process.kill()
        pytest.fail("it hangs")
    message = out.get()
    assert said in message and "\n" not in message
