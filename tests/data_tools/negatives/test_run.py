"""Negatives are added, and nothing else changes; the same for a seed and a key."""

import json
from pathlib import Path

import pytest

from clipkit.data.negatives import CaptionEditor
from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from clipkit.errors import ConfigError, DataError
from data_tools.negatives import run
from data_tools.negatives.run import add_negatives
from tests.fixtures_shards import noise_bytes, write_tar

FOLLOWS = '  {"base" : 1.50, "name": "caf\\u00e9" , "base": 2}\n'
SAMPLES = {
    "plain": {
        "txt": b"a red circle and a blue square",
        "png": noise_bytes(1),
        "seg.npy": b"\0" * 9,
    },
    "meta": {"txt": b"two dogs on a wooden bench", "json": FOLLOWS.encode(), "cls": b"3"},
    "none": {"txt": b"IMG 2041", "json": b'{"a":   1}'},
    "broken": {"txt": b"a red dog", "json": b"{"},
    "list": {"txt": b"a red dog", "json": b"[1]"},
    "empty": {"txt": b"a red dog", "json": b"{ }"},
    "had": {"txt": b"a red dog", "json": b'{"negatives": ["old"], "k": 1}'},
}


def members(samples: dict[str, dict[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(f"{key}.{e}", data) for key, found in samples.items() for e, data in found.items()]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    keys = list(SAMPLES)
    return [
        str(write_tar(tmp_path / f"in/{i}.tar", members({k: SAMPLES[k] for k in keys[a:b]})))
        for i, (a, b) in enumerate([(0, 3), (3, 7)])
    ]


def read(folder: Path) -> dict[str, dict[str, bytes]]:
    paths = sorted(folder.rglob("*.tar"))
    return {s.key: s.members for p in paths for s in iter_samples(build_index(str(p)))}


def test_added_and_all_else_byte_for_byte(tmp_path: Path, shards: list[str]) -> None:
    facts = add_negatives(shards, tmp_path / "out", count=3)
    found = read(tmp_path / "out")
    assert list(found) == list(SAMPLES)
    for key, old in SAMPLES.items():
        assert {e: d for e, d in found[key].items() if e != "json"} == {
            e: d for e, d in old.items() if e != "json"
        }
    for key in ("none", "broken", "list"):
        assert found[key] == SAMPLES[key]
    assert found["meta"]["json"].startswith(FOLLOWS.rstrip()[:-1].encode())
    assert json.loads(found["meta"]["json"])["base"] == 2
    for key in ("plain", "meta", "empty", "had"):
        meta, caption = json.loads(found[key]["json"]), SAMPLES[key]["txt"].decode()
        made = {(n.text, f"{n.kind}/{n.style}") for n in CaptionEditor().candidates(caption)}
        drawn = list(zip(meta["negatives"], meta["negative_tags"], strict=True))
        assert len(set(drawn)) == 3 and set(drawn) <= made
    assert json.loads(found["had"]["json"])["k"] == 1
    assert facts["counts"] == {
        "samples with negatives": 4,
        "samples without": 1,
        "samples whose json member is no object": 2,
    }
    assert sum(facts["tags"].values()) == 12 and facts["samples"] == 7


def test_by_seed_and_key_alone(tmp_path: Path, shards: list[str]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        add_negatives(shards, tmp_path / name, seed=seed)
    one = str(write_tar(tmp_path / "in/one.tar", members(dict(reversed(SAMPLES.items())))))
    add_negatives([one], tmp_path / "d", seed=1)
    found = [read(tmp_path / name) for name in "abcd"]
    assert found[0] == found[1] == found[3] != found[2]
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.tar")} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").glob("*.tar")
    }


def test_never_another_caption_of_the_image(tmp_path: Path) -> None:
    caption, swap = "a red circle and a blue square", "A blue circle and a red square."
    others = {
        "further": {"1.txt": swap.encode()},
        "lines": {"txt": f"{caption}\n{swap}".encode()},
        "caption": {"json": json.dumps({"caption": swap}).encode()},
        "captions": {"json": json.dumps({"captions": ["x", swap]}).encode()},
        "alone": {},
    }
    samples = {key: {"txt": caption.encode(), **more} for key, more in others.items()}
    shard = str(write_tar(tmp_path / "in/0.tar", members(samples)))
    add_negatives([shard], tmp_path / "out", kinds=["color"], styles=["swap"], caption_lines=True)
    found = {key: json.loads(m.get("json", b"{}")) for key, m in read(tmp_path / "out").items()}
    assert {key: meta.get("negatives") for key, meta in found.items()} == {
        "further": None,
        "lines": None,
        "caption": None,
        "captions": None,
        "alone": [swap.lower().rstrip(".")],
    }


def test_further_captions_fill_up(tmp_path: Path) -> None:
    sample = {"s": {"txt": b"a red circle and a blue square\ntwo dogs and six cats"}}
    shard = str(write_tar(tmp_path / "in/0.tar", members(sample)))
    add_negatives([shard], tmp_path / "out", count=5, styles=["swap"], caption_lines=True)
    meta = json.loads(read(tmp_path / "out")["s"]["json"])
    assert meta["negatives"] == ["a blue circle and a red square", "six dogs and two cats"]
    assert meta["negative_tags"] == ["color/swap", "number/swap"]


def test_forbidden_phrases(tmp_path: Path, shards: list[str]) -> None:
    (tmp_path / "held.txt").write_text("blue circle\nred square\n")
    add_negatives(shards, tmp_path / "out", count=99, forbid=tmp_path / "held.txt")
    texts = json.loads(read(tmp_path / "out")["plain"]["json"])["negatives"]
    assert texts and not any("blue circle" in t or "red square" in t for t in texts)
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ConfigError, match="^--forbid: '.*none.txt' holds no phrase"):
        add_negatives(shards, tmp_path / "other", forbid=tmp_path / "none.txt")


def test_done_is_done_until_the_rules_change(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add_negatives(shards, tmp_path / "out")["done_before"] == 0
    assert add_negatives(shards, tmp_path / "out")["done_before"] == 2
    monkeypatch.setattr(run, "_version_of_rules", lambda tagger: "others")
    assert add_negatives(shards, tmp_path / "out")["done_before"] == 0


def test_refused(tmp_path: Path, shards: list[str]) -> None:
    with pytest.raises(DataError, match="would replace"):
        add_negatives(shards, tmp_path / "in")
    for wrong in ({"kinds": ["colour"]}, {"styles": ["x"]}, {"caption_keys": ["json"]}):
        with pytest.raises(ConfigError):
            add_negatives(shards, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
    assert add_negatives(shards, tmp_path / "out", dry_run=True) == {"shards": 2}
    assert not (tmp_path / "out").exists()
