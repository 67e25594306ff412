"""Damaged and hostile shards in indexed mode: what is counted, what is kept, what never happens."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clipkit.data.loader import IndexedLoader
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order
from clipkit.data.sources import ShardSource
from clipkit.errors import DataError
from tests.fixtures_shards import (
    noise_bytes,
    number_tokenizer,
    sample_members,
    small_reader,
    write_shards,
    write_tar,
)

COUNT = 30  # samples of each of two shards; the second is damaged


def loader_over(paths, max_bad_fraction=1.0):
    """Batches of one, so that an epoch holds every sample."""
    source = ShardSource(paths)
    order = Order(source.counts, seed=0, global_batch_size=1, streams=1)
    mixture = Mixture([order], seed=0, global_batch_size=1)
    return IndexedLoader(
        [source], mixture, small_reader(), number_tokenizer, max_bad_fraction=max_bad_fraction
    )


def members_of(path):
    with tarfile.open(path) as tar:
        return tar.getmembers()


def cut_inside_an_image(path):
    image = members_of(path)[2 * 15]
    os.truncate(path, image.offset_data + image.size // 2)


def cut_between_samples(path):
    os.truncate(path, members_of(path)[2 * 15].offset)


def flip_a_header(path):
    overwrite(path, members_of(path)[2 * 15].offset + 10, b"\xff" * 300)


def flip_an_image(path):
    image = members_of(path)[2 * 15]
    overwrite(path, image.offset_data + 8, b"\xff" * 40)


def drop_the_end_mark(path):
    last = members_of(path)[-1]
    os.truncate(path, last.offset_data + 512)


def overwrite(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def make_empty(path):
    os.truncate(path, 0)


def make_a_web_page(path):
    Path(path).write_bytes(b"<html>404 not found</html>".ljust(5000))


# damage: (samples lost of the index, samples kept of the shard, causes while reading, note)
FAULTS = {
    cut_inside_an_image: (15, 15, {}, "cut short inside"),
    cut_between_samples: (15, 15, {}, "end-of-archive"),
    flip_a_header: (1, 29, {}, "broken header"),
    flip_an_image: (0, 29, {"unreadable_image": 1}, None),
    make_empty: (30, 0, {}, "empty file"),
    make_a_web_page: (30, 0, {}, "not a tar (begins with '<html>"),
    drop_the_end_mark: (0, 30, {}, "end-of-archive"),
}


@pytest.mark.parametrize("indexed_before", [True, False], ids=["indexed before", "sizes.json"])
@pytest.mark.parametrize("damage", FAULTS, ids=lambda f: f.__name__)
def test_fault(tmp_path, damage, indexed_before):
    paths = write_shards(tmp_path, [COUNT, COUNT])
    if indexed_before:
        ShardSource(paths)
    else:
        sizes = {Path(path).name: COUNT for path in paths}
        (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    damage(paths[1])
    lost, kept, causes, note = FAULTS[damage]
    loader = loader_over(paths)
    assert dict(loader.lost.causes) == ({"missing_samples": lost} if lost else {})
    assert list(loader.lost.shards) == ([paths[1]] if lost else [])
    assert any(note in text and "001.tar" in text for text in loader.notes) if note else True
    indexed = loader.batches_per_epoch
    assert indexed == COUNT + kept + len(causes)
    batches = list(itertools.islice(iter(loader), indexed))
    captions = {int(batch.texts["text"]) for batch in batches}
    assert captions >= set(range(COUNT)) and len(captions) == COUNT + kept
    assert dict(loader.bad.causes) == causes
    if lost:
        with pytest.raises(DataError, match=rf"{lost} of 60 .*missing_samples; .*001\.tar"):
            loader_over(paths, max_bad_fraction=0.01)


def test_what_no_one_counted_before_is_a_note(tmp_path):
    paths = write_shards(tmp_path, [COUNT, COUNT])
    cut_inside_an_image(paths[1])
    loader = loader_over(paths)
    assert loader.lost.total == 0 and "cut short inside" in loader.notes[0]


def test_no_shard_left_or_too_little_data(tmp_path):
    paths = write_shards(tmp_path, [COUNT, COUNT])
    for path in paths:
        os.remove(path)
    with pytest.raises(DataError, match=r"000\.tar"):
        loader_over(paths)
    with pytest.raises(DataError, match="0 samples are fewer than one global batch"):
        loader_over([str(write_tar(tmp_path / "none.tar", []))])


def bomb():
    """A PNG of under 20 kB that would be 430 MB of pixels."""
    out = io.BytesIO()
    Image.new("1", (12000, 12000)).save(out, "PNG", optimize=True)
    assert len(out.getvalue()) < 20_000
    return out.getvalue()


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def peak():
    """Bytes in memory at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def test_evil_members(tmp_path):
    canary = tmp_path / "canary"
    payload = pickle.dumps(Opens(canary))
    members = sample_members(0, 10)
    for extension in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "cls", "cbor"):
        members.append((f"000009.{extension}", payload))
    members += [("000010.png", bomb()), ("000010.txt", b"caption 10")]
    members += [("000011.png", payload), ("000011.txt", b"caption 11")]
    members += [("../../escape.png", noise_bytes(12)), ("../../escape.txt", b"caption 12")]
    members += [("/etc/absolute.png", noise_bytes(13)), ("/etc/absolute.txt", b"caption 13")]
    path = write_tar(tmp_path / "inside" / "deep" / "evil.tar", members)
    before = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    loader = loader_over([str(path)])
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    start = peak()
    ids = {int(batch.ids) for batch in itertools.islice(iter(loader), 14)}
    assert set(loader.bad.causes) == {"too_many_pixels", "unreadable_image", "unsafe_name"}
    assert ids == set(range(10))
    assert peak() - start < 100e6  # the bomb would be 430 MB
    assert not canary.exists()
    after = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    assert after - before == {Path("inside/deep/evil.tar.idx.npz")}  # names are keys, never paths
    pickle.loads(payload).close()
    assert canary.exists()  # the payload is live
