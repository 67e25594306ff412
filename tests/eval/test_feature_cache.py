"""A part is read back whole or not at all."""

import torch

from clipkit.eval.feature_cache import FeatureCache, default_folder, digest

FACTS = {"kind": "image", "weights": "w"}
ROWS = torch.arange(12.0).reshape(4, 3)


def only_part(root):
    return next(root.rglob("part-*.safetensors"))


def test_round_trip(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.write(FACTS, 2, ROWS)
    assert torch.equal(cache.read(FACTS, 2, 4), ROWS)
    assert cache.read(FACTS, 1, 4) is None and cache.read({**FACTS, "weights": "v"}, 2, 4) is None
    assert cache.read(FACTS, 2, 5) is None


def test_a_flipped_byte_is_no_part(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.write(FACTS, 0, ROWS)
    path = only_part(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cache.read(FACTS, 0, 4) is None


def test_a_cut_file_is_no_part(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.write(FACTS, 0, ROWS)
    path = only_part(tmp_path)
    for size in (0, 5, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        assert cache.read(FACTS, 0, 4) is None


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file")
    cache.write(FACTS, 0, ROWS)
    assert cache.read(FACTS, 0, 4) is None


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a" / "features"
    monkeypatch.delenv("CLIPKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_folder() == tmp_path / "b" / "clipkit" / "features"


def test_facts_in_any_order_have_one_key():
    assert digest(a="1", b="2") == digest(b="2", a="1") != digest(a="1", b="3")
