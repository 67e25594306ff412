"""Mixed-modality search against loops, with and without calibration; ties and gaps seen."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.data.mixed_set import open_mixed_set
from clipkit.dist.group import World
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.eval import mixed_modality
from clipkit.eval.embed import Embedder
from clipkit.eval.mixed_modality import MixedModalityEval, split_off
from clipkit.retrieval.calibration import Calibration, Centring
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes

D = 6


class TableModel:
    """Features of texts and images by name: random meaning, plus where each modality's cone is."""

    refinements = ()

    def __init__(self, gap=0.0, constant=False):
        self.gap, self.constant = gap, constant

    def feature(self, name, axis):
        if self.constant:
            return torch.ones(D)
        meaning = name.split("/")[-1].split(".")[0]  # "img/3.png" and "3" mean the same
        number = int(meaning.split()[-1])
        return torch.from_numpy(np.random.default_rng(number).normal(size=D)).float() + (
            self.gap * torch.eye(D)[axis]
        )

    def texts(self, texts):
        return F.normalize(torch.stack([self.feature(t, 0) for t in texts]), dim=1)

    def images(self, source):
        return F.normalize(torch.stack([self.feature(n, 1) for n in source.names]), dim=1)


def item(kind, number, modality):
    row = {f"{kind}_id": f"{kind[0]}{number}", "text": "", "image": ""}
    if modality != "image":
        row["text"] = str(number)
    if modality != "text":
        row["image"] = f"img/{number}.png"
    return row


def write(root, queries, documents, judged):
    """queries and documents: (number, modality); judged: (query, document, score) numbers."""
    (root / "img").mkdir(parents=True)
    for name, kind, items in (
        ("queries", "query", queries),
        ("mixed_corpus", "corpus", documents),
    ):
        rows = [item(kind, number, modality) for number, modality in items]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for row in rows:
            if row["image"]:
                (root / row["image"]).write_bytes(image_bytes())
    lines = [f"q{q}\tc{d}\t{s}\n" for q, d, s in judged]
    (root / "qrels.tsv").write_text("".join(lines))
    return root


def random_set(root, queries=30, documents=90, query_modalities=("text",), seed=0):
    """Query i asks for documents that mean i, i + 1, ... ; modalities in turn."""
    rng = np.random.default_rng(seed)
    kinds = ("text", "image", "mixed")
    judged = [
        (q, d, int(rng.integers(0, 4)))
        for q in range(queries)
        for d in rng.choice(documents, 5, replace=False).tolist()
    ]
    judged += [(q, q, 3) for q in range(queries) if (q, q) not in {(a, b) for a, b, _ in judged}]
    return write(
        root,
        [(i, query_modalities[i % len(query_modalities)]) for i in range(queries)],
        [(i, kinds[i % 3]) for i in range(documents)],
        judged,
    )


def run(root, model=None, **options):
    return MixedModalityEval(str(root), "mixed", **options).run(model or TableModel())


def unit(x):
    return x / np.linalg.norm(x)


def slow_feature(model, thing, alpha, means):
    """One item's feature with numpy, one item at a time."""
    out = np.zeros(D)
    for there, weight, axis, mean in (
        (thing.text, alpha if thing.image else 1.0, 0, means[0]),
        (thing.image, 1 - alpha if thing.text else 1.0, 1, means[1]),
    ):
        if there:
            one = F.normalize(model.feature(there, axis), dim=0).double().numpy()
            out += weight * (one - mean)
    return unit(out)


