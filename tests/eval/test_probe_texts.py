"""A probe that learns texts: from prompts or captions, with noise, centred, scored on images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clipkit.config.parts import check_part
from clipkit.data.wds_folder import open_folder
from clipkit.data.wds_write import write_folder
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult
from clipkit.eval.classification import score_records
from clipkit.eval.embed import Embedder
from clipkit.eval.linear_probe import LinearProbeEval
from clipkit.eval.probe_texts import (
    caption_features,
    centre_both,
    noisy_copies,
    prompt_features,
    rows_of_copies,
)
from clipkit.retrieval.noise import add_noise
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes

NAMES = list(COLORS)
TEMPLATES = ["a {c} thing", "the {c} one", "some {c}"]


def aside(color: Tensor) -> Tensor:
    """A cone of its own, on the red side of where texts of the same colour lie."""
    return F.normalize(F.normalize(color - 120, dim=-1) + torch.tensor([[2.5, 0.0, 0.0]]), dim=-1)


def embedder(**options: Any) -> Embedder:
    return Embedder(color_encoder(**options), World())


def write_split(
    root: Path, split: str, labels: list[int], noise: float = 40, seed: int = 0
) -> Path:
    """Flat images around the colour of their class, two captions each."""
    rng = np.random.default_rng(seed)
    samples = []
    for label in labels:
        color = (np.array(COLORS[NAMES[label]]) + rng.normal(0, noise, 3)).clip(0, 255).astype(int)
        caption = f"{NAMES[label]} paint\na wall in {NAMES[label]}"
        samples.append(
            {
                "png": image_bytes(tuple(color.tolist())),
                "cls": b"%d" % label,
                "txt": caption.encode(),
            }
        )
    write_folder(root, split, samples, classnames=NAMES, templates=TEMPLATES)
    return root


@pytest.fixture(scope="module")
def paints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("paints")
    write_split(root, "train", [0] * 5 + [1, 2, 3] * 8, seed=1)
    return write_split(root, "test", [0, 1, 2, 3] * 10, seed=2)


def run(root: Path, model: Embedder | None = None, **options: Any) -> EvalResult:
    return LinearProbeEval(str(root), "paints", **options).run(model or embedder())


def test_texts_and_their_classes(paints: Path) -> None:
    model, train = embedder(), open_folder(paints, "train")
    rows, classes = prompt_features(model, train)
    assert classes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    prompts = [t.replace("{c}", name) for name in NAMES for t in TEMPLATES]
    assert torch.equal(rows, model.texts(prompts))
    rows, classes = caption_features(model, train)
    assert classes.tolist() == [label for label in train.labels() for _ in range(2)]
    assert torch.equal(rows, model.texts([c for own in train.captions() for c in own]))


def test_copies_and_their_rows() -> None:
    rows = F.normalize(torch.randn(6, 4), dim=-1)
    noisy = noisy_copies(rows, 0.1, 3, seed=5)
    generator = torch.Generator().manual_seed(5)
    wanted = [add_noise(rows, 0.1, generator) for _ in range(3)]
    assert torch.equal(noisy, torch.cat(wanted))
    assert not torch.equal(noisy[:6], noisy[6:12])
    where = rows_of_copies(torch.tensor([1, 4]), 6, 3)
    assert where.tolist() == [1, 4, 7, 10, 13, 16]
    assert torch.equal(noisy[where], torch.cat([w[[1, 4]] for w in wanted]))
    assert torch.equal(noisy_copies(rows, 0.0, 2, seed=5), rows.repeat(2, 1))


def test_centring_removes_each_modalitys_own_mean() -> None:
    texts, seen = torch.randn(7, 4) + 1, torch.randn(9, 4) - 1
    images = torch.randn(3, 4)
    found, others = centre_both(texts, images, seen)
    torch.testing.assert_close(found, F.normalize(texts - texts.mean(0), dim=-1))
    torch.testing.assert_close(others, F.normalize(images - seen.mean(0), dim=-1))


@pytest.mark.parametrize(
    ("train_on", "centre"), [("prompts", False), ("captions", False), ("captions", True)]
)
def test_the_probe_equals_scikit_learn_on_the_same_noisy_texts(
    paints: Path, train_on: str, centre: bool
) -> None:
    options: dict[str, Any] = {"train_on": train_on, "noise": 0.2, "copies": 5, "seed": 3}
    result, model = run(paints, centre=centre, **options), embedder()
    find = prompt_features if train_on == "prompts" else caption_features
    train, test = open_folder(paints, "train"), open_folder(paints)
    rows, classes = find(model, train)
    seen = model.images(test)
    if centre:  # by the mean of the images of the train split, never of those that are scored
        rows, seen = centre_both(rows, seen, model.images(train))
    peer = LogisticRegression(C=result.provenance["C"], tol=1e-9, max_iter=20000)
    peer.fit(noisy_copies(rows, 0.2, 5, 3).double().numpy(), classes.repeat(5).numpy())
    images = seen.double().numpy()
    assert result.metrics["lp_acc1"] == pytest.approx(peer.score(images, test.labels()))
    assert [r["predicted"] for r in result.records] == [NAMES[p] for p in peer.predict(images)]
    scores = torch.from_numpy(peer.predict_log_proba(images))
    wanted = [r["margin"] for r in score_records(test, scores, torch.tensor(test.labels()))]
    assert [r["margin"] for r in result.records] == pytest.approx(wanted, rel=1e-2)
    assert result.metrics["lp_acc1"] > 0.5
    facts = result.provenance
    assert facts["train_samples"] == len(rows) and facts["train_on"] == train_on
    assert facts["noise_length"] == pytest.approx(0.2 * math.sqrt(3)) and facts["copies"] == 5


def test_noise_is_seeded_and_images_get_none(paints: Path) -> None:
    options: dict[str, Any] = {"train_on": "prompts", "noise": 0.3, "copies": 3}
    margins = [
        [r["margin"] for r in run(paints, **options, seed=seed).records] for seed in (0, 0, 1)
    ]
    assert margins[0] == margins[1] != margins[2]
    # the same image twice has the same scores: nothing is drawn at test time
    by_image: dict[bytes, set[float]] = {}
    folder = open_folder(paints)
    for image, record in zip(folder.images(0, len(folder)), run(paints, **options).records):
        by_image.setdefault(image.tobytes() + record["class"].encode(), set()).add(record["margin"])
    assert all(len(found) == 1 for found in by_image.values())


def test_prompts_need_no_train_split_unless_centred(tmp_path: Path) -> None:
    write_split(tmp_path, "test", [0, 1, 2, 3] * 3)
    result = run(tmp_path, train_on="prompts")
    assert result.metrics["lp_acc1"] > 0.7 and result.provenance["train_split"] is None
    for options in ({"train_on": "prompts", "centre": True}, {"train_on": "captions"}):
        with pytest.raises(DataError, match="train shards not found"):
            run(tmp_path, **options)  # type: ignore[arg-type]


def test_centring_closes_a_gap_that_loses_the_transfer(paints: Path) -> None:
    options: dict[str, Any] = {"train_on": "captions"}
    lost = run(paints, embedder(image_features=aside), **options)
    closed = run(paints, embedder(image_features=aside), centre=True, **options)
    assert closed.metrics["lp_acc1"] > 0.8 and lost.metrics["lp_acc1"] <= 0.5
    assert closed.provenance["centre"] is True


def test_labels_of_images_are_not_read_for_prompts(paints: Path, tmp_path: Path) -> None:
    write_split(tmp_path, "train", [3, 2, 1, 0] * 8, seed=1)
    write_split(tmp_path, "test", [0, 1, 2, 3] * 10, seed=2)
    options: dict[str, Any] = {"train_on": "prompts", "noise": 0.1}
    one, other = run(paints, **options), run(tmp_path, **options)
    assert one.metrics == other.metrics


def test_impossible_settings_are_named(paints: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"noise": 0.1}, "set train_on to prompts or captions"),
        ({"centre": True}, "set train_on to prompts or captions"),
        ({"train_on": "prompts", "noise": -0.1}, "noise starts at 0"),
        ({"train_on": "prompts", "copies": 0}, "copies at 1"),
        ({"train_on": "captions", "shots": (1,)}, "shots count images"),
    ):
        with pytest.raises(ConfigError, match=message):
            LinearProbeEval(str(paints), "paints", **options).check()  # type: ignore[arg-type]
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    write_folder(
        tmp_path,
        "test",
        [{"png": image_bytes(), "cls": b"0"}],
        classnames=NAMES,
        templates=["a {c}"],
    )
    with pytest.raises(DataError, match="no class has two prompts"):
        run(tmp_path, train_on="prompts")


def test_settings_come_from_yaml() -> None:
    spec = {"kind": "linear_probe", "train_on": "captions", "noise": 0.04, "copies": 4}
    found = check_part("eval", spec, "eval", extra={})
    assert found["train_on"] == "captions" and found["centre"] is False
    with pytest.raises(ConfigError, match="eval.train_on"):
        check_part("eval", {"kind": "linear_probe", "train_on": "text"}, "eval", extra={})
