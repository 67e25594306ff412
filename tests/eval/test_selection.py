"""Selection metrics against counts by hand and a slow reference; no prior from ties."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from clipkit.config.parts import read_part
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import jackknife, wilson
from clipkit.eval.selection import SelectionEval, chance, item_scores
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes

IMAGES = {f"{name}.png": color for name, color in COLORS.items()}


def write(root, items):
    (root / "test").mkdir(parents=True, exist_ok=True)
    for name in {n for item in items for n in item["images"] if isinstance(n, str)}:
        (root / name).write_bytes(image_bytes(IMAGES.get(name, (7, 7, 7))))
    lines = [json.dumps({"id": str(i), **item}) for i, item in enumerate(items)]
    (root / "test" / "selection.jsonl").write_text("\n".join(lines))
    return root


def item(images, texts, answer, *tags):
    return {"images": images.split(), "texts": texts, "answer": answer, "tags": list(tags)}


class Fixed:
    """Features given by name: image rows in the source's order, texts from a table."""

    def __init__(self, images, texts):
        self.table, self.of_text = images, texts

    def images(self, source):
        return torch.stack([self.table[name] for name in source.names])

    def texts(self, texts):
        assert len(set(texts)) == len(texts)
        return torch.stack([self.of_text[text] for text in texts])


def run(root, model=None, **options):
    model = model or Embedder(color_encoder(), World())
    return SelectionEval(str(root), "colors", **options).run(model)


def vectors(**angles):
    return {
        name: torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float32)
        for name, a in angles.items()
    }


def test_a_model_that_knows_colours_chooses_right(tmp_path):
    items = [
        item("red.png", ["a blue dog", "a red dog"], 1, "one"),
        item("white.png green.png blue.png", ["the green one"], 1, "two"),
        item("red.png blue.png", ["blue", "red"], [1, 0], "three", "more"),
    ]
    result = run(write(tmp_path, items))
    assert result.task == "image_caption_selection" and result.dataset == "colors"
    ones = ("acc", "text_acc", "image_acc", "first_image_text_acc", "second_text_image_acc")
    assert all(result.metrics[name] == 1.0 for name in ones)
    assert result.metrics["n"] == 3 and result.metrics["tie_rate"] == 0.0
    assert (
        result.counts["acc"] == 3 and result.counts["text_acc"] == result.counts["image_acc"] == 2
    )
    assert result.provenance["shapes"] == {"1x2": 1, "3x1": 1, "2x2": 1}
    assert [r["tags"] for r in result.records] == [["one"], ["two"], ["three", "more"]]
    json.dumps([result.to_json(), result.records], allow_nan=False)
    assert set(result.intervals) == set(result.metrics) - {"n", "nan_rate"}


def test_an_item_has_only_the_metrics_of_its_shape(tmp_path):
    one = run(write(tmp_path / "1", [item("red.png", ["red", "blue"], 0)]))
    assert set(one.records[0]["values"]) == {"acc", "text_acc", "tie_rate"}
    assert "image_acc" not in one.metrics and "caption_auroc" in one.metrics
    two = run(write(tmp_path / "2", [item("red.png blue.png", ["red"], 0)]))
    assert set(two.records[0]["values"]) == {"acc", "image_acc", "tie_rate"}
    assert "text_acc" not in two.metrics and "caption_auroc" not in two.metrics
    three = [item("red.png blue.png green.png", ["red", "blue", "green"], [0, 1, 2])]
    values = run(write(tmp_path / "3", three)).records[0]["values"]
    assert set(values) == {"acc", "text_acc", "image_acc", "tie_rate"}


@pytest.mark.parametrize("answers", [(0, 0, [0, 1]), (1, 1, [1, 0])])
def test_a_constant_model_scores_nothing(tmp_path, answers):
    """Wherever the right one stands: ties have no first."""
    text, image, both = answers
    items = [
        item("red.png", ["red", "blue"], text),
        item("red.png blue.png", ["red"], image),
        item("red.png blue.png", ["red", "blue"], both),
    ]

    def constant(color):
        return F.normalize(torch.ones_like(color), dim=-1)

    model = Embedder(color_encoder(constant, constant), World())
    result = run(write(tmp_path, items), model)
    assert {v for r in result.records for k, v in r["values"].items() if k != "tie_rate"} == {0.0}
    assert result.metrics["tie_rate"] == 1.0
    assert result.metrics["caption_auroc"] == 0.5
    low, high = result.intervals["caption_auroc"]
    assert low < 0.5 < high  # a jackknife of equal values would claim certainty
    assert result.details["chance"]["acc"] > result.metrics["acc"]