def slow_metrics(model, data, rows, columns, alpha, query_means, document_means):
    """Metrics of the chosen queries among the chosen documents, with loops."""
    corpus = {d: slow_feature(model, data.documents[d], alpha, document_means) for d in columns}
    out = []
    for q in rows:
        asked = slow_feature(model, data.queries[q], alpha, query_means)
        gains = data.judgements[q]
        order = sorted(columns, key=lambda d: -float(asked @ corpus[d]))[:10]
        dcg = sum(gains.get(d, 0) / math.log2(i + 2) for i, d in enumerate(order))
        best = [
            sorted(g, reverse=True)[:10] for g in (gains.values(), [gains.get(d, 0) for d in order])
        ]
        ideal = [sum(g / math.log2(i + 2) for i, g in enumerate(b)) for b in best]
        kinds = [data.documents[d].modality for d in order]
        out.append(
            {
                "ndcg@10": dcg / ideal[0],
                "ndcg@10_retrieved_only": dcg / ideal[1] if ideal[1] else 0.0,
                "recall@10": len(set(order) & set(gains)) / len(gains),
                **{f"share_{m}@10": kinds.count(m) / 10 for m in ("text", "image", "mixed")},
            }
        )
    return out


def assert_records(result, expected, extra=()):
    for record, values in zip(result.records, expected, strict=True):
        found = {k: v for k, v in record["values"].items() if k not in ("tie_rate", *extra)}
        assert found == pytest.approx(values, abs=1e-9)
    for name in expected[0]:
        assert result.metrics[name] == pytest.approx(np.mean([v[name] for v in expected]))


ZERO = (np.zeros(D), np.zeros(D))


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("modalities", [("text",), ("text", "image", "mixed")])
def test_equals_loops(tmp_path, alpha, modalities):
    root, model = random_set(tmp_path / "set", query_modalities=modalities), TableModel(gap=1.5)
    data = open_mixed_set(root)
    result = run(root, model, alpha=alpha)
    expected = slow_metrics(model, data, range(30), range(90), alpha, ZERO, ZERO)
    assert_records(result, expected)
    assert result.metrics["tie_rate"] == 0.0 and result.metrics["n"] == 30
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}
    assert [r["modality"] for r in result.records[:3]] == [
        modalities[i % len(modalities)] for i in range(3)
    ]
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_details_hold_the_corpus_and_chance(tmp_path):
    root = write(
        tmp_path / "set",
        [(0, "text")],
        [
            (0, "text"),
            *((i, "image") for i in range(1, 15)),
            *((i, "mixed") for i in range(15, 20)),
        ],
        [(0, 0, 1), (0, 3, 1)],
    )
    details = run(root).details
    assert details["corpus_share"] == {"text": 0.05, "image": 0.7, "mixed": 0.25}
    assert details["chance"]["recall@10"] == 0.5
    assert details["chance"]["share_image@10"] == 0.7
    discounts = [1 / math.log2(i + 2) for i in range(10)]
    assert details["chance"]["ndcg@10"] == pytest.approx(0.1 * sum(discounts) / sum(discounts[:2]))
    found = {row["modality"]: row for row in details["relevant_documents"]}
    assert found["text"] == {"modality": "text", "n": 1, "recall@10": 1.0}
    assert set(found) == {"text", "image"}


def test_a_constant_model_finds_nothing_and_says_why(tmp_path):
    for calibrate in (False, True):
        root = random_set(tmp_path / f"set{calibrate}", documents=200)
        result = run(root, TableModel(constant=True), calibrate=calibrate)
        for metric in ("ndcg@10", "ndcg@10_retrieved_only", "recall@10"):
            assert result.metrics[metric] == 0.0
        assert result.metrics["tie_rate"] == 1.0


def test_alpha_one_makes_a_mixed_document_its_text(tmp_path):
    modalities = ("text", "image", "mixed")
    judged = [(i, i, 1) for i in range(30)]
    sets = [
        write(
            tmp_path / name,
            [(i, "text") for i in range(30)],
            [(i, swap.get(modalities[i % 3], modalities[i % 3])) for i in range(30)],
            judged,
        )
        for name, swap in (
            ("mixed", {}),
            ("text", {"mixed": "text"}),
            ("image", {"mixed": "image"}),
        )
    ]
    model = TableModel(gap=1.0)

    def tops(root, alpha):
        return [r["top"] for r in run(root, model, alpha=alpha).records]

    assert tops(sets[0], 1.0) == tops(sets[1], 0.3)
    assert tops(sets[0], 0.0) == tops(sets[2], 0.3)
    assert tops(sets[0], 0.5) not in (tops(sets[1], 0.5), tops(sets[2], 0.5))


