"""Shards of pairs become a search set: who asks for what, how it is judged, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from clipkit.data.mixed_set import MixedSet, open_mixed_set
from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.mixed_modality import MixedModalityEval
from data_tools import __main__ as command
from data_tools.mixed import write_mixed
from tests.fixtures_eval_sets import random_encoder
from tests.fixtures_shards import noise_bytes, write_tar

GROUPS = ["a", "a", "b", None, "a", None]


def write_pairs(folder: Path, count: int = 6, **more: Any) -> list[str]:
    """Two shards of pairs; sample i is captioned "thing i" and of group GROUPS[i % 6]."""
    members = []
    for i in range(count):
        fields = {"base": GROUPS[i % len(GROUPS)]}
        members += [
            (f"{i:03d}.png", noise_bytes(i)),
            (f"{i:03d}.txt", f"\n thing {i} \nanother line".encode()),
            (f"{i:03d}.json", json.dumps(fields).encode()),
        ]
    members += [(name, data) for name, data in more.get("members", [])]
    cut = 3 * (count // 2)
    return [
        str(write_tar(folder / "test-0.tar", members[:cut])),
        str(write_tar(folder / "test-1.tar", members[cut:])),
    ]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def relevance(found: MixedSet) -> dict[tuple[str, str], float]:
    """(query id, document id) -> grade."""
    return {
        (query.id, found.documents[row].id): grade
        for query, judged in zip(found.queries, found.judgements)
        for row, grade in judged.items()
    }


def test_each_pair_asks_once_and_answers_once(tmp_path: Path) -> None:
    assert write_mixed(write_pairs(tmp_path, 20), tmp_path / "out") == 20
    found = open_mixed_set(tmp_path / "out")
    assert len(found.queries) == len(found.documents) == 20
    asking = [q.modality for q in found.queries]
    assert asking.count("text") == asking.count("image") == 10
    for i, (query, document) in enumerate(zip(found.queries, found.documents)):
        assert {query.modality, document.modality} == {"text", "image"}
        assert query.text + document.text == f"thing {i}"
        image = tmp_path / "out" / (query.image + document.image)
        assert image.read_bytes() == noise_bytes(i)
    assert relevance(found) == {(f"q{i}", f"d{i}"): 3.0 for i in range(20)}


def test_pairs_of_a_group_answer_each_other_with_less(tmp_path: Path) -> None:
    write_mixed(write_pairs(tmp_path), tmp_path / "out", group="base")
    wanted = {(f"q{i}", f"d{i}"): 3.0 for i in range(6)}
    wanted |= {(f"q{i}", f"d{j}"): 1.0 for i in (0, 1, 4) for j in (0, 1, 4) if i != j}
    assert relevance(open_mixed_set(tmp_path / "out")) == wanted


def test_of_a_large_group_so_many_drawn_ones_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.mixed.MATES", 2)
    found = {}
    for name, seed in (("one", 0), ("two", 0), ("other", 1), ("third", 2)):
        write_mixed(write_pairs(tmp_path), tmp_path / name, group="base", seed=seed)
        found[name] = relevance(open_mixed_set(tmp_path / name))
    judged = found["one"]
    assert judged == found["two"]
    assert {(q, d) for (q, d), grade in judged.items() if grade == 3} == {
        (f"q{i}", f"d{i}") for i in range(6)
    }
    mates = {(q, d) for (q, d), grade in judged.items() if grade == 1}
    drawn = {d for _, d in mates}
    assert len(drawn) == 2 and drawn < {"d0", "d1", "d4"}
    assert mates == {(f"q{i}", d) for i in (0, 1, 4) for d in drawn if d != f"d{i}"}
    assert len({frozenset(x) for x in found.values()}) > 1


def test_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_mixed(shards, tmp_path / name, group="base", seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "two") != files(tmp_path / "other")


def test_the_set_is_scored_and_calibrated(tmp_path: Path) -> None:
    write_mixed(write_pairs(tmp_path, 24), tmp_path / "out")
    embedder = Embedder(random_encoder(0), World())
    evaluator = MixedModalityEval(str(tmp_path / "out"), "mixed", calibrate=True)
    metrics = evaluator.run(embedder).metrics
    assert 0 <= metrics["ndcg@10"] <= 1 and 0 <= metrics["ndcg@10_uncalibrated"] <= 1


@pytest.mark.parametrize(
    "members, text",
    [
        ([("x.png", b"no image"), ("x.txt", b"a")], "sample 'x': no JPEG"),
        ([("x.txt", b"a")], "sample 'x' has no image; it needs both"),
        ([("x.png", noise_bytes(1)), ("x.txt", b" \n")], "sample 'x' has no text"),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, members: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        write_mixed(write_pairs(tmp_path, members=members), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_mistakes_are_named(tmp_path: Path) -> None:
    shards = write_pairs(tmp_path)
    with pytest.raises(DataError, match="--group colour: no sample"):
        write_mixed(shards, tmp_path / "out", group="colour")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(DataError, match="out exists"):
        write_mixed(shards, tmp_path / "out")
    with pytest.raises(DataError, match="1 samples; a search needs two"):
        write_mixed([str(write_tar(tmp_path / "one.tar", one_pair()))], tmp_path / "new")


def one_pair() -> list[tuple[str, bytes]]:
    return [("x.png", noise_bytes(1)), ("x.txt", b"a"), ("x.json", b"[broken")]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_pairs(tmp_path / "set")
    arguments = ["mixed", str(tmp_path / "set"), str(tmp_path / "out"), "--group", "base"]
    monkeypatch.setattr(sys, "argv", ["clipkit-data", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    assert "6 queries, 6 documents" in capsys.readouterr().out
    assert len(open_mixed_set(tmp_path / "out")) == 6
