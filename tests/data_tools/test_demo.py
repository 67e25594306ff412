"""The demo data folder: layout, the same bytes twice, held-out combinations only in `unseen`."""

import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from clipkit.data.selection_set import open_selection
from clipkit.data.wds_folder import open_folder
from clipkit.errors import DataError
from data_tools import demo
from data_tools.__main__ import main
from data_tools.demo import SIZES, build_demo

MENTION = re.compile(r"an? (\w+ \w+)")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete demo folder with seed 0; tests must not write to it."""
    out = tmp_path_factory.mktemp("demo") / "data"
    assert build_demo(out)
    return out


def read_samples(folder: Path, pattern: str) -> dict[str, dict[str, bytes]]:
    """Read shards: key -> suffix -> bytes."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".")
                data = tar.extractfile(member)
                assert data is not None
                assert suffix not in samples.setdefault(key, {}), f"{member.name} occurs twice"
                samples[key][suffix] = data.read()
    assert samples, f"no {pattern} in {folder}"
    return samples


def captions(samples: dict[str, dict[str, bytes]]) -> list[str]:
    return [sample["txt"].decode() for sample in samples.values()]


def unordered(caption: str) -> frozenset[str]:
    """What a shapes caption says, without word order."""
    return frozenset(MENTION.findall(caption))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_second_build_has_the_same_bytes(built: Path, tmp_path: Path) -> None:
    # A name that webdataset would take for a format or a scheme, in a folder yet to be made.
    again = tmp_path / "new" / "pipe:50%d"
    assert build_demo(again)
    assert folder_bytes(again) == folder_bytes(built)
    assert [path.name for path in again.parent.iterdir()] == [again.name]


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [
        ("digits", {"png", "txt", "cls"}),
        ("shapes", {"png", "txt", "json"}),
        ("relations", {"png", "txt", "json"}),
    ],
)
def test_train_layout(built: Path, name: str, suffixes: set[str]) -> None:
    shards = sorted(path.name for path in (built / name).glob("*.tar"))
    assert shards == [f"train-{index:05d}.tar" for index in range(len(shards))]
    assert len(shards) > 1
    samples = read_samples(built / name, "train-*.tar")
    assert len(samples) == SIZES[f"{name}_train"]
    assert all(sample.keys() == suffixes for sample in samples.values())


@pytest.mark.parametrize(
    ("split", "suffixes"),
    [
        ("digits/test", {"png", "cls"}),
        ("shapes/test", {"png", "txt", "json"}),
        ("shapes/unseen", {"png", "txt", "json"}),
        ("relations/test", {"png", "txt", "json"}),
    ],
)
def test_clip_benchmark_layout(built: Path, split: str, suffixes: set[str]) -> None:
    folder = built / split
    names = ["0.tar", "nshards.txt"] + ["selection.jsonl"] * ("json" in suffixes)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert int((folder / "nshards.txt").read_text()) == 1
    samples = read_samples(folder, "0.tar")
    assert list(samples) == [f"s{index:07d}" for index in range(SIZES[split.replace("/", "_")])]
    assert all(sample.keys() == suffixes for sample in samples.values())


def test_metadata_files(built: Path) -> None:
    assert len((built / "digits/classnames.txt").read_text().splitlines()) == 10
    templates = (built / "digits/zeroshot_classification_templates.txt").read_text().splitlines()
    assert templates and all("{c}" in template for template in templates)
    for name in ("shapes", "relations"):
        assert (built / name / "dataset_type.txt").read_text().strip() == "retrieval"


@pytest.mark.parametrize("name", ["shapes", "relations"])
def test_held_out_combinations_stay_out_of_training(built: Path, name: str) -> None:
    held_out = set(json.loads((built / "demo.json").read_text())["held_out"])
    samples = read_samples(built / name, "train-*.tar")
    assert all(held_out.isdisjoint(unordered(caption)) for caption in captions(samples))
    for sample in samples.values():
        objects = json.loads(sample["json"])["objects"]
        assert held_out.isdisjoint(f"{item['color']} {item['shape']}" for item in objects)


@pytest.mark.parametrize(
    "folder", ["shapes", "shapes/test", "shapes/unseen", "relations", "relations/test"]
)
def test_negatives_are_wrong_and_free_of_held_out(built: Path, folder: str) -> None:
    held_out = set(json.loads((built / "demo.json").read_text())["held_out"])
    for sample in read_samples(built / folder, "*.tar").values():
        caption = sample["txt"].decode()
        first, *joint, second = re.split(r" (and|left of|right of|above|below) ", caption)
        flipped = {"and": "and", **demo.demo_shapes.OPPOSITE}[joint[0]]
        negatives = json.loads(sample["json"])["negatives"]
        assert {caption, f"{second} {flipped} {first}"}.isdisjoint(negatives)
        assert all(held_out.isdisjoint(unordered(negative)) for negative in negatives)
        assert len(negatives) == len(set(negatives))


