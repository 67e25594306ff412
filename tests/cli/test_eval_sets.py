"""`clipkit eval ls` and `validate`."""

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.errors import DataError
from tests.fixtures_encoder import write_color_set
from tests.fixtures_shards import write_tar


@pytest.fixture
def root(tmp_path):
    write_color_set(tmp_path / "colors", [0, 1, 2, 3])
    write_color_set(tmp_path / "pairs", [0, 1], ["a red", "a green"])
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], terminal_width=200)


def test_tasks_are_listed():
    result = call("ls")
    assert result.exit_code == 0, result.exception
    for kind in ("zero_shot", "retrieval", "selection", "linear_probe", "modality_gap"):
        assert kind in result.output


def test_sets_are_listed_with_what_reads_them(root):
    result = call("ls", "--data", root)
    assert result.exit_code == 0, result.exception
    assert "colors" in result.output and "classification" in result.output
    assert "pairs" in result.output and "retrieval" in result.output


def test_whole_sets_are_called_whole(root):
    result = call("validate", "--data", root)
    assert result.exit_code == 0, result.exception
    assert result.output.count("whole") == 2 and "4" in result.output


def test_a_broken_image_is_named(root):
    write_tar(root / "pairs" / "test" / "0.tar", [("0.png", b"\x89PNG no"), ("0.txt", b"a")])
    result = call("validate", "--data", root)
    assert isinstance(result.exception, DataError) and "1 of the data sets" in str(result.exception)
    assert "sample" in result.output and "whole" in result.output


def test_a_missing_label_is_named(root):
    (root / "colors" / "classnames.txt").write_text("red\ngreen\n")
    result = call("validate", "--data", root / "colors")
    assert isinstance(result.exception, DataError)
    assert "label" in result.output
