"""Zero-shot metrics against counts by hand; no prior from ties."""

import pytest
import torch
import torch.nn.functional as F

from clipkit.dist.group import World
from clipkit.errors import DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.zero_shot import (
    ZeroShotEval,
    class_features,
    exact_scores,
)
from tests.fixtures_encoder import color_encoder, write_color_set

LABELS = [0, 0, 0, 1, 1, 2, 3, 3]


def run(root, model, batch_size=64):
    embedder = Embedder(model, World(), batch_size=batch_size)
    return ZeroShotEval(str(root), "colors").run(embedder)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_model_that_knows_colors_is_perfect(tmp_path, batch_size):
    result = run(write_color_set(tmp_path, LABELS), color_encoder(), batch_size=batch_size)
    shares = {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0, "tie_rate": 0.0}
    assert result.metrics == {"n": 8, "nan_rate": 0.0, **shares}
    assert result.task == "zeroshot_classification" and result.dataset == "colors"
    expected = {"data": str(tmp_path), "split": "test", "classes": 4, "templates": 2}
    assert {**result.provenance, **expected} == result.provenance
    assert result.details["matrix"] == [[3, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]]
    assert result.intervals["acc1"] == pytest.approx((0.6756, 1.0), abs=1e-4)


def test_a_model_that_sees_red_light_only(tmp_path):
    def red_light(color):
        return F.normalize(
            torch.stack([color[:, 0] - 120, 0 * color[:, 0], 0 * color[:, 0]], 1), dim=1
        )

    result = run(write_color_set(tmp_path, LABELS), color_encoder(red_light, red_light))
    # red = white and green = blue: each ties with another class, and ties are wrong
    assert result.metrics["acc1"] == 0.0 and result.metrics["acc5"] == 1.0


def test_a_model_that_takes_blue_for_green(tmp_path):
    def confuse(color):
        color = color.clone()
        color[color[:, 2] > color[:, 0] + 100] = torch.tensor([10.0, 250.0, 10.0])
        return F.normalize(color - 120, dim=-1)

    result = run(write_color_set(tmp_path, LABELS), color_encoder(confuse))
    assert result.metrics["acc1"] == 7 / 8
    assert result.metrics["mean_per_class_recall"] == pytest.approx(3 / 4)


def test_a_constant_model_scores_nothing(tmp_path):
    model = color_encoder(lambda c: torch.ones_like(c), lambda c: torch.ones_like(c))
    result = run(write_color_set(tmp_path, LABELS), model)
    assert result.metrics["acc1"] == 0.0 and result.metrics["mean_per_class_recall"] == 0.0
    assert result.metrics["tie_rate"] == 1.0


def test_equal_features_tie_wherever_they_stand():
    row = F.normalize(torch.randn(1, 509, generator=torch.Generator().manual_seed(0)), dim=1)
    scores = exact_scores(row.repeat(67, 1), row.repeat(33, 1))
    assert len(scores.unique()) == 1


def test_class_features_average_templates_before_normalising():
    def prompt_length(color):
        return color

    model = color_encoder(text_features=prompt_length)
    features = class_features(
        Embedder(model, World()), ["red", "blue"], ["{c}", "a green thing not {c}"]
    )
    red, green, blue = (
        torch.tensor(c).float() for c in ((250, 10, 10), (10, 250, 10), (10, 10, 250))
    )
    expected = torch.stack([F.normalize(red + green, dim=0), F.normalize(blue + green, dim=0)])
    assert torch.allclose(features, expected, atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))


def test_retrieval_folder_is_refused(tmp_path):
    root = write_color_set(tmp_path, [0, 1], ["red", "green"])
    with pytest.raises(DataError, match="is of type retrieval, not classification"):
        run(root, color_encoder())


def test_each_prompt_is_refined_on_its_own_before_templates_are_averaged():
    class FirstAxis:
        """Knows rows one at a time and is not linear: of averages it makes something else."""

        name = "first axis"

        def image(self, features):
            return features

        def text(self, features):
            return F.normalize(features * (features > 0.5), dim=-1)

    names, templates = ["red", "blue"], ["{c}", "a green thing not {c}", "white or {c}"]
    plain = Embedder(color_encoder(), World())
    refined = Embedder(color_encoder(), World(), refinements=[FirstAxis()])
    found = class_features(refined, names, templates)
    rows = []
    for name in names:
        prompts = [template.replace("{c}", name) for template in templates]
        each = [FirstAxis().text(plain.texts([prompt]))[0] for prompt in prompts]
        rows.append(F.normalize(torch.stack(each).mean(0), dim=0))
    assert torch.allclose(found, torch.stack(rows), atol=1e-6)
    late = FirstAxis().text(class_features(plain, names, templates))
    assert not torch.allclose(found, late, atol=1e-2)
