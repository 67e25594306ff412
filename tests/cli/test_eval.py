"""`clipkit eval run`: tables, results on disk, several checkpoints, errors that name the thing."""

import json

import pytest
import torch
from typer.testing import CliRunner

import clipkit
from clipkit.cli.main import app
from clipkit.dist import group
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.eval.base import NonFiniteResult
from clipkit.eval.results import read_results
from tests.fixtures_encoder import write_color_set
from tests.fixtures_model import write_arch
from tests.fixtures_trained import write_trained_run


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    yield
    group.teardown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    write_trained_run(root / "run")
    write_color_set(root / "data" / "colors", [0, 1, 2, 3, 0, 1])
    write_color_set(root / "data" / "pairs", [0, 1, 2], ["a red", "a green\nanother", "a blue"])
    return root


def evaluate(*arguments):
    return CliRunner().invoke(app, ["eval", "run", *map(str, arguments), "--device", "cpu"])


def test_a_folder_of_sets(place, tmp_path):
    out = tmp_path / "deep" / "results"
    options = ("--checkpoint", place / "run", "--data", place / "data", "--out", out)
    result = evaluate(*options)
    assert result.exit_code == 0, result.output
    first, second = read_results(out)
    assert first.path == out / "run-step_00000003" / "colors.zero_shot.json"
    assert first.data["task"] == "zeroshot_classification" and first.data["step"] == 3
    assert first.metrics["n"] == 6 and 0 <= first.metrics["acc1"] <= first.metrics["acc5"] == 1
    assert second.data["task"] == "zeroshot_retrieval" and second.metrics["captions"] == 4
    for words in ("acc1", "image_retrieval_recall@5", "loaded in", "colors: zero_shot: 0."):
        assert words in result.output
    group.teardown()
    again = evaluate(*options)
    assert "colors: zero_shot: finished before" in again.output


def test_a_weights_file_and_an_export_give_the_runs_numbers(place, tmp_path):
    model, _, _ = clipkit.load(place / "run")
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    clipkit.export(place / "run", tmp_path / "exported")
    arch = write_arch(tmp_path)
    data = ("--data", place / "data" / "colors")
    for checkpoint in (["--checkpoint", place / "run", "--checkpoint", tmp_path / "exported"],
                       ["--checkpoint", weights, "--arch", arch]):  # fmt: skip
        result = evaluate(*checkpoint, *data, "--out", tmp_path / "out")
        assert result.exit_code == 0, (result.output, result.exception)
        group.teardown()
    found = read_results(tmp_path / "out")
    assert len(found) == 3 and len({r.model for r in found}) == 3
    assert len({r.data["weights_hash"] for r in found}) == 1
    assert len({json.dumps(r.metrics) for r in found}) == 1


def test_bf16_towers_have_their_own_features(place, tmp_path):
    for precision in ("fp32", "bf16"):
        result = evaluate(
            "--checkpoint", place / "run", "--data", place / "data" / "colors",
            "--precision", precision, "--out", tmp_path / precision,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "finished before" not in result.output
        group.teardown()
    assert len({p.parent for p in (tmp_path / "cache").rglob("part-*")}) == 4


def test_no_cache_leaves_none(place, tmp_path):
    data = ("--data", place / "data" / "colors", "--out", tmp_path / "out")
    assert evaluate("--checkpoint", place / "run", *data, "--no-cache").exit_code == 0
    assert not list((tmp_path / "cache").rglob("part-*"))


def test_a_model_of_nan_names_the_tower(place, tmp_path):
    model, _, _ = clipkit.load(place / "run")
    state = model.state_dict()
    state["visual.conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    result = evaluate(
        "--checkpoint", tmp_path / "nan.pt", "--arch", write_arch(tmp_path),
        "--data", place / "data", "--out", tmp_path / "out",
    )  # fmt: skip
    assert isinstance(result.exception, NonFiniteResult)
    assert "the image tower gives NaN" in str(result.exception)
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--checkpoint", "{run}", "--data", "{data}/nowhere"], DataError, "nowhere"),
        (["--checkpoint", "{root}/absent", "--data", "{data}"], CheckpointError, "absent"),
        (["--checkpoint", "{arch}", "--data", "{data}"], CheckpointError, "--arch"),
        (["--checkpoint", "tag", "--arch", "ViT-B-32", "--data", "{data}"], ConfigError, "tag"),
        (["--checkpoint", "{run}", "--arch", "x", "--data", "{data}"], CheckpointError, "--arch"),
        (["--checkpoint", "{arch}", "--arch", "x", "--data", "{data}"], ConfigError, "'x'"),
        (["--checkpoint", "{run}", "--checkpoint", "{run}", "--data", "{data}"],
         ConfigError, "another one is named"),
        (["--checkpoint", "{run}", "--data", "{data}", "--precision", "fp8"], ConfigError, "fp8"),
        (["--checkpoint", "{run}", "--data", "{data}", "--tasks", "zero"],
         ConfigError, "zero_shot"),
        (["--checkpoint", "{run}", "--data", "{data}", "--split", "val"], DataError, "val"),
        (["--checkpoint", "{run}", "--data", "{data}", "--out", "{arch}"], ConfigError, "--out"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(place, tmp_path, monkeypatch, arguments, error, words):
    monkeypatch.chdir(tmp_path)
    names = {"run": place / "run", "data": place / "data", "root": place}
    names["arch"] = write_arch(tmp_path)
    result = evaluate(*[str(a).format(**names) for a in arguments])
    assert isinstance(result.exception, error), (result.output, result.exception)
    assert words in str(result.exception) and "\n" not in str(result.exception)


def test_a_task_of_another_package(place, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "count.py").write_text(
        '''
from typing import ClassVar

from clipkit.eval.base import EvalResult
from clipkit.eval.zero_shot import ZeroShotEval


class CountEval(ZeroShotEval):
    """How many images there are."""

    reads: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, data: str, name: str, *, split: str = "test", weight: float = 1.0) -> None:
        super().__init__(data, name, split=split)
        self.weight = weight

    def run(self, model):
        rows = model.images(self.check())
        records = [{"id": str(i), "values": {"one": self.weight}} for i in range(len(rows))]
        return EvalResult.from_records("count", self.name, records)


PART = CountEval
'''
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--checkpoint", place / "run", "--data", place / "data", "--out", tmp_path / "out")
    refused = evaluate(*words, "--tasks", "my_package.count")
    assert isinstance(refused.exception, ConfigError) and "extensions" in str(refused.exception)
    group.teardown()
    result = evaluate(*words, "--tasks", "my_package.count", "--extensions", "my_package")
    assert result.exit_code == 0, (result.output, result.exception)
    (stored,) = read_results(tmp_path / "out")
    assert stored.kind == "my_package.count" and stored.metrics["one"] == 1.0


def test_names_are_no_markup(place, tmp_path):
    out = tmp_path / "x[" / "red]y"
    data = ("--data", place / "data" / "colors", "--out", out)
    result = evaluate("--checkpoint", place / "run", *data)
    assert result.exit_code == 0, (result.output, result.exception)
