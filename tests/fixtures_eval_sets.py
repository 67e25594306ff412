"""Evaluation sets of noise: labels, captions and judgements that no model can know."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import torch

from clipkit.contracts import Batch, Outputs
from clipkit.towers.build import build_towers
from clipkit.towers.dual import DualEncoder, FeatureEncoder
from tests.fixtures_model import ARCH
from tests.fixtures_shards import noise_bytes, write_tar

WORDS = ["red", "green", "blue", "small", "large", "old", "new", "cat", "dog", "car", "tree", "sun"]


def random_encoder(seed: int) -> FeatureEncoder:
    """The smallest towers with random weights."""
    torch.manual_seed(seed)
    towers = build_towers(ARCH)
    model = DualEncoder(towers.clip, mean=towers.mean, std=towers.std).eval()

    @torch.no_grad()
    def forward(batch: Batch) -> Outputs:
        return model(batch)

    return FeatureEncoder(
        forward, towers.preprocess, towers.tokenizer, torch.device("cpu"), weights_hash=str(seed)
    )


def constant_encoder() -> FeatureEncoder:
    """The same features for every input, at the width of `random_encoder`."""
    encoder = random_encoder(0)
    inner = encoder.forward

    def forward(batch: Batch) -> Outputs:
        out = inner(batch)
        row = torch.nn.functional.normalize(torch.arange(1.0, 1 + ARCH["embed_dim"]), dim=0)
        for name, rows in out.embeddings.items():
            out.embeddings[name] = row.expand_as(rows).clone()
        return out

    return FeatureEncoder(forward, encoder.preprocess, encoder.tokenizer, encoder.device)


def write_noise_sets(root: Path, n: int, shuffled: bool = False) -> Path:
    """classes/, labels/ and pairs/ with n samples each; `shuffled`: other shards, same samples."""
    rng = random.Random(0)
    classes = rng.choices(range(5), k=n)
    members = []
    for i in range(n):
        row = io.BytesIO()
        np.save(row, np.array([rng.random() < 0.3 for _ in range(5)], dtype=np.int64))
        caption = f"{i:03d} {' '.join(rng.choices(WORDS, k=4))}"
        sample = {"png": noise_bytes(i), "cls": str(classes[i]).encode(), "npy": row.getvalue()}
        sample |= {"txt": f"{caption}\n{caption} again".encode()}
        members.append([(f"s{i:05d}.{kind}", data) for kind, data in sample.items()])
    train = [
        (f"t{i:05d}.{kind}", data)
        for i in range(n)
        for kind, data in (("png", noise_bytes(n + i)), ("cls", str(rng.randrange(5)).encode()))
    ]
    items = [
        {"id": f"i{i}", "images": [f"s{i:05d}"], "texts": [f"a {a}", f"a {b}"], "answer": i % 2}
        for i, (a, b) in enumerate(rng.sample(WORDS, 2) for _ in range(n))
    ]
    if shuffled:
        rng.shuffle(members)
    cuts = [0, n // 3, n // 2, n] if shuffled else [0, n // 2, n]
    shards = [sum(members[a:b], []) for a, b in zip(cuts, cuts[1:])]
    for name, kind in (("classes", ""), ("labels", "multilabel"), ("pairs", "retrieval")):
        for number, shard in enumerate(shards):
            write_tar(root / name / "test" / f"{number}.tar", shard)
        (root / name / "classnames.txt").write_text("\n".join(WORDS[:5]))
        (root / name / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
        if kind:
            (root / name / "dataset_type.txt").write_text(kind)
    write_tar(root / "classes" / "train" / "0.tar", train)
    lines = "".join(json.dumps({**item, "tags": ["x"]}) + "\n" for item in items)
    (root / "pairs" / "test" / "selection.jsonl").write_text(lines)
    return root
