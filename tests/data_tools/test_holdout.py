"""Whole groups go one way; nothing is lost; the tested ones name their group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import data_tools.__main__ as command_line
from clipkit.data.eval_sets import find_sets
from clipkit.data.shard_reader import iter_samples
from clipkit.data.tar_index import build_index
from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from data_tools.holdout import Choice, holdout
from tests.data_tools.in_process import use_serial
from tests.fixtures_shards import noise_bytes, write_tar

GROUPS = 8  # of 4 samples each, and two samples of none


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_serial(monkeypatch)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two shards over which each group is spread."""
    paths = []
    for shard in range(2):
        members = []
        for i in range(17):
            group, number = i % GROUPS, 2 * shard + i // GROUPS
            meta = {"of": {"base": f"g{group}"}} if i < 2 * GROUPS else {"of": {}}
            key = f"{shard}-{i:02d}"
            members += [(f"{key}.png", noise_bytes(100 * shard + i))]
            members += [(f"{key}.txt", f"thing {group}{' x' * ((number + 2) % 4)}".encode())]
            members += [(f"{key}.json", json.dumps(meta).encode()), (f"{key}.cls", b"%d" % group)]
        paths.append(str(write_tar(tmp_path / "in" / f"{shard}.tar", members)))
    return paths


def _samples(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        sample.key: sample.members
        for path in sorted(folder.glob("*.tar"))
        for sample in iter_samples(build_index(str(path)))
    }


def test_whole_groups_and_nothing_lost(tmp_path: Path, shards: list[str]) -> None:
    counts = holdout(shards, tmp_path / "out", "json.of.base", Choice((), 0.25, 0.5, 3))
    assert counts == {"train": 26, "held": 4, "test": 4, "groups": 2}
    parts = {name: _samples(tmp_path / "out" / name) for name in ("train", "held", "test")}
    whole = _samples(tmp_path / "in")
    assert {k: v for part in parts.values() for k, v in part.items()} == whole
    groups = {name: {json.loads(m["json"])["of"].get("base") for m in part.values()}
              for name, part in parts.items()}  # fmt: skip
    assert groups["held"] == groups["test"] and not groups["held"] & groups["train"]
    assert None in groups["train"]  # samples of no group are never held out
    said = json.loads((tmp_path / "out/groups.json").read_text())
    assert said["held_out"] == dict.fromkeys(sorted(groups["held"]), 4)


def test_the_name_of_a_group_is_in_no_memory(tmp_path: Path, shards: list[str]) -> None:
    holdout(shards, tmp_path / "out", "json.of.base", Choice((), 0.25, 0.5, 3))
    folder = open_folder(tmp_path / "out/groups", "test")
    captions = {m["txt"].decode() for m in _samples(tmp_path / "out/held").values()}
    assert len(folder.classnames) == 2 and not captions & set(folder.classnames)
    assert folder.templates == ["{c}"]
    for key, label in zip(folder.keys, folder.labels()):
        caption = _samples(tmp_path / "out/test")[key]["txt"].decode()
        assert caption.startswith(folder.classnames[label])
    assert find_sets(tmp_path / "out", "test")[0].types == ("retrieval",)


def test_each_group_is_tested_by_its_share(tmp_path: Path, shards: list[str]) -> None:
    for share, each in ((0.75, 3), (0.01, 1), (0.99, 3)):
        out = tmp_path / f"out{share}"
        counts = holdout(shards, out, "json.of.base", Choice((), 1.0, share))
        assert counts == {"train": 2, "held": 8 * (4 - each), "test": 8 * each, "groups": 8}
        assert len(_samples(out / "test")) == 8 * each


def test_named_classes_and_their_names(tmp_path: Path, shards: list[str]) -> None:
    (tmp_path / "in/classnames.txt").write_text("".join(f"name {i}\n" for i in range(GROUPS)))
    (tmp_path / "in/zeroshot_classification_templates.txt").write_text("a {c}.\n")
    holdout(shards, tmp_path / "out", "cls", Choice(("7", "2"), test_share=1))
    few, whole = open_folder(tmp_path / "out/groups"), open_folder(tmp_path / "out")
    assert few.classnames == ["name 2", "name 7"] and len(whole.classnames) == GROUPS
    assert few.keys == whole.keys and set(whole.labels()) == {2, 7}
    assert [("name 2", "name 7")[x] for x in few.labels()] == [f"name {x}" for x in whole.labels()]
    assert not (tmp_path / "out/held").exists()
    assert set(open_folder(tmp_path / "out", "train").labels()) == {0, 1, 3, 4, 5, 6}


