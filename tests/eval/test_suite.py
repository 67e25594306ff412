"""Finished tasks are not repeated, changed ones are; rank 0 writes; provenance says what ran."""

import json
import os
import re

import pytest

from clipkit.data.eval_sets import find_sets
from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.base import NonFiniteResult
from clipkit.eval.embed import Embedder
from clipkit.eval.feature_cache import FeatureCache
from clipkit.eval.modality_means import fit_calibration
from clipkit.eval.results import read_results
from clipkit.eval.suite import (
    ModelFacts,
    checkpoint_facts,
    refined_facts,
    run_jobs,
    scored_calibrations,
)
from clipkit.eval.tasks import plan
from clipkit.retrieval.calibration import Centring, Shift
from tests.eval import cells
from tests.fixtures_encoder import color_encoder, write_color_set

FACTS = ModelFacts("m-step_00000003", "/runs/m", "m", 3)


@pytest.fixture
def root(tmp_path):
    write_color_set(tmp_path / "data" / "colors", [0, 1, 2, 3, 0])
    write_color_set(tmp_path / "data" / "pairs", [0, 1, 2], ["a red", "a green\ngreen", "a blue"])
    return tmp_path


def run(root, model=None, **options):
    jobs, _ = plan(find_sets(root / "data"))
    embedder = Embedder(model or color_encoder(), World())
    return list(run_jobs(jobs, embedder, FACTS, root / "out", **options))


def test_results_are_stored_and_not_computed_twice(root):
    first = run(root)
    assert [(r.dataset, r.kind, fresh) for r, fresh in first] == [
        ("colors", "zero_shot", True),
        ("pairs", "retrieval", True),
    ]
    calls = []
    again = run(root, color_encoder(calls=calls))
    assert [fresh for _, fresh in again] == [False, False] and not calls
    assert [fresh for _, fresh in run(root, force=True)] == [True, True]
    assert [r.metrics for r, _ in first] == [r.metrics for r, _ in again]


def test_what_a_result_depends_on_makes_it_new(root):
    run(root)
    names = root / "data" / "colors" / "zeroshot_classification_templates.txt"
    names.write_text("one {c}\n")
    assert [fresh for _, fresh in run(root)] == [True, False]
    other = color_encoder()
    other.weights_hash = "other"
    with pytest.raises(DataError, match="colors.zero_shot.json holds a result of other weights"):
        run(root, other)
    assert [fresh for _, fresh in run(root, other, force=True)] == [True, True]


def test_a_damaged_result_is_computed_again(root):
    (first, _), (second, _) = run(root)
    first.path.write_text(first.path.read_text()[:-20])
    samples = next(second.path.parent.glob("pairs*.jsonl"))
    samples.write_text(samples.read_text().replace("1.0", "0.0"))
    assert [fresh for _, fresh in run(root)] == [True, True]


def test_finished_tasks_stay_when_a_later_one_fails(root):
    def broken(color):
        return color * float("nan") if len(color) == 4 else cells.mixed(color)

    with pytest.raises(NonFiniteResult, match="image tower"):
        run(root, color_encoder(broken))
    stored = read_results(root / "out")
    assert [r.dataset for r in stored] == ["colors"]


def test_a_checkpoint_is_named_by_its_run_and_its_architecture(tmp_path):
    folder = tmp_path / "runs" / "a" / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    assert checkpoint_facts(folder).arch == "a-step_00000007"
    (tmp_path / "runs" / "a" / "config.yaml").write_text("model: {arch: ViT-B-32}")
    expected = ModelFacts("a-step_00000007", str(folder), "ViT-B-32", 7)
    assert checkpoint_facts(folder) == expected


def test_provenance(root):
    (stored, _), _ = run(root)
    data = json.loads(stored.path.read_text())
    assert {"dataset", "task", "metrics", "model", "pretrained", "language"} <= data.keys()
    assert data["step"] == 3 and data["skipped_samples"] == 0 and data["score_dtype"] == "fp32"
    assert data["versions"].keys() == {"clipkit", "torch", "open_clip", "python"}
    for key in ("weights_hash", "transform_hash", "tokenizer_hash", "templates_hash", "data_hash"):
        assert isinstance(data[key], str)
    assert len(stored.records()) == data["metrics"]["n"] == 5


def test_two_ranks_write_what_one_writes(root, ranks):
    run(root)
    alone = {r.dataset: (r.metrics, r.records()) for r in read_results(root / "out")}
    os.rename(root / "out", root / "alone")
    assert ranks(2).run(cells.suite, str(root / "data"), str(root / "out")) == [2, 0]
    both = {r.dataset: (r.metrics, r.records()) for r in read_results(root / "out")}
    assert both == alone