def test_a_gap_fills_the_list_with_texts_and_calibration_removes_it(tmp_path):
    root = write(
        tmp_path / "set",
        [(i, "text") for i in range(60)],
        [(i, ("text", "image")[i % 2]) for i in range(60)],
        [(i, i, 1) for i in range(60)],
    )
    model = TableModel(gap=10.0)
    plain = run(root, model)
    assert plain.metrics["share_text@10"] == 1.0 and plain.metrics["ndcg@10"] < 0.6
    result = run(root, model, calibrate=True)
    assert result.metrics["ndcg@10"] > 0.8 > 0.6 > result.metrics["ndcg@10_uncalibrated"]
    assert 0.3 < result.metrics["share_text@10"] < 0.7


@pytest.mark.parametrize("modalities", [("text",), ("text", "image", "mixed")])
def test_calibration_equals_loops_and_its_part_is_not_scored(tmp_path, modalities):
    root = random_set(tmp_path / "set", documents=150, query_modalities=modalities)
    model = TableModel(gap=2.0)
    data = open_mixed_set(root)
    parts = split_off(data, 0.4, seed=5)
    means = []
    for items, rows in (
        (data.queries, parts.calibration_queries),
        (data.documents, parts.calibration_documents),
    ):
        own = []
        for axis, field in enumerate(("text", "image")):
            names = [getattr(items[i], field) for i in rows if getattr(items[i], field)]
            features = [F.normalize(model.feature(n, axis), dim=0).double().numpy() for n in names]
            own.append(np.mean(features, axis=0) if features else np.zeros(D))
        means.append(own)
    rows, columns = parts.queries.tolist(), parts.documents.tolist()
    result = run(root, model, calibrate=True, calibration_share=0.4, seed=5)
    assert_records(
        result,
        slow_metrics(model, data, rows, columns, 0.5, *means),
        extra=("ndcg@10_uncalibrated",),
    )
    plain = slow_metrics(model, data, rows, columns, 0.5, ZERO, ZERO)
    assert [r["values"]["ndcg@10_uncalibrated"] for r in result.records] == pytest.approx(
        [v["ndcg@10"] for v in plain]
    )
    asked = {data.queries[i].id for i in parts.calibration_queries}
    kept = {data.documents[i].id for i in parts.documents}
    assert len(result.records) == 18 and not asked & {r["id"] for r in result.records}
    assert all(set(r["top"]) <= kept for r in result.records)
    assert result.provenance["documents"] == len(kept)


def test_the_split_keeps_what_scored_queries_ask_for(tmp_path):
    data = open_mixed_set(random_set(tmp_path / "set", documents=300))
    parts = split_off(data, 0.3, seed=1)
    assert len(parts.calibration_queries) == 9
    wanted = {d for q in parts.queries for d in data.judgements[q]}
    assert wanted <= set(parts.documents.tolist())
    theirs = {d for q in parts.calibration_queries for d in data.judgements[q]}
    assert theirs - wanted <= set(parts.calibration_documents.tolist())
    for pair, n in (
        ((parts.queries, parts.calibration_queries), 30),
        ((parts.documents, parts.calibration_documents), 300),
    ):
        assert sorted(np.concatenate(pair).tolist()) == list(range(n))
    free = set(range(300)) - wanted - theirs
    share = len(free & set(parts.calibration_documents.tolist())) / len(free)
    assert 0.2 < share < 0.4
    again, other = split_off(data, 0.3, seed=1), split_off(data, 0.3, seed=2)
    assert again.queries.tolist() == parts.queries.tolist()
    assert again.documents.tolist() == parts.documents.tolist()
    assert other.queries.tolist() != parts.queries.tolist()


def test_blocks_do_not_change_a_number(tmp_path, monkeypatch):
    root = random_set(tmp_path / "set")
    whole = run(root)
    for cells in (1, 90 * 7):
        monkeypatch.setattr(mixed_modality, "_CELLS", cells)
        parts = run(root)
        assert parts.records == whole.records and parts.details == whole.details