def test_two_by_two_by_hand(tmp_path):
    # Angles: image a 0, image b 1; text of a at 0.4, text of b at 0.45: both images prefer their
    # own text (0.4 < 0.45 from 0; 0.55 < 0.6 from 1), but both texts are nearer to image a.
    table = vectors(**{"a": 0.0, "b": 1.0})
    model = Fixed(
        {"a.png": table["a"], "b.png": table["b"]}, vectors(**{"of a": 0.4, "of b": 0.45})
    )
    result = run(write(tmp_path, [item("b.png a.png", ["of a", "of b"], [1, 0])]), model)
    assert result.records[0]["values"] == {
        "acc": 0.0,
        "text_acc": 1.0,
        "image_acc": 0.0,
        "first_image_text_acc": 1.0,
        "second_image_text_acc": 1.0,
        "first_text_image_acc": 0.0,  # the text of the first image, b
        "second_text_image_acc": 1.0,
        "tie_rate": 0.0,
    }
    cos = math.cos
    record = result.records[0]
    expected = [cos(0.55) - cos(0.6), cos(0.4) - cos(0.45)]
    assert record["text_margins"] == pytest.approx(expected, abs=1e-6)
    expected = [cos(0.55) - cos(0.45), cos(0.4) - cos(0.6)]
    assert record["image_margins"] == pytest.approx(expected, abs=1e-6)
    assert record["margin"] == min(record["image_margins"])


def reference(scores, answer):
    """Winoground's definitions in plain loops."""
    n_images, n_texts = scores.shape
    if n_texts == 1:
        rest = [scores[i, 0] for i in range(n_images) if i != answer]
        return {"acc": all(scores[answer, 0] > s for s in rest)}
    if n_images == 1:
        rest = [scores[0, j] for j in range(n_texts) if j != answer]
        return {"acc": all(scores[0, answer] > s for s in rest)}
    text = all(
        scores[i, answer[i]] > scores[i, j]
        for i in range(n_images)
        for j in range(n_texts)
        if j != answer[i]
    )
    image = all(
        scores[i, answer[i]] > scores[k, answer[i]]
        for i in range(n_images)
        for k in range(n_images)
        if k != i
    )
    return {"acc": text and image, "text_acc": text, "image_acc": image}


def random_set(root, count=120, seed=0):
    """Items of all shapes over a few images and texts of coarse features: ties do occur."""
    rng = np.random.default_rng(seed)
    images = {f"i{k}.png": torch.tensor(rng.integers(-1, 2, 3)).float() for k in range(9)}
    texts = {f"t{k}": torch.tensor(rng.integers(-1, 2, 3)).float() for k in range(9)}
    items = []
    for shape in itertools.islice(itertools.cycle([(1, 2), (1, 5), (4, 1), (2, 2), (3, 3)]), count):
        names = [str(n) for n in rng.choice(list(images), shape[0], replace=False)]
        words = [str(t) for t in rng.choice(list(texts), shape[1], replace=False)]
        both = shape[0] == shape[1]
        answer = rng.permutation(shape[0]).tolist() if both else int(rng.integers(max(shape)))
        items.append(item(" ".join(names), words, answer, str(rng.choice(["p", "q", "r"]))))
    return write(root, items), items, Fixed(images, texts)


def test_all_shapes_against_a_slow_reference(tmp_path):
    root, items, model = random_set(tmp_path)
    result = run(root, model)
    ties = 0
    for question, record in zip(items, result.records):
        scores = np.array(
            [
                [float((model.table[i] * model.of_text[t]).sum()) for t in question["texts"]]
                for i in question["images"]
            ]
        )
        for name, value in reference(scores, question["answer"]).items():
            assert record["values"][name] == float(value)
        ties += record["values"]["tie_rate"]
    assert 20 < ties < 100
    assert result.metrics["acc"] == np.mean([r["values"]["acc"] for r in result.records])


def test_equal_features_tie_exactly_in_any_place(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(515, generator=generator), dim=0) for _ in range(2))
    names = [f"t{k}" for k in range(9)]
    model = Fixed({"a.png": image}, {name: text.clone() for name in names})
    items = [item("a.png", names[:k], k - 1) for k in range(2, 10)]
    result = run(write(tmp_path, items), model)
    assert result.metrics["tie_rate"] == 1.0 and result.metrics["acc"] == 0.0


def test_scores_are_summed_in_fp64(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(40, 512, generator=generator), dim=1)
    model = Fixed({"a.png": rows[0]}, {f"t{k}": rows[k] for k in range(1, 40)})
    root = write(tmp_path, [item("a.png", list(model.of_text), 0)])
    (scores,) = item_scores(model, SelectionEval(str(root), "x").check())
    exact = [math.fsum((rows[0].double() * rows[k].double()).tolist()) for k in range(1, 40)]
    assert scores.dtype == np.float32 and scores[0].tolist() == np.float32(exact).tolist()