def test_a_caption_of_several_lines_is_one_name(tmp_path: Path) -> None:
    captions = {"a": "thing\none", "b": "thing\u2028 two"}
    members = []
    for i in range(6):
        group = "abc"[i // 2]
        meta = json.dumps({"g": group}).encode()
        text = captions.get(group, "other").encode()
        members += [(f"{i}.png", noise_bytes(i)), (f"{i}.txt", text), (f"{i}.json", meta)]
    path = str(write_tar(tmp_path / "in" / "0.tar", members))
    holdout([path], tmp_path / "out", "json.g", Choice(("a", "b"), test_share=1))
    folder = open_folder(tmp_path / "out/groups")
    assert folder.classnames == ["thing one", "thing two"] and folder.labels() == [0, 0, 1, 1]


@pytest.mark.parametrize("wrong", [b"8", b"-1", b"x"])
def test_a_class_without_a_name_is_told_before_anything_is_written(
    tmp_path: Path, shards: list[str], wrong: bytes
) -> None:
    (tmp_path / "in/classnames.txt").write_text("".join(f"name {i}\n" for i in range(GROUPS)))
    members = [("x.png", noise_bytes(1)), ("x.txt", b"x"), ("x.cls", wrong)]
    shards.append(str(write_tar(tmp_path / "in" / "9.tar", members)))
    with pytest.raises(DataError, match=f"cls '{wrong.decode()}' is none of the 8 classes"):
        holdout(shards, tmp_path / "out", "cls", Choice((wrong.decode(),), test_share=1))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_what_breaks_leaves_nothing(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DataError("broken")

    monkeypatch.setattr("data_tools.holdout._describe", broken)
    with pytest.raises(DataError, match="broken"):
        holdout(shards, tmp_path / "out", "cls", Choice(("1",)))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_seed_draws_groups_and_tests(tmp_path: Path, shards: list[str]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        holdout(shards, tmp_path / name, "json.of.base", Choice((), 0.5, 0.5, seed))
    a, b, c = ((tmp_path / n / "groups.json").read_text() for n in "abc")
    assert a == b and json.loads(a)["held_out"] != json.loads(c)["held_out"]
    assert [p.read_bytes() for p in sorted((tmp_path / "a").rglob("*.tar"))] == [
        p.read_bytes() for p in sorted((tmp_path / "b").rglob("*.tar"))
    ]


@pytest.mark.parametrize(
    ("by", "choice", "message"),
    [
        ("jsn.base", Choice(), "choose txt, cls or json"),
        ("json", Choice(), "choose txt, cls or json"),
        ("json.", Choice(), "choose txt, cls or json"),
        ("json.bsae", Choice(), "no sample has it"),
        ("cls", Choice(("9",)), "--values 9: no sample"),
        ("cls", Choice(share=0.01), "is none"),
        ("cls", Choice(share=0.0), "--share"),
        ("cls", Choice(tuple("01234567")), "nothing is left"),
    ],
)
def test_mistakes(tmp_path: Path, shards: list[str], by: str, choice: Choice, message: str) -> None:
    if message == "nothing is left":
        shards = shards[:1]
    with pytest.raises(DataError, match=message):
        holdout(shards, tmp_path / "out", by, choice)
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path, shards: list[str]) -> None:
    given = [str(tmp_path / "in"), str(tmp_path / "out"), "--by", "cls", "--values", "1, 2"]
    done = CliRunner().invoke(command_line.app, ["holdout", *given], catch_exceptions=False)
    assert "26 train, 8 held, 0 test, 2 groups" in done.stdout
    refused = CliRunner().invoke(command_line.app, ["holdout", *given, "--seed", "-1"])
    assert refused.exit_code == 2 and "--seed" in refused.output
    with pytest.raises(DataError, match="exists"):
        CliRunner().invoke(command_line.app, ["holdout", *given], catch_exceptions=False)
