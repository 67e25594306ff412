"""Any shards as a source of images: order, what is bad and why, the same on every rank."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.data import shard_images
from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_images import (
    GOOD,
    UNSEEN,
    ShardImages,
    cause_code,
    cause_name,
    find_shards,
    hash_shards,
    open_shards,
    read_image,
)
from clipkit.dist.group import World
from clipkit.errors import DataError
from tests.fixtures_shards import (
    image_bytes,
    noise_bytes,
    repeated_scans,
    tar_bytes,
    write_shards,
    write_tar,
)


def source_of(paths: list[str]) -> ShardImages:
    return ShardImages(open_shards(paths)[0], hash_shards(paths, World()))


def names(source: ShardImages) -> list[str]:
    return ["good" if c == GOOD else cause_name(c) for c in source.codes.tolist()]


def test_order_keys_and_captions(tmp_path):
    source = source_of(write_shards(tmp_path, [2, 3, 1]))
    assert len(source) == 6
    assert source.keys() == [f"{i:06d}" for i in range(6)]
    assert source.captions() == [f"caption {i}" for i in range(6)]
    assert [source.locate(i) for i in range(6)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    part = source.part(1, 5)
    assert part.keys() == source.keys()[1:5] and part.captions() == source.captions()[1:5]
    assert part.part(1, 99).keys() == source.keys()[2:5]
    pixels = [np.asarray(image) for image in part.images(0, 4)]
    for i, found in enumerate(pixels, 1):
        expected = read_image(source.indexes[source.locate(i)[0]], source.locate(i)[1])
        assert np.array_equal(found, np.asarray(expected))
    assert len({p.tobytes() for p in pixels}) == 4


def test_captions_are_whole_and_may_be_missing(tmp_path):
    members = [
        ("a.png", image_bytes()),
        ("a.txt", b" two\nlines \n"),
        ("b.png", image_bytes()),
        ("c.png", image_bytes()),
        ("c.txt", b"\xff\0" + b"x" * 100_000),
    ]
    source = source_of([str(write_tar(tmp_path / "0.tar", members))])
    first, second, third = source.captions()
    assert (first, second) == ("two\nlines", "") and source.has_captions
    assert third.startswith("\ufffd xx") and len(third) < 70_000
    bare = source_of([str(write_tar(tmp_path / "1.tar", [("a.png", image_bytes())]))])
    assert bare.captions() == [""] and not bare.has_captions


def test_bad_images_become_grey_and_are_noted_by_cause(tmp_path, monkeypatch):
    whole = noise_bytes(1, side=32)
    members = [
        ("0.png", image_bytes()),
        ("1.png", b"no image"),
        ("2.txt", b"no image at all"),
        ("3.png", whole[: len(whole) // 2]),
        ("4.png", image_bytes(side=64)),
        ("5.png", noise_bytes(2, side=48)),
    ]
    source = source_of([str(write_tar(tmp_path / "0.tar", members))])
    monkeypatch.setattr(shard_images, "_MAX_PIXELS", 3000)
    monkeypatch.setattr(shard_images, "_MAX_BYTES", 5000)
    images = list(source.images(0, 6))
    assert names(source) == [
        "good", "unreadable_image", "no_image", "unreadable_image", "too_many_pixels",
        "too_many_bytes",
    ]  # fmt: skip
    assert [image.getpixel((0, 0)) == (128, 128, 128) for image in images] == [False] + [True] * 5


def test_a_strip_is_refused_before_it_is_scaled_up(tmp_path):
    from PIL import Image

    for number, (size, cause) in enumerate((((1, 1001), "extreme_shape"), ((1000, 1), "good"))):
        Image.new("RGB", size).save(tmp_path / "x.png")
        members = [("0.png", (tmp_path / "x.png").read_bytes())]
        source = source_of([str(write_tar(tmp_path / f"{number}.tar", members))])
        list(source.images(0, 1))
        assert names(source) == [cause]


def test_settle_opens_only_what_nobody_has_opened(tmp_path, monkeypatch):
    source = source_of(write_shards(tmp_path, [3, 3], bad=(1, 4)))
    list(source.images(0, 2))
    opened = []
    real = ShardImages._open
    monkeypatch.setattr(ShardImages, "_open", lambda s, row: opened.append(row) or real(s, row))
    source.settle(World())
    assert sorted(opened) == [2, 3, 4, 5]
    bad = "unreadable_image"
    assert names(source) == ["good", bad, "good", "good", bad, "good"]
    source.settle(World())
    assert len(opened) == 4


def _settled(world, paths):
    source = ShardImages(open_shards(paths)[0], hash_shards(paths, world))
    if world.rank == 1:  # one row seen by one rank only, a bad one by both
        list(source.images(2, 3))
    list(source.images(1, 2))
    before = source.codes.copy()
    opened = []
    real = ShardImages._open
    source._open = lambda row: opened.append(row) or real(source, row)  # type: ignore[method-assign]
    source.settle(world)
    return source.hashes, source.codes.tolist(), before.tolist(), sorted(opened)


def test_all_ranks_know_and_share_the_work(tmp_path, monkeypatch):
    paths = write_shards(tmp_path, [3, 4, 2], bad=(1, 5))
    alone = source_of(paths)
    alone.settle(World())
    told, met = {}, threading.Barrier(2, timeout=20)

    def all_reduce_max(values, world_size):  # two threads stand for two ranks
        told[threading.get_ident()] = values
        met.wait()
        found = torch.stack(list(told.values())).amax(0)
        met.wait()
        return found

    monkeypatch.setattr(shard_images, "all_reduce_max", all_reduce_max)
    with ThreadPoolExecutor(2) as pool:
        worlds = [World(rank=rank, world_size=2) for rank in range(2)]
        first, second = pool.map(_settled, worlds, [paths] * 2)
    assert first[0] == second[0] == alone.hashes
    assert first[1] == second[1] == alone.codes.tolist()
    assert first[2][2] == UNSEEN and second[2][2] == GOOD
    assert sorted(first[3] + second[3]) == [0, 3, 4, 5, 6, 7, 8]
    assert abs(len(first[3]) - len(second[3])) <= 1


def test_hashes_are_those_of_the_files(tmp_path):
    paths = write_shards(tmp_path, [1, 2, 1])
    expected = [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]
    assert hash_shards(paths, World()) == expected
    with pytest.raises(DataError, match="gone.tar"):
        hash_shards([str(tmp_path / "gone.tar")], World())


def test_identity_is_of_content_and_span(tmp_path):
    paths = write_shards(tmp_path / "a", [3, 3])
    same = write_shards(tmp_path / "b", [3, 3])
    more = [*paths, str(write_tar(tmp_path / "9.tar", [("x.png", image_bytes())]))]
    source = source_of(paths)
    assert source.identity == source_of(same).identity
    assert source.place != source_of(same).place
    assert source_of(more).part(0, 4).identity == source.part(0, 4).identity
    spans = [(0, 4), (0, 5), (1, 5), (0, 6), (3, 6), (0, 3)]
    assert len({source.part(*s).identity for s in spans}) == len(spans)
    assert len({source.part(*s).place for s in spans}) == len(spans)
    assert source_of(paths[::-1]).identity != source.identity


def test_patterns_and_folders(tmp_path):
    paths = write_shards(tmp_path / "plain", [1] * 3)
    plain = str(tmp_path / "plain")
    assert find_shards([plain]) == paths
    assert find_shards([f"{plain}/{{000..002}}.tar"]) == paths
    assert find_shards([f"{plain}/*.tar"]) == paths
    assert find_shards(paths[1:] + paths[:1]) == paths[1:] + paths[:1]
    nested = write_shards(tmp_path / "set" / "test", [1])
    train = write_shards(tmp_path / "set" / "train", [1])
    assert find_shards([str(tmp_path / "set")]) == nested
    assert find_shards([str(tmp_path / "set")], "train") == train
    assert find_shards([str(tmp_path / "set"), plain]) == nested + paths


def test_an_evaluation_set_gives_its_split_only(tmp_path):
    for name in ("train-0.tar", "test-0.tar"):
        write_tar(tmp_path / name, [("a.png", image_bytes())])
    assert len(find_shards([str(tmp_path)])) == 2
    (tmp_path / "classnames.txt").write_text("a\n")
    assert find_shards([str(tmp_path)]) == [str(tmp_path / "test-0.tar")]


def test_impossible_shards_are_named(tmp_path):
    paths = write_shards(tmp_path, [1, 1])
    (tmp_path / "empty").mkdir()
    os.symlink(paths[0], tmp_path / "link.tar")
    for patterns, words in (
        ([], "at least one"),
        ([str(tmp_path / "empty")], "no \\*.tar"),
        ([str(tmp_path / "absent")], "absent"),
        ([str(tmp_path / "{000..004}.tar")], "002.tar"),
        ([str(tmp_path / "*.zip")], "no file matches"),
        ([paths[0], paths[0]], "named twice"),
        ([paths[0], str(tmp_path / "link.tar")], "named twice"),
        (["s3://bucket/0.tar"], "remote"),
        (["pipe:cat x"], "shell"),
    ):
        with pytest.raises(DataError, match=words):
            find_shards(patterns)


def test_damaged_shards(tmp_path):
    whole = tar_bytes([(f"{i}.png", noise_bytes(i, side=16)) for i in range(4)])
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    indexes, notes = open_shards([str(tmp_path / "cut.tar")])
    assert len(notes) == 1 and "cut.tar" in notes[0] and "cut short" in notes[0]
    assert notes[0].endswith(f"; {len(indexes[0])} samples are used")
    assert 0 < len(indexes[0]) < 4
    (tmp_path / "text.tar").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="text.tar.*no samples.*not a tar"):
        open_shards([str(tmp_path / "text.tar")])


def test_a_shard_that_goes_away_is_an_error_and_no_bad_sample(tmp_path):
    source = source_of(write_shards(tmp_path, [2]))
    (tmp_path / "000.tar").unlink()
    with pytest.raises(DataError, match="000.tar"):
        list(source.images(0, 1))
    with pytest.raises(DataError, match="000.tar"):
        source.captions()


def test_a_jpeg_of_many_scans_is_a_bad_row(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.jpg", repeated_scans(51)), ("0.txt", b"a dog")])
    with pytest.raises(BadSample) as caught:
        read_image(open_shards([str(path)])[0][0], 0)
    assert cause_name(cause_code(caught.value.cause)) == "too_many_scans"


def test_codes_and_names_agree():
    for cause in shard_images.CAUSES:
        assert cause_name(cause_code(cause)) == cause and cause_code(cause) > GOOD