@pytest.mark.parametrize("split", ["shapes/test", "shapes/unseen", "relations/test"])
def test_selection_asks_for_the_caption_against_each_negative(built: Path, split: str) -> None:
    samples = read_samples(built / split, "0.tar")
    folder = built / split
    chosen = open_selection(folder.parent, folder.name)
    asked: dict[str, list[str]] = {key: [] for key in samples}
    for item in chosen.items:
        (key,) = item.images
        assert item.shape == (1, 2) and len(item.tags) == 1
        assert item.texts[item.answer[0]] == samples[key]["txt"].decode()
        asked[key].append(item.texts[1 - item.answer[0]])
    assert asked == {k: json.loads(sample["json"])["negatives"] for k, sample in samples.items()}
    assert len(chosen) > 150
    expected = {"swap_color", "replace_shape", "replace_color"}
    if split.startswith("relations"):
        expected = {"swap_color", "swap_roles", "opposite_relation"}
    assert {tag for item in chosen.items for tag in item.tags} == expected
    # One pass of the images serves retrieval and selection.
    assert chosen.source.place == open_folder(folder.parent, folder.name).place


def test_most_training_scenes_have_the_colour_swap(built: Path) -> None:
    samples = read_samples(built / "shapes", "train-*.tar")
    num_swaps = 0
    for sample in samples.values():
        description = json.loads(sample["json"])
        first, second = description["objects"]
        swap = {f"{second['color']} {first['shape']}", f"{first['color']} {second['shape']}"}
        num_swaps += any(unordered(text) == swap for text in description["negatives"])
    assert num_swaps > len(samples) / 2


@pytest.mark.parametrize("axis", ["x", "y"])
def test_order_of_mention_is_unrelated_to_position(built: Path, axis: str) -> None:
    samples = read_samples(built / "shapes", "train-*.tar")
    objects = [json.loads(sample["json"])["objects"] for sample in samples.values()]
    share = sum(first[axis] < second[axis] for first, second in objects) / len(objects)
    assert abs(share - 0.5) < 4 * (0.25 / len(objects)) ** 0.5  # four standard errors


@pytest.mark.parametrize("attribute", ["color", "shape"])
def test_order_of_mention_is_unrelated_to_content(built: Path, attribute: str) -> None:
    samples = read_samples(built / "shapes", "train-*.tar")
    first, total = Counter(), Counter()
    for sample in samples.values():
        objects = json.loads(sample["json"])["objects"]
        first[objects[0][attribute]] += 1
        total.update(item[attribute] for item in objects)
    for value, count in total.items():
        assert abs(first[value] / count - 0.5) < 4 * (0.25 / count) ** 0.5, value


def test_objects_are_in_order_of_mention(built: Path) -> None:
    for sample in read_samples(built / "shapes", "test/0.tar").values():
        objects = json.loads(sample["json"])["objects"]
        named = [f"{item['color']} {item['shape']}" for item in objects]
        assert MENTION.findall(sample["txt"].decode()) == named


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_retrieval_captions_are_distinct(built: Path, split: str) -> None:
    held_out = set(json.loads((built / "demo.json").read_text())["held_out"])
    said = [
        unordered(caption) for caption in captions(read_samples(built / "shapes" / split, "*.tar"))
    ]
    assert len(set(said)) == len(said) == 200
    assert all((split == "unseen") != held_out.isdisjoint(pair) for pair in said)


def test_test_scenes_are_new_but_their_captions_are_known(built: Path) -> None:
    train = read_samples(built / "shapes", "train-*.tar")
    known = {unordered(caption) for caption in captions(train)}
    assert len(known) > 500
    test = read_samples(built / "shapes/test", "*.tar")
    assert {unordered(caption) for caption in captions(test)} <= known
    pixels = {sample["png"] for sample in train.values()}
    assert pixels.isdisjoint(sample["png"] for sample in test.values())


def test_relation_test_captions_are_distinct_in_meaning(built: Path) -> None:
    meanings = set()
    for caption in captions(read_samples(built / "relations/test", "*.tar")):
        first, relation, second = re.split(r" (left of|right of|above|below) ", caption)
        opposite = demo.demo_shapes.OPPOSITE[relation]
        meanings.add(min((first, relation, second), (second, opposite, first)))
    assert len(meanings) == 200


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["clipkit-data", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_up_to_date_demo_is_left_alone(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat() for path in built.rglob("*")}
    assert run_main(monkeypatch, "demo", str(built)) == 0
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat() for path in built.rglob("*")} == before


def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shapes_train", "shapes_test", "shapes_unseen"):
        monkeypatch.setitem(SIZES, name, 5)
    for name in ("relations_train", "relations_test"):
        monkeypatch.setitem(SIZES, name, 5)


def test_demo_of_another_seed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch)
    out = tmp_path / "data"
    assert build_demo(out, seed=0)
    (out / "stale").touch()
    first = (out / "shapes/train-00000.tar").read_bytes()
    assert build_demo(out, seed=1)
    assert (out / "shapes/train-00000.tar").read_bytes() != first
    assert not build_demo(out, seed=1)
    assert not (out / "stale").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch)

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo.demo_shapes, "relations_test", fail)
    with pytest.raises(OSError, match="disk full"):
        build_demo(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["notes.txt", "demo.json"])
def test_foreign_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / content).write_text("[]")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        build_demo(tmp_path)
    assert (tmp_path / content).read_text() == "[]"


def test_user_error_is_one_line_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_main(monkeypatch, "demo", str(tmp_path / "file")) == DataError.exit_status
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(tmp_path / "file") in message