def test_recall_is_the_share_of_all_relevant_documents_of_more_than_ten_too(tmp_path):
    documents, judged = [(i, "text") for i in range(12)], [(0, i, 1) for i in range(12)]
    result = run(write(tmp_path / "set", [(0, "text")], documents, judged))
    assert result.metrics["recall@10"] == 10 / 12 and result.metrics["ndcg@10"] == 1.0
    (found,) = result.details["relevant_documents"]
    assert found == {"modality": "text", "n": 12, "recall@10": 10 / 12}


def test_a_corpus_of_fewer_than_ten_documents(tmp_path):
    root = write(tmp_path / "set", [(0, "text")], [(0, "image"), (1, "text")], [(0, 1, 1)])
    metrics = run(root).metrics
    assert metrics["recall@10"] == 1.0 and metrics["share_text@10"] == 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 1.5}, ConfigError, "alpha is 1.5; choose 0 .. 1"),
        ({"calibration_share": 0.0}, ConfigError, "calibration_share is 0.0"),
        ({"calibrate": True, "calibration_share": 0.001}, DataError, "0 of 30 query items"),
        ({"calibrate": True, "calibration_share": 0.999}, DataError, "30 of 30 query items"),
        ({"split": "dev"}, None, ""),  # one file of judgements is anyone's
    ],
)
def test_settings_out_of_range(tmp_path, options, error, message):
    evaluator = MixedModalityEval(str(random_set(tmp_path / "set")), "mixed", **options)
    if error is None:
        assert len(evaluator.check()) == 30
        return
    with pytest.raises(error, match=message):
        evaluator.check()


def test_a_modality_that_cannot_be_calibrated_is_named(tmp_path):
    root = write(
        tmp_path / "set",
        [(i, "text") for i in range(8)],
        [(i, "text" if i else "image") for i in range(8)],
        [(i, j, 1) for i in range(8) for j in (0, i)],  # all want the one image
    )
    with pytest.raises(DataError, match="too few with image"):
        run(root, calibrate=True)


def write_color_mix(root):
    """A set for `color_encoder`: documents in each modality, texts of other colours too."""
    (root / "img").mkdir(parents=True)
    documents = []
    for name, color in COLORS.items():
        (root / "img" / f"{name}.png").write_bytes(image_bytes(color))
        documents.append({"corpus_id": f"{name} image", "image": f"img/{name}.png"})
    documents += [
        {"corpus_id": "green text", "text": "a green thing"},
        {"corpus_id": "blue both", "text": "blue", "image": "img/blue.png"},
        *({"corpus_id": f"white {i}", "text": "white"} for i in range(10)),
    ]
    queries = [{"query_id": c, "text": f"something {c}"} for c in ("red", "green", "blue")]
    judged = {"red": ["red image"], "green": ["green text", "green image"], "blue": ["blue both"]}
    for file, rows in (("queries", queries), ("mixed_corpus", documents)):
        (root / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "qrels.tsv").write_text(
        "".join(f"{q}\t{d}\t1\n" for q, found in judged.items() for d in found)
    )
    return root


