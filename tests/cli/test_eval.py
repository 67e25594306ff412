"""`clipkit eval run` on a run folder: table, JSON, and errors that name the folder."""

import json

import pytest
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.dist import group
from clipkit.errors import CheckpointError, DataError
from tests.fixtures_encoder import write_color_set
from tests.fixtures_trained import write_trained_run


@pytest.fixture(autouse=True)
def _leave_the_group(monkeypatch):
    yield
    group.teardown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    write_trained_run(root / "run")
    write_color_set(root / "colors", [0, 1, 2, 3, 0, 1])
    write_color_set(root / "pairs", [0, 1, 2], ["a red", "a green\nanother green", "a blue"])
    return root


def evaluate(*arguments):
    return CliRunner().invoke(app, ["eval", "run", *map(str, arguments), "--device", "cpu"])


def test_both_kinds_of_folder(place, tmp_path):
    out = tmp_path / "deep" / "results.json"
    data = ("--data", place / "colors", "--data", place / "pairs")
    result = evaluate("--checkpoint", place / "run", *data, "--out", out)
    assert result.exit_code == 0, result.output
    first, second = json.loads(out.read_text())
    assert (first["task"], first["dataset"]) == ("zeroshot_classification", "colors")
    assert (
        first["metrics"]["n"] == 6
        and 0 <= first["metrics"]["acc1"] <= first["metrics"]["acc5"] == 1
    )
    assert second["task"] == "zeroshot_retrieval" and second["metrics"]["captions"] == 4
    assert "acc1" in result.output and "image_retrieval_recall@5" in result.output


def test_missing_things_are_named(place):
    result = evaluate("--checkpoint", place / "absent", "--data", place / "colors")
    assert isinstance(result.exception, CheckpointError) and "absent" in str(result.exception)
    group.teardown()
    result = evaluate("--checkpoint", place / "run", "--data", place / "nowhere")
    assert isinstance(result.exception, DataError) and "nowhere" in str(result.exception)
