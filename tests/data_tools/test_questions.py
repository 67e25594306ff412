"""Questions: from samples that carry negatives, and by exchanging phrases."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.data.selection_set import open_selection
from clipkit.data.shard_writer import write_shard
from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from data_tools.__main__ import app
from data_tools.questions import ask, exchanged, parse_groups, write_question_set
from tests.data_tools.scenes.singles import single

TONES = ["light skin tone", "medium-light skin tone", "medium skin tone"]
GROUPS = {"gender": ["man", "woman"], "tone": TONES}


def sample(caption: str, meta: object = None) -> dict[str, bytes]:
    members = {"png": single("x")["png"], "txt": caption.encode()}
    return members if meta is None else {**members, "json": json.dumps(meta).encode()}


def shard(tmp_path: Path, *samples: dict[str, bytes]) -> list[str]:
    path = tmp_path / "s.tar"
    write_shard(path, ((f"k{row}", members) for row, members in enumerate(samples)))
    return [str(path)]


def test_one_question_for_each_wrong_caption() -> None:
    items = ask("s7", sample("a cat\n"), [("a dog", "x"), ("a hat", "y")])
    assert [(item["id"], item["texts"], item["tags"]) for item in items] == [
        ("s7/0", ["a cat", "a dog"], ["x"]),
        ("s7/1", ["a cat", "a hat"], ["y"]),
    ]
    assert {(tuple(item["images"]), item["answer"]) for item in items} == {(("s7",), 0)}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("man", [("woman", "gender")]),
        ("a mandarin, a snowman, a man-of-war", []),
        (
            "woman: medium-light skin tone",
            [
                ("man: medium-light skin tone", "gender"),
                ("woman: light skin tone", "tone"),
                ("woman: medium skin tone", "tone"),
            ],
        ),
        ("man man", [("woman man", "gender"), ("man woman", "gender")]),
    ],
)
def test_whole_phrases_are_exchanged(caption: str, wrong: list[tuple[str, str]]) -> None:
    assert exchanged(caption, GROUPS) == wrong


def test_a_set_of_exchanged_phrases(tmp_path: Path) -> None:
    shards = shard(tmp_path, sample("a cat"), sample("man"), sample("woman, light skin tone"))
    assert write_question_set(shards, tmp_path / "out", GROUPS) == (4, 2)
    chosen = open_selection(tmp_path / "out")
    assert [(item.images, item.texts, item.tags) for item in chosen.items] == [
        (("s0000000",), ("man", "woman"), ("gender",)),
        (("s0000001",), ("woman, light skin tone", "man, light skin tone"), ("gender",)),
        *[
            (("s0000001",), ("woman, light skin tone", f"woman, {tone}"), ("tone",))
            for tone in TONES[1:]
        ],
    ]
    assert open_folder(tmp_path / "out", "test").kind == "retrieval"


def test_a_set_of_negatives(tmp_path: Path) -> None:
    samples = [
        sample("a cat"),
        sample("a dog", {"negatives": ["a cat", "a hat"], "negative_tags": ["x", "y"]}),
        sample("a hat", {"negatives": ["a cat"], "negative_tags": []}),
    ]
    shards = shard(tmp_path, *samples)
    found = CliRunner().invoke(app, ["questions", *shards, str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert "2 questions over 1 samples" in found.output
    items = open_selection(tmp_path / "out").items
    assert [(item.texts, item.tags) for item in items] == [
        (("a dog", "a cat"), ("x",)),
        (("a dog", "a hat"), ("y",)),
    ]


@pytest.mark.parametrize(
    ("negatives", "asked"),
    [
        (["A  dog.", "a hat"], ["a hat"]),
        (["a cat", 7], []),
        (["a cat", ""], []),
        (["a cat", None], []),
        ("ab", []),
    ],
)
def test_what_is_no_wrong_caption_is_not_asked(
    tmp_path: Path, negatives: object, asked: list[str]
) -> None:
    odd = sample("a dog", {"negatives": negatives, "negative_tags": ["x", "y"]})
    good = sample("a hat", {"negatives": ["a cat"], "negative_tags": ["z"]})
    write_question_set(shard(tmp_path, odd, good), tmp_path / "out", {})
    found = [item.texts[1] for item in open_selection(tmp_path / "out").items]
    assert found == [*asked, "a cat"]


def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    shards = shard(tmp_path, sample("a cat"))
    with pytest.raises(DataError, match="no caption has json 'negatives'"):
        write_question_set(shards, tmp_path / "out", {})
    with pytest.raises(DataError, match="no caption holds a phrase of --group"):
        write_question_set(shards, tmp_path / "out", GROUPS)
    with pytest.raises(DataError, match="exists: name a new"):
        write_question_set(shard(tmp_path, sample("man")), tmp_path, GROUPS)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ""] == []
    for option in ("man|woman", "gender=man", "gender=man|man"):
        with pytest.raises(DataError, match="--group"):
            parse_groups([option])
    assert parse_groups(["a=x y|z"]) == {"a": ["x y", "z"]}