def test_with_the_embedder(tmp_path):
    model = Embedder(color_encoder(), World(), batch_size=3)
    result = run(write_color_mix(tmp_path / "set"), model)
    values = {r["id"]: r["values"] for r in result.records}
    assert values["red"]["ndcg@10"] == values["green"]["ndcg@10"] == 1.0
    # the blue image ties with the blue document of both, and ties are lost
    assert values["blue"]["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert values["blue"]["tie_rate"] == 1.0 and values["red"]["tie_rate"] == 0.0


def test_a_centred_model_equals_a_calibration_of_the_task(tmp_path):
    root, mixed = write_color_mix(tmp_path / "set"), color_encoder()
    means = [[0.5, 0.1, 0.0], [0.3, -0.4, 0.1], [-0.2, 0.5, 0.3]]
    calibration = fitted_by_hand(*means, weights=mixed.weights_hash)
    calibration.save(tmp_path / "c")
    by_task = run(root, Embedder(mixed, World()), calibration=str(tmp_path / "c"))
    by_model = run(root, Embedder(mixed, World(), refinements=[Centring(calibration)]))
    assert by_task.records == by_model.records and by_task.metrics == by_model.metrics
    assert by_task.metrics != run(root, Embedder(mixed, World())).metrics


def fitted_by_hand(asked, text, image, weights="w" * 64, refinements=()):
    means = [torch.tensor(m, dtype=torch.float64) for m in (asked, text, image)]
    return Calibration(*means, weights, refinements)


class EncoderlessModel(TableModel):
    """With what a calibration is checked against."""

    def __init__(self, refinements=(), **options):
        super().__init__(**options)
        self.refinements, self.encoder = refinements, SimpleNamespace(weights_hash="w" * 64)
        self.options = options

    def refined_by(self, refinements):
        return EncoderlessModel(refinements, **self.options)

    def texts(self, texts):
        rows = super().texts(texts)
        for refinement in self.refinements:
            rows = refinement.text(rows)
        return rows

    def images(self, source):
        rows = super().images(source)
        for refinement in self.refinements:
            rows = refinement.image(rows)
        return rows


MEANS = [np.linspace(a, b, D).tolist() for a, b in ((0, 0.5), (0.4, 0.1), (-0.3, 0.3))]


@pytest.mark.parametrize("by", ["file", "model"])
def test_a_fitted_calibration_scores_everything(tmp_path, by):
    """Queries lose the mean of queries, documents theirs, those of both the means fused alike."""
    root = random_set(tmp_path / "set", query_modalities=("text", "mixed"))
    data, calibration = open_mixed_set(root), fitted_by_hand(*MEANS)
    calibration.save(tmp_path / "c")
    if by == "file":
        model, options = EncoderlessModel(gap=1.5), {"calibration": str(tmp_path / "c")}
    else:
        model, options = EncoderlessModel([Centring(calibration)], gap=1.5), {}
    result = run(root, model, **options)
    asked, text, image = map(np.array, MEANS)
    whole = range(30), range(90), 0.5
    expected = slow_metrics(model, data, *whole, (asked, image), (text, image))
    assert_records(result, expected, extra=("ndcg@10_uncalibrated",))
    plain = slow_metrics(model, data, *whole, ZERO, ZERO)
    assert [r["values"]["ndcg@10_uncalibrated"] for r in result.records] == pytest.approx(
        [v["ndcg@10"] for v in plain]
    )
    assert result.details["calibration"]["identity"] == calibration.identity
    json.dumps(result.to_json(), allow_nan=False)


def test_a_calibration_of_another_model_or_a_second_one_is_refused(tmp_path):
    root = random_set(tmp_path / "set")
    fitted_by_hand(*MEANS, weights="v" * 64).save(tmp_path / "other")
    fitted_by_hand(*MEANS, refinements=("fusion",)).save(tmp_path / "refined")
    fitted_by_hand(*MEANS).save(tmp_path / "c")
    centred = EncoderlessModel([Centring(fitted_by_hand(*MEANS))])
    for name, words in (
        ("absent", "no such calibration"),
        ("other", "other: was fitted on weights vvvvvvvvvvvv, the model has wwwwwwwwwwww"),
        ("refined", "with fusion, these have no refinement"),
    ):
        with pytest.raises(CheckpointError, match=words):
            run(root, EncoderlessModel(), calibration=str(tmp_path / name))
    for model, options, words in (
        (centred, {"calibrate": True}, "centred already"),
        (centred, {"calibration": str(tmp_path / "c")}, "centred already"),
        (
            EncoderlessModel(),
            {"calibrate": True, "calibration": str(tmp_path / "c")},
            "choose one",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            run(root, model, **options)


def test_the_file_of_a_calibration_is_in_the_key(tmp_path):
    assert MixedModalityEval.files == ("calibration",)