def test_random_scores_meet_the_chance_levels(tmp_path):
    assert chance(1, 2) == {"acc": 0.5, "text_acc": 0.5}
    assert chance(5, 1) == {"acc": 0.2, "image_acc": 0.2}
    assert chance(2, 2) == {"acc": pytest.approx(1 / 6), "text_acc": 0.25, "image_acc": 0.25}
    rng = np.random.default_rng(0)
    for n in (2, 3):
        scores = rng.random((200_000, n, n))
        right = np.einsum("kii->ki", scores)
        text = (right >= scores.max(2)).all(1)
        image = (right >= scores.max(1)).all(1)
        found = {"acc": (text & image).mean(), "text_acc": text.mean(), "image_acc": image.mean()}
        assert found == pytest.approx(chance(n, n), abs=0.005)
    items = [item("red.png", ["a", "b"], 0), item("red.png", ["a", "b", "c", "d"], 0)]
    result = run(write(tmp_path, items))
    assert result.details["chance"] == {"acc": 0.375, "text_acc": 0.375}


def by_tag(tmp_path, **options):
    """Tags a: 2 of 3 right (two images), b: 0 of 1, symmetric: 1 of 1, and one item without."""
    model = Fixed(
        {"x.png": torch.tensor([1.0, 0.0]), "y.png": torch.tensor([1.0, 0.0])},
        {"good": torch.tensor([1.0, 0.0]), "bad": torch.tensor([0.0, 1.0])},
    )
    items = [
        item("x.png", ["good", "bad"], 0, "a", "extra"),
        item("x.png", ["good", "bad"], 0, "a"),
        item("y.png", ["good", "bad"], 1, "a"),
        item("y.png", ["good", "bad"], 1, "b"),
        item("y.png", ["good", "bad"], 0, "symmetric"),
        item("y.png", ["good", "bad"], 0),
    ]
    return run(write(tmp_path, items), model, **options)


def test_accuracy_by_tag(tmp_path):
    rows = by_tag(tmp_path).details["per_tag"]
    assert [(r["tag"], r["n"], r["acc"]) for r in rows] == [
        ("a", 3, pytest.approx(2 / 3)),
        ("b", 1, 0.0),
        ("extra", 1, 1.0),
        ("symmetric", 1, 1.0),
    ]
    assert rows[0]["interval"] == pytest.approx(wilson(2 / 3, 2))  # two images, not three items
    assert all(r["chance"] == r["text_acc_chance"] == 0.5 for r in rows)
    assert all("image_acc" not in r for r in rows)


def test_macro_average_over_tags(tmp_path):
    assert "macro_acc" not in by_tag(tmp_path / "0").metrics
    result = by_tag(tmp_path / "1", macro=True)
    assert result.metrics["macro_acc"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert result.metrics["acc"] == pytest.approx(4 / 6) and result.counts["macro_acc"] == 5
    low, high = result.intervals["macro_acc"]
    assert low < result.metrics["macro_acc"] < high
    without = by_tag(tmp_path / "2", macro=True, ignore_tags=("symmetric",))
    assert without.metrics["macro_acc"] == pytest.approx(1 / 3)
    assert by_tag(tmp_path / "3", macro=True, min_tag_count=3).metrics[
        "macro_acc"
    ] == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no tag has 4 items"):
        by_tag(tmp_path / "4", macro=True, min_tag_count=4)
    with pytest.raises(ConfigError, match="min_tag_count is 0"):
        by_tag(tmp_path / "5", min_tag_count=0)


def test_auroc_of_right_against_wrong_texts(tmp_path):
    root, items, model = random_set(tmp_path)
    result = run(root, model)
    label, score, cluster = [], [], []
    for question in items:
        if len(question["images"]) == 1:
            for j, text in enumerate(question["texts"]):
                label.append(j == question["answer"])
                score.append(
                    float((model.table[question["images"][0]] * model.of_text[text]).sum())
                )
                cluster.append(question["images"][0])
    assert result.metrics["caption_auroc"] == pytest.approx(roc_auc_score(label, score))
    order = {name: k for k, name in enumerate(dict.fromkeys(cluster))}
    number = np.array([order[name] for name in cluster])

    def without(kept):
        there = np.isin(number, kept)
        return roc_auc_score(np.array(label)[there], np.array(score)[there])

    assert result.intervals["caption_auroc"] == pytest.approx(jackknife(without, len(order)))


def test_items_of_one_image_are_drawn_together(tmp_path):
    root, _, model = random_set(tmp_path, 20)
    boxes = [{"file": "i0.png", "box": [0, 0, 2, k]} for k in (2, 3)]
    crops = [{**item("", ["t0", "t1"], 0), "images": [box]} for box in boxes]
    pair = item("i1.png i2.png", ["t0"], 1)
    write(root, [*crops, pair])
    (root / "i0.png").write_bytes(image_bytes())
    model.images = lambda source: torch.eye(4)[: len(source), :3]
    assert [r["cluster"] for r in run(root, model).records] == ["i0.png", "i0.png", "i2.png"]


def test_arguments_are_explained():
    info = read_part("eval", "selection")
    assert info.class_name == "SelectionEval" and all(p.doc for p in info.parameters)
    assert not any(p.required for p in info.parameters)
