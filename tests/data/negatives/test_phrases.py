"""Phrases from a file, and what is said of a file without any."""

import pytest

from clipkit.data.negatives.phrases import read_phrases
from clipkit.errors import ConfigError

LINES = "# held out\nred triangle\n\n  blue circle \n  # green\n"


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_lines_and_json(tmp_path):
    wanted = ("red triangle", "blue circle")
    assert read_phrases(write(tmp_path, "a.txt", LINES), "--forbid") == wanted
    json = '{"seed": 0, "held_out": ["red triangle", "blue circle"]}'
    assert read_phrases(write(tmp_path, "a.json", json), "--forbid") == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\n \n # none\n"),
        ("a.json", "{}"),
        ("a.json", "[1]"),
        ("a.json", '{"held_out": "red"}'),
        ("a.json", '{"held_out": [1]}'),
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
    ],
)
def test_nothing_in_it(tmp_path, name, text):
    with pytest.raises(ConfigError, match=r"^--forbid: '.*a\.(txt|json)'"):
        read_phrases(write(tmp_path, name, text), "--forbid")


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="^x.forbid_file: '.*none.txt' cannot be read"):
        read_phrases(str(tmp_path / "none.txt"), "x.forbid_file")