@pytest.mark.parametrize(
    "fact",
    ["weights_hash", "transform_hash", "tokenizer_hash", "precision", "threads", "batch_size"],
)
def test_every_fact_of_the_model_is_in_both_keys(root, fact, monkeypatch):
    """A finished result and kept features are for one model, run in one way."""
    cache = FeatureCache(root / "cache")
    jobs, _ = plan(find_sets(root / "data"))

    def fresh(change, force=False):
        calls = []
        embedder = Embedder(color_encoder(calls=calls), World(), cache=cache)
        change(embedder)
        done = [new for _, new in run_jobs(jobs, embedder, FACTS, root / "out", force=force)]
        return done, bool(calls)

    def change(embedder):
        if fact == "threads":
            monkeypatch.setattr(Embedder, "threads", "7")
        elif fact == "batch_size":
            embedder.batch_size = 3
        else:
            setattr(embedder.encoder, fact, "other")

    assert fresh(lambda embedder: None) == ([True, True], True)
    assert fresh(lambda embedder: None) == ([False, False], False)
    assert fresh(change, force=fact == "weights_hash") == ([True, True], True)


def test_a_file_that_an_argument_names_is_in_the_key(root, monkeypatch):
    (root / "data" / "words.txt").write_text("red light\ngreen light\n")
    (root / "tasks.yaml").write_text(
        f"- {{kind: concepts, data: colors, concepts: {root / 'data' / 'words.txt'}}}"
    )
    jobs, _ = plan(find_sets(root / "data"), [str(root / "tasks.yaml")])

    def fresh():
        embedder = Embedder(color_encoder(), World())
        return [new for _, new in run_jobs(jobs, embedder, FACTS, root / "out")]

    assert fresh() == [True] and fresh() == [False]
    (root / "data" / "words.txt").write_text("red light\nblue light\n")
    assert fresh() == [True]
    (root / "test").mkdir()
    (root / "test" / "x").write_text("not of this set")
    monkeypatch.chdir(root)
    assert fresh() == [False]


class Same:
    def __init__(self, name):
        self.name = name

    def image(self, features):
        return features

    def text(self, features):
        return features


def refined(root, *names, **options):
    jobs, _ = plan(find_sets(root / "data"))
    model = Embedder(color_encoder(), World(), refinements=[Same(n) for n in names])
    facts = options.pop("facts", None) or refined_facts(FACTS, model.refinements)
    return list(run_jobs(jobs, model, facts, root / "out", **options))


def test_results_of_refined_features_lie_beside_the_plain_ones(root):
    run(root)
    before = {p: p.read_bytes() for p in (root / "out").rglob("*") if p.is_file()}
    assert [fresh for _, fresh in refined(root, "a b", "c")] == [True, True]
    assert [fresh for _, fresh in refined(root, "a b", "c")] == [False, False]
    assert {p: p.read_bytes() for p in before} == before
    stored = {r.model: r.data for r in read_results(root / "out")}
    plain, other = sorted(stored)
    assert plain == FACTS.name and other.startswith(f"{FACTS.name}+a+c-")
    assert stored[plain]["refinements"] == [] and stored[other]["refinements"] == ["a b", "c"]
    assert [fresh for _, fresh in run(root)] == [False, False]


def test_results_refined_otherwise_are_not_mixed(root):
    run(root)
    with pytest.raises(
        DataError, match=r"refined by nothing, these are by \['a'\]; choose another"
    ):
        refined(root, "a", facts=FACTS)
    assert [fresh for _, fresh in refined(root, "a", facts=FACTS, force=True)] == [True, True]
    with pytest.raises(DataError, match=r"refined by \['a'\], these are by \['b'\]"):
        refined(root, "b", facts=FACTS)
    with pytest.raises(DataError, match=r"refined by \['a'\], these are by nothing"):
        run(root)
    data = json.loads((path := next((root / "out").rglob("*.json"))).read_text())
    del data["refinements"]  # a result of before there were any
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="refined by nothing"):
        refined(root, "a", facts=FACTS)


def test_names_of_refinements_make_names_of_folders():
    assert refined_facts(FACTS, []) is FACTS
    names = [
        ["fusion 1f(search=uni, memory=/a/../b)"],
        ["fusion 1f(search=uni, memory=/a/../c)"],
        ["fusion 1f(search=uni, memory=/a/../b)", "centring-12"],
        ["shift0.5-12"],
        ["x" * 300],
    ]
    found = [refined_facts(FACTS, [Same(n) for n in parts]).name for parts in names]
    words = ["fusion", "fusion", "fusion+centring", "shift0.5", "x" * 20]
    assert len(set(found)) == len(names)
    for name, word in zip(found, words, strict=True):
        assert re.fullmatch(re.escape(f"{FACTS.name}+{word}-") + "[0-9a-f]{6}", name)


@pytest.mark.parametrize("kind", [Centring, lambda c: Shift(c, 0.5)])
def test_a_calibration_on_scored_data_is_said(root, kind):
    jobs, _ = plan(find_sets(root / "data"))
    model = Embedder(color_encoder(), World())
    fitted = fit_calibration(model, str(root / "data" / "pairs")).calibration
    (note,) = scored_calibrations(jobs, [Same("x"), kind(fitted)])
    assert note.startswith("pairs: retrieval scores data that the calibration was fitted on")
    other = write_color_set(root / "other", [1, 0], ["a red", "a blue"])
    fitted = fit_calibration(model, str(other)).calibration
    assert scored_calibrations(jobs, [kind(fitted)]) == scored_calibrations(jobs, []) == []
