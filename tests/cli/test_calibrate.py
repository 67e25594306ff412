"""`clipkit calibrate`, and embed, search and eval with what it wrote."""

import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import clipkit
from clipkit.cli.main import app
from clipkit.dist import group
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.eval.results import read_results
from clipkit.retrieval.calibration import load_calibration
from tests.addons.retrieval_fusion.memories import PlainMemory
from tests.fixtures_encoder import write_color_set
from tests.fixtures_shards import noise_bytes, write_shards
from tests.fixtures_trained import write_trained_run


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    yield
    group.teardown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, its calibration, sets, and shards."""
    root = tmp_path_factory.mktemp("calibrate")
    write_trained_run(root / "run")
    write_color_set(root / "fit", [0, 1, 2, 3], ["a red", "a green\nanother", "a blue", "white"])
    write_color_set(root / "data" / "pairs", [3, 1, 2], ["so white", "a green thing", "blue"])
    write_shards(root / "shards", [4, 3])
    (root / "q.txt").write_text("what is red?\nwho is blue?\n")
    call("calibrate", root / "run", root / "fit", "--no-cache")
    return root


def call(*arguments):
    found = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    group.teardown()
    return found


def done(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def failed(kind, words, *arguments):
    result = call(*arguments)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    assert words in str(result.exception) and "\n" not in str(result.exception)


def test_it_says_what_it_did_and_disturbs_nothing(place, tmp_path):
    path = place / "run" / "calibration.safetensors"
    before = set((place / "run" / "checkpoints").iterdir())
    result = done("calibrate", place / "run", place / "fit", "--no-cache")
    words = " ".join(result.stdout.split())
    assert f"{path}: means of 4 images, 5 texts and 5 queries (the texts; --queries" in words
    assert "gap between the modalities' means" in words and "after centring" in words
    assert load_calibration(path).data == str(place / "fit")
    assert CliRunner().invoke(app, ["verify", str(place / "run")]).exit_code == 0
    step = place / "run" / "checkpoints" / "step_00000003"
    done("calibrate", step, place / "fit", "--queries", place / "q.txt", "--out", tmp_path / "c")
    assert load_calibration(tmp_path / "c").counts["query_text"] == 2
    assert set(step.parent.iterdir()) == before
    clipkit.export(place / "run", tmp_path / "out")
    done("calibrate", tmp_path / "out", place / "fit")
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out")]).exit_code == 0
    own = load_calibration(tmp_path / "out" / "calibration.safetensors")
    assert own.identity == load_calibration(path).identity
    done("calibrate", step, place / "fit")  # a checkpoint's stands beside its run
    assert not (step / "calibration.safetensors").exists()


def test_refusals(place, tmp_path):
    fit = place / "fit"
    write_trained_run(tmp_path / "other", seed=1)
    for kind, words, arguments in (
        (CheckpointError, "absent", (tmp_path / "absent", fit)),
        (DataError, "nowhere", (place / "run", tmp_path / "nowhere")),
        (DataError, "one query a line", (place / "run", fit, "--queries", _empty(tmp_path))),
        (ConfigError, "cannot be written", (place / "run", fit, "--out", place / "q.txt" / "c")),
        (ConfigError, "--memory", (place / "run", fit, "--refine", "text")),
    ):
        failed(kind, words, "calibrate", *arguments)
    data = ("--data", place / "data", "--out", tmp_path / "results")
    of_run = place / "run" / "calibration.safetensors"
    for kind, words, options in (
        (CheckpointError, "no such calibration", ("--calibration", "auto")),
        (CheckpointError, "was fitted on weights", ("--calibration", of_run)),
        (ConfigError, "a shift needs means", ("--shift", 0.5)),
        (DataError, "no-memory", ("--memory", tmp_path / "no-memory")),
    ):
        failed(kind, words, "eval", "run", "--checkpoint", tmp_path / "other", *data, *options)
    options = ("--calibration", of_run)
    shards = (tmp_path / "other", place / "shards", tmp_path / "e")
    failed(CheckpointError, "was fitted on weights", "embed", *shards, *options)
    assert not list((tmp_path / "results").rglob("*.json")) and not (tmp_path / "e").exists()


def _empty(folder):
    (folder / "empty.txt").write_text("\n")
    return folder / "empty.txt"


def test_evaluation_with_and_without(place, tmp_path):
    options = ("--data", place / "data", "--out", tmp_path / "out", "--checkpoint", place / "run")
    plain = done("eval", "run", *options)
    centred = done("eval", "run", *options, "--calibration", "auto")
    shifted = done("eval", "run", *options, "--calibration", "auto", "--shift", 0.5)
    key = load_calibration(place / "run" / "calibration.safetensors").identity
    found = {r.model: r.data["refinements"] for r in read_results(tmp_path / "out")}
    assert sorted(found.values()) == [[], [f"centring-{key}"], [f"shift0.5-{key}"]]
    short = {re.sub("[0-9a-f]{6}$", "", model): names for model, names in found.items()}
    assert short["run-step_00000003+centring-"] == [f"centring-{key}"]
    for result in (plain, centred, shifted):
        assert "warning" not in result.output
    again = done("eval", "run", *options, "--calibration", "auto")
    assert "pairs: retrieval: finished before" in again.output
    leak = ("--data", place / "fit", "--out", tmp_path / "leak", "--checkpoint", place / "run")
    for more, count in (((), 0), (("--calibration", "auto"), 1)):
        for _ in range(2):  # of a finished result, too; below the table, which may be long
            *above, last = done("eval", "run", *leak, *more).output.splitlines()
            assert last.count("fitted on; its numbers are") == count
            assert not any("warning" in line for line in above)


def test_help_says_what_not_to_score():
    shown = " ".join(call("calibrate", "--help").stdout.replace("│", " ").split())
    assert "Do not score it with this calibration." in shown
    assert "Default: test, which evaluation scores" in shown


def feature_of(place, text):
    model, _, tokenizer = clipkit.load(place / "run")
    with torch.no_grad():
        return F.normalize(model.encode_text(tokenizer([text])), dim=-1).double()[0]


def test_embeddings_and_search_are_refined_alike(place, tmp_path):
    run, shards = place / "run", place / "shards"
    c = tmp_path / "c"
    done("calibrate", run, place / "fit", "--queries", place / "q.txt", "--out", c)
    fitted = load_calibration(c)
    done("embed", run, shards, tmp_path / "plain")
    result = done("embed", run, shards, tmp_path / "out", "--calibration", c)
    assert f"refined by centring-{fitted.identity}" in " ".join(result.stdout.split())
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["refinements"] == [f"centring-{fitted.identity}"]
    stored = {}
    for side, mean in (("img_emb", fitted.image), ("text_emb", fitted.text)):
        raw = torch.from_numpy(np.load(tmp_path / "plain" / side / f"{side}_0.npy")).double()
        stored[side] = torch.from_numpy(np.load(tmp_path / "out" / side / f"{side}_0.npy")).double()
        expected = F.normalize(F.normalize(raw, dim=1) - mean, dim=1)
        assert torch.allclose(stored[side], expected, atol=1e-2)
    found = done("search", tmp_path / "out", "caption 2", "--json", "--calibration", c)
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    query = F.normalize(feature_of(place, "caption 2") - fitted.query_text, dim=0)  # as a query
    scores = F.normalize(stored["img_emb"], dim=1) @ query
    assert [r["score"] for r in rows] == pytest.approx(
        scores.sort(descending=True).values.tolist(), abs=1e-3
    )
    for folder, options in (
        ("out", ()),
        ("plain", ("--calibration", c)),
        ("out", ("--calibration", "auto")),
        ("out", ("--calibration", c, "--shift", 0.5)),
    ):
        failed(CheckpointError, "refined by", "search", tmp_path / folder, "x", *options)
    failed(ConfigError, "--overwrite", "embed", run, shards, tmp_path / "out")


def test_a_memory_refines_before_the_centring(place, tmp_path, monkeypatch):
    """Means are of features that the memory has refined, and go with that memory alone."""

    def opened(path, weights=None):
        return PlainMemory(dim=8, seed=int(str(path)[-1]))

    monkeypatch.setattr("clipkit.retrieval.memory.open_memory", opened)
    with_memory = ("--memory", "m1", "--fusion", "prototype")
    c = tmp_path / "c"
    done("calibrate", place / "run", place / "fit", "--out", c, *with_memory)
    (name,) = load_calibration(c).refinements
    assert name.startswith("prototype(") and "sides=text" in name and "plain-40-1" in name
    options = ("--checkpoint", place / "run", "--data", place / "data", "--out", tmp_path / "out")
    done("eval", "run", *options, "--calibration", c, *with_memory)
    (stored,) = read_results(tmp_path / "out")
    assert len(stored.data["refinements"]) == 2 and stored.data["refinements"][0] == name
    failed(CheckpointError, "no refinement", "eval", "run", *options, "--calibration", c)
    other = ("--memory", "m2", "--fusion", "prototype")
    failed(CheckpointError, "plain-40-2", "eval", "run", *options, "--calibration", c, *other)
    failed(CheckpointError, "no fusion heads", "eval", "run", *options, "--memory", "m1")


def test_a_calibration_goes_with_a_mixed_search(place, tmp_path):
    root = tmp_path / "mixed"
    (root / "img").mkdir(parents=True)
    documents = []
    for i in range(12):
        (root / "img" / f"{i}.png").write_bytes(noise_bytes(i, side=32))
        documents.append({"corpus_id": f"i{i}", "image": f"img/{i}.png"})
        documents.append({"corpus_id": f"t{i}", "text": f"caption {i}"})
    queries = [{"query_id": f"q{i}", "text": f"caption {i}"} for i in range(12)]
    for file, rows in (("queries", queries), ("mixed_corpus", documents)):
        (root / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "qrels.tsv").write_text("".join(f"q{i}\ti{i}\t1\n" for i in range(12)))
    c = place / "run" / "calibration.safetensors"
    (tmp_path / "tasks.yaml").write_text(
        f"- {{kind: mixed_modality, data: mixed, calibration: '{c}'}}\n"
    )
    options = ("--checkpoint", place / "run", "--data", root)
    done("eval", "run", *options, "--out", tmp_path / "a", "--tasks", tmp_path / "tasks.yaml")
    done("eval", "run", *options, "--out", tmp_path / "b", "--calibration", "auto")
    (by_task,), (by_model,) = read_results(tmp_path / "a"), read_results(tmp_path / "b")
    assert by_task.metrics == by_model.metrics and "ndcg@10_uncalibrated" in by_task.metrics
    assert by_task.metrics["share_image@10"] > 0.05
    done("calibrate", place / "run", root, "--out", tmp_path / "own")
    leak = ("--calibration", tmp_path / "own", "--out", tmp_path / "c")
    assert "warning" in done("eval", "run", *options, *leak).stderr
