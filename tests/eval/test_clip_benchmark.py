"""CLIP_benchmark 1.6.2's own metric functions, run once on seeded features, give our numbers.

`clip_benchmark_1_6_2.json` holds what they printed for the inputs built here; no score ties, no two
captions are equal.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.eval.base import metric_of
from clipkit.eval.classification import label_ranks
from clipkit.eval.multilabel import average_precisions
from clipkit.eval.zero_shot import exact_scores
from clipkit.retrieval.ranks import ranks

PEER = json.loads((Path(__file__).parent / "clip_benchmark_1_6_2.json").read_text())
N, CLASSES, TEMPLATES, D = 211, 13, 3, 24


def unit(rng, n):
    rows = rng.standard_normal((n, D))
    return torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.float32)


def inputs(seed):
    """The draws of the peer's run, in its order."""
    rng = np.random.default_rng(seed)
    prompts = unit(rng, CLASSES * TEMPLATES).view(CLASSES, TEMPLATES, D)
    labels = torch.tensor(rng.integers(0, CLASSES, N))
    images = F.normalize(prompts.mean(1)[labels] + 0.9 * unit(rng, N), dim=1)
    label_sets = rng.integers(0, 2, (N, CLASSES)).astype(bool)
    counts = rng.integers(1, 5, N)
    owner = np.repeat(np.arange(N), counts)
    captions = F.normalize(images[owner] + 0.8 * unit(rng, len(owner)), dim=1)
    return images, F.normalize(prompts.mean(1), dim=1), labels, label_sets, captions, owner


@pytest.mark.parametrize("peer", PEER, ids=lambda p: f"seed{p['seed']}")
def test_numbers_agree(peer):
    images, classes, labels, label_sets, captions, owner = inputs(peer["seed"])
    scores = exact_scores(images, classes)
    found = label_ranks(scores, labels)
    assert float((found < 1).double().mean()) == pytest.approx(peer["acc1"], abs=1e-6)
    assert float((found < 5).double().mean()) == pytest.approx(peer["acc5"], abs=1e-6)
    records = [
        {"id": i, "class": c, "values": {"recall": float(rank < 1)}}
        for i, (c, rank) in enumerate(zip(labels.tolist(), found.tolist()))
    ]
    recall, _, _ = metric_of(records, "recall", "class")
    assert recall == pytest.approx(peer["mean_per_class_recall"], abs=1e-6)
    precision = np.mean(list(average_precisions(label_sets, scores.numpy()).values()))
    assert precision == pytest.approx(peer["mean_average_precision"], abs=1e-6)
    pairs = torch.stack([torch.tensor(owner), torch.arange(len(owner))], dim=1)
    to_text, to_image = ranks(images, captions, pairs)
    for k in (1, 5, 10):
        text = float((to_text < k).double().mean())
        image = float((to_image < k).double().mean())
        assert text == pytest.approx(peer[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert image == pytest.approx(peer[f"image_retrieval_recall@{k}"], abs=1e-6)
