"""Concept Matrix Search: invariances, zero-shot as its special case, loops as its reference."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.concepts import ConceptsEval, concept_match, read_concepts
from clipkit.eval.embed import Embedder
from clipkit.eval.zero_shot import exact_scores
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set

LABELS = [0, 0, 0, 1, 1, 2, 3, 3]


class TableModel:
    """Given image features, and given text features by the text."""

    def __init__(self, images, words):
        self.rows, self.words = images, words

    def images(self, folder):
        return self.rows

    def texts(self, texts):
        return torch.stack([self.words[t] for t in texts])


def unit(seed, rows, dim=8, offset=0.0):
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=rng) + offset, dim=1)


def write(root, concepts, labels=LABELS):
    write_color_set(root, labels)
    (root / "zeroshot_classification_templates.txt").write_text("{c}\n")
    (root / "concepts.txt").write_text("\n".join(concepts) + "\n")
    return root


def run(root, model, **options):
    return ConceptsEval(str(root), "colors", **options).run(model)


def slow_match(of_images, of_classes, centred):
    """Cosines one pair at a time with numpy."""
    a, b = of_images.double().numpy(), of_classes.double().numpy()
    if centred:
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.array(
        [[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in b] for x in a],
        dtype=np.float32,
    )


@pytest.mark.parametrize("centred", [False, True])
def test_equals_loops(centred):
    of_images, of_classes = (
        exact_scores(unit(0, 30), unit(1, 9)),
        exact_scores(unit(2, 4), unit(1, 9)),
    )
    found = concept_match(of_images, of_classes, centred=centred)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), slow_match(of_images, of_classes, centred), atol=1e-6)


def test_lengths_of_rows_do_not_count():
    of_images, of_classes = torch.rand(30, 9), torch.rand(4, 9)
    base = concept_match(of_images, of_classes)
    scaled = concept_match(
        of_images * torch.linspace(0.1, 5, 30)[:, None],
        of_classes * torch.tensor([[3.0], [1], [0.2], [9]]),
    )
    assert torch.allclose(scaled, base, atol=1e-6)
    centred = concept_match(of_images * 0.3, of_classes * 7, centred=True)
    assert torch.allclose(centred, concept_match(of_images, of_classes, centred=True), atol=1e-6)


def test_orthonormal_class_names_as_concepts_are_zero_shot():
    classes, images = torch.eye(8)[:5], unit(3, 200)
    zero_shot = exact_scores(images, classes)
    found = concept_match(zero_shot, exact_scores(classes, classes))
    assert torch.equal(found.argmax(dim=1), zero_shot.argmax(dim=1))
    assert torch.equal(found.argsort(dim=1), zero_shot.argsort(dim=1))


def test_an_offset_of_all_cosines_is_gone_after_centring():
    of_images, of_classes = torch.rand(40, 12) * 0.05, torch.rand(4, 12) * 0.05
    base = concept_match(of_images, of_classes, centred=True)
    moved = concept_match(of_images + 0.2, of_classes + 0.7, centred=True)
    assert torch.allclose(moved, base, atol=1e-4)
    raw = concept_match(of_images + 0.2, of_classes + 0.7)
    assert float(raw.min()) > 0.97  # what centring is for: everything looks alike


def test_rows_that_say_nothing_tie():
    noise = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) * 1e-8
    nothing = [[0.0] * 4] * 3
    assert concept_match(0.1 + noise, torch.rand(4, 7), centred=True).tolist() == nothing
    same = torch.full((4, 7), 0.1)
    assert concept_match(torch.rand(3, 7), same, centred=True).tolist() == nothing
    assert concept_match(torch.zeros(3, 7), torch.rand(4, 7)).tolist() == nothing


def test_metrics_and_records_by_loops(tmp_path):
    concepts = [f"concept {k}" for k in range(9)]
    root = write(tmp_path, concepts)
    words, classes, images = unit(4, 9, offset=0.5), unit(5, 4, offset=0.5), unit(6, 8, offset=0.5)
    table = {**dict(zip(concepts, words)), **dict(zip(COLORS, classes))}
    result = run(root, TableModel(images, table))
    of_images, of_classes = exact_scores(images, words), exact_scores(classes, words)
    expected = {
        "cms_acc1": slow_match(of_images, of_classes, False).argmax(axis=1) == LABELS,
        "cms_centred_acc1": slow_match(of_images, of_classes, True).argmax(axis=1) == LABELS,
        "acc1": (images @ classes.T).argmax(dim=1).numpy() == LABELS,
    }
    assert len({tuple(hits) for hits in expected.values()}) == 3  # three different answers
    for name, hits in expected.items():
        assert [r["values"][name] for r in result.records] == hits.astype(float).tolist()
        assert result.metrics[name] == hits.mean()
    guess = slow_match(of_images, of_classes, False).argmax(axis=1)
    assert [r["predicted"] for r in result.records] == [[*COLORS][g] for g in guess]
    assert result.macro == {"cms_mean_per_class_recall": "class"}
    assert result.metrics["tie_rate"] == 0.0 and result.metrics["n"] == 8
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}
    json.dumps([result.to_json(), result.records], allow_nan=False)


def test_strongest_concepts_of_each_class(tmp_path):
    concepts = [f"concept {k}" for k in range(9)]
    root = write(tmp_path, concepts, [0, 0, 1, 1])
    words, classes, images = unit(4, 9), unit(5, 4), unit(6, 4)
    table = {**dict(zip(concepts, words)), **dict(zip(COLORS, classes))}
    rows = run(root, TableModel(images, table)).details["concepts"]
    assert [row["class"] for row in rows] == [*COLORS]
    prompts = (classes @ words.T - (classes @ words.T).mean(dim=0)).argsort(dim=1, descending=True)
    seen = images @ words.T
    seen = (seen[2:].mean(dim=0) - seen.mean(dim=0)).argsort(descending=True)
    assert rows[1]["of_prompts"] == [concepts[k] for k in prompts[1][:5]]
    assert rows[1]["of_images"] == [concepts[k] for k in seen[:5]]
    assert rows[3]["of_images"] == []  # no image of this class


def test_a_constant_model_scores_nothing(tmp_path):
    root = write(tmp_path, ["red", "blue", "green"])
    model = color_encoder(lambda c: torch.ones_like(c), lambda c: torch.ones_like(c))
    metrics = run(root, Embedder(model, World())).metrics
    assert metrics["cms_acc1"] == metrics["cms_centred_acc1"] == metrics["acc1"] == 0.0
    assert metrics["tie_rate"] == 1.0


def test_with_the_embedder(tmp_path):
    root = write(tmp_path / "set", [*COLORS])
    result = run(root, Embedder(color_encoder(), World(), batch_size=3))
    assert {k: result.metrics[k] for k in ("cms_acc1", "cms_centred_acc1", "acc1")} == {
        "cms_acc1": 1.0,
        "cms_centred_acc1": 1.0,
        "acc1": 1.0,
    }
    mine = tmp_path / "mine.txt"
    mine.write_text("white\n\n")
    result = run(root, Embedder(color_encoder(), World()), concepts=str(mine))
    # one concept leaves a sign of each row: white is alone with its own, the rest tie
    assert result.metrics["cms_acc1"] == 2 / 8 and result.metrics["tie_rate"] == 6 / 8
    assert result.provenance["concepts"] == 1
    assert result.provenance["data"] == str(root)


def test_lists_that_are_wrong_are_named(tmp_path):
    path = tmp_path / "concepts.txt"
    with pytest.raises(DataError, match=r"concepts\.txt: cannot be read .*; write one"):
        read_concepts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        read_concepts(path)
    path.write_text("\n \n")
    with pytest.raises(DataError, match="is empty"):
        read_concepts(path)
    path.write_text("a leaf\nstriped\n a leaf\n")
    with pytest.raises(DataError, match="'a leaf' is there 2 times"):
        read_concepts(path)


def test_only_a_line_feed_ends_a_concept(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_bytes(" a leaf \r\n\nstriped\u2028fur\rof\x0ba cat\x85".encode())
    assert read_concepts(path) == ["a leaf", "striped\u2028fur\rof\x0ba cat"]


def test_check_opens_set_and_list(tmp_path):
    root = write_color_set(tmp_path / "set", LABELS)
    with pytest.raises(DataError, match=r"concepts\.txt"):
        ConceptsEval(str(root), "x").check()
    captions = write_color_set(tmp_path / "pairs", [0, 1], ["red", "green"])
    with pytest.raises(DataError, match="is of type retrieval, not classification"):
        ConceptsEval(str(captions), "x").check()
