"""The folder of scenes: layout, the same bytes twice, splits and questions."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clipkit.data.selection_set import open_selection
from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import load_index
from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from data_tools.scenes import build
from data_tools.scenes.build import Settings, claims, split_of, write_scenes
from data_tools.scenes.wording import ACROSS, RELATIONS, THREE, TWO
from tests.data_tools.scenes.singles import NAMES, write_singles
from tests.data_tools.scenes.test_wording import parse

SMALL = Settings(train=48, test=16, kinds=20, size=32, categories=("Objects",))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_singles(tmp_path_factory.mktemp("singles") / "s.tar")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    """A folder of scenes; tests must not write to it."""
    out = tmp_path_factory.mktemp("built") / "scenes"
    counts = write_scenes([shards], out, SMALL)
    assert counts == {"train": 48, "test": 16, "questions": 8 * 4 + 8 * 7, "kinds": 20}
    return out


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def metas(shard: Path) -> list[dict[str, Any]]:
    return [
        {**json.loads(sample.members["json"]), "caption": sample.members["txt"].decode()}
        for sample in iter_samples(load_index(str(shard), write=False))
    ]


def test_second_build_has_the_same_bytes(built: Path, shards: str, tmp_path: Path) -> None:
    write_scenes([shards], tmp_path / "again", SMALL)
    again = folder_bytes(tmp_path / "again")
    assert again == folder_bytes(built)
    assert {*again} == {
        "train-00000.tar",
        "test/0.tar",
        "test/nshards.txt",
        "test/selection.jsonl",
        "dataset_type.txt",
        "scenes.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_samples_say_what_they_show(built: Path) -> None:
    for shard in ("train-00000.tar", "test/0.tar"):
        for meta in metas(built / shard):
            claim = parse(str(meta["caption"]))
            assert meta["things"] == list(claim.things)
            assert meta["negative_tags"] == list(TWO if claim.both is None else THREE)
            assert len(set(meta["negatives"])) == len(meta["negatives"])
            assert meta["caption"] not in meta["negatives"]


def test_questions_ask_for_the_caption(built: Path) -> None:
    chosen = open_selection(built)
    retrieval = open_folder(built, "test")
    assert retrieval.kind == "retrieval"
    assert len(chosen) == 88
    by_key = {f"s{row:07d}": meta for row, meta in enumerate(metas(built / "test" / "0.tar"))}
    for item in chosen.items:
        meta = by_key[item.images[0]]
        assert item.answer == (0,)
        assert item.texts[0] == meta["caption"]
        wrong = dict(zip(meta["negatives"], meta["negative_tags"]))
        assert wrong[item.texts[1]] == item.tags[0]


def test_things_of_a_test_scene_never_meet_in_training(built: Path) -> None:
    pairs = {
        shard: {
            frozenset(pair)
            for meta in metas(built / shard)
            for pair in itertools.combinations(meta["things"], 2)
        }
        for shard in ("train-00000.tar", "test/0.tar")
    }
    assert pairs["train-00000.tar"].isdisjoint(pairs["test/0.tar"])


def test_claims_are_balanced() -> None:
    settings = Settings(train=1600, test=16, kinds=20)
    drawn = list(claims("train", NAMES, settings))
    assert Counter(c.relation for c in drawn if c.both is None) == dict.fromkeys(RELATIONS, 200)
    three = Counter((c.relation, c.both) for c in drawn if c.both)
    assert three == {(r, both): 100 for r in RELATIONS for both in ACROSS[r]}
    ordered = sum(c.things[0] < c.things[1] for c in drawn)
    assert abs(ordered - 800) < 80  # four standard deviations of a fair coin
    test = list(claims("test", NAMES, settings))
    assert len({frozenset(c.things) for c in test}) == len(test) == 16
    two = list(claims("train", NAMES, Settings(train=40, things=2, kinds=20)))
    assert Counter(c.relation for c in two) == dict.fromkeys(RELATIONS, 10)


def test_the_seed_draws_everything_anew() -> None:
    pairs = [frozenset(pair) for pair in itertools.combinations(NAMES, 2)]
    splits = [[split_of(pair, seed) for pair in pairs] for seed in (0, 1)]
    assert splits[0] != splits[1]
    assert 0.1 < splits[0].count("test") / len(pairs) < 0.3
    drawn = [list(claims("train", NAMES, Settings(train=20, kinds=20, seed=s))) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0}, "--train 0: choose at least 1"),
        ({"things": 4}, "--things 4: a scene has 2 or 3"),
        ({"things": 1}, "--things 1: choose at least 2"),
        ({"kinds": 3}, "--kinds 3: choose at least 4"),
        ({"size": 8}, "--size 8"),
    ],
)
def test_numbers_that_make_no_scenes(settings: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_too_few_pairs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TRIES", 500)
    with pytest.raises(DataError, match="20 kinds make too few test scenes.*raise --kinds"):
        list(claims("test", NAMES, Settings(test=1000, kinds=20)))


def test_a_folder_in_use_stays(tmp_path: Path, shards: str) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(DataError, match="exists: name a new or an empty folder"):
        write_scenes([shards], tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TRIES", 500)
    with pytest.raises(DataError, match="too few"):
        write_scenes([shards], tmp_path / "out", Settings(test=1000, kinds=20))
    assert not list(tmp_path.iterdir())
