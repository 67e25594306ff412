"""Which pictures become things, and under which names."""

from pathlib import Path

import pytest

from clipkit.data.shard_writer import write_shard
from clipkit.errors import DataError
from data_tools.scenes.things import CATEGORIES, choose_kinds, read_things
from tests.data_tools.scenes.singles import NAMES, single, write_singles


def read(tmp_path: Path, *samples: dict[str, bytes]) -> list[str]:
    path = tmp_path / "s.tar"
    write_shard(path, ((f"k{row}", sample) for row, sample in enumerate(samples)))
    return list(read_things([str(path)], CATEGORIES))


def test_a_thing_has_a_noun_of_one_word_and_a_category(tmp_path: Path) -> None:
    samples = [
        single("cat"),
        single("black cat"),
        single("T-Rex"),
        single("locked"),
        single("grapes"),
        single("book"),
        single("books"),
        single("elf", category="People & Body"),
        {**single("fog"), "json": b"{"},
        {**single("sun"), "json": b"[]"},
    ]
    assert read(tmp_path, *samples) == ["book", "cat", "grapes"]


def test_pictures_are_cut_to_what_is_seen(tmp_path: Path) -> None:
    things = read_things([write_singles(tmp_path / "s.tar")], ["Objects"])
    assert list(things) == sorted(NAMES)
    assert {(picture.mode, picture.size) for picture in things.values()} == {("RGBA", (16, 16))}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([single("black cat")], "one word.*--category"),
        ([single("cat"), single("cat")], "two pictures are called 'cat'"),
        ([{**single("cat"), "png": b"no"}], "sample 'k0' is no png"),
    ],
)
def test_what_cannot_be_used_is_said(
    tmp_path: Path, samples: list[dict[str, bytes]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, *samples)


def test_an_invisible_picture_is_named(tmp_path: Path) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, format="PNG")
    with pytest.raises(DataError, match="'k0' is wholly transparent"):
        read(tmp_path, {**single("cat"), "png": buffer.getvalue()})


def test_kinds_are_drawn_by_the_seed() -> None:
    drawn = choose_kinds(NAMES, 8, seed=1)
    assert drawn == choose_kinds(NAMES[::-1], 8, seed=1) == sorted(drawn)
    assert drawn != choose_kinds(NAMES, 8, seed=2)
    with pytest.raises(DataError, match="--kinds 21: the shards hold 20 kinds"):
        choose_kinds(NAMES, 21, seed=0)
