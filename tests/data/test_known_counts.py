"""What files beside a shard say of its samples; hostile or broken ones say nothing."""

import json
import os

import fsspec
import pytest

from clipkit.data.index_sidecar import Head
from clipkit.data.known_counts import KnownCounts, missing_samples


def test_sizes_and_statistics(tmp_path):
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": 10, "00001.tar": 7}))
    (tmp_path / "00001_stats.json").write_text(json.dumps({"successes": 9, "count": 12}))
    known = KnownCounts()
    assert [known.of(f"{tmp_path}/{i:05d}.tar") for i in range(3)] == [10, 9, 0]


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sizes.json").write_text('{"a.tar": 3}')
    assert KnownCounts().of("a.tar") == 3


def test_remote(tmp_path):
    fsspec.filesystem("memory").pipe("/known/sizes.json", b'{"a.tar": 4}')
    assert KnownCounts().of("memory://known/a.tar?signature=x") == 4


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"a.tar": "5"}', '{"a.tar": -5}', '{"a.tar": 1e99}', "\xff\xfe"]
)
def test_nonsense_says_nothing(tmp_path, text):
    (tmp_path / "sizes.json").write_text(text, encoding="latin-1")
    assert KnownCounts().of(f"{tmp_path}/a.tar") == 0


def test_pipes_and_devices_say_nothing(tmp_path):
    os.mkfifo(tmp_path / "sizes.json")
    (tmp_path / "a_stats.json").symlink_to("/dev/zero")
    assert KnownCounts().of(f"{tmp_path}/a.tar") == 0


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, 0),  # a whole tar has lost nothing, whatever sizes.json says
        ({"end_mark": False}, 2),
        ({"damaged": True}, 2),
        ({"damaged": True, "expected": 15}, 7),
        ({"damaged": True, "accepted": True}, 0),
        ({"end_mark": False, "count": 11}, 0),
    ],
)
def test_missing_samples(tmp_path, change, missing):
    (tmp_path / "sizes.json").write_text('{"a.tar": 10}')
    head = {"count": 8, "expected": 0, "accepted": False, "end_mark": True, "damaged": False}
    head = Head(**{**head, **change}, checksum="00")
    assert missing_samples(f"{tmp_path}/a.tar", head, KnownCounts()) == missing
