"""From a trained run to refined features: embeddings, memory, neighbours, heads, resume, load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import clipkit
from clipkit.addons.retrieval_fusion import Fusion, heads_of
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import checkpoint_folder, find_checkpoint
from clipkit.dist.group import World
from clipkit.errors import CheckpointError, ClipkitError
from clipkit.loading import load_encoder
from clipkit.retrieval.memory import open_memory
from data_tools.__main__ import app
from tests.e2e.runs import curve, metrics, write_run
from tests.engine.inprocess import fit_in_pool

pytestmark = pytest.mark.slow
ALONE = World()


def tool(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output + str(done.exception)


def build_memory(base: Path, shards: str, place: Path) -> None:
    """place/{embeddings,memory,neighbours} of a run's weights."""
    tool("embed", base, shards, place / "embeddings", "--device", "cpu")
    tool("memory", "build", place / "embeddings", place / "memory")
    tool(
        *("neighbours", place / "embeddings", place / "memory", place / "neighbours"),
        *("--k", 4, "--max-similarity", 2),  # features of noise are all alike
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two base runs of different seeds, a memory and neighbours of each, and a fusion run."""
    root = tmp_path_factory.mktemp("fusion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(root / "cache"))
        config = write_run(root, eval={"tasks": []})
        for seed in (0, 1):
            few = ["train.total_steps=3", f"run.seed={seed}", f"run.name=base{seed}"]
            fit_in_pool(ALONE, str(config), few)
            build_memory(
                root / "runs" / f"base{seed}", f"{root}/data/train/*.tar", root / str(seed)
            )
    fit_in_pool(ALONE, *fusion(root, "whole"))
    return root


def fusion(root: Path, name: str, seed: int = 0, *more: str) -> tuple[str, list[str]]:
    """Config and overrides of a fusion run of 6 steps, a checkpoint after 3."""
    addon = (
        f"{{kind: retrieval_fusion, memory: '{root}/{seed}/memory', num_heads: 4, k: 4, "
        f"neighbours: '{root}/{seed}/neighbours', query_dropout: 0.25}}"
    )
    return str(root / "config.yaml"), [
        f"run.name={name}",
        f"model.pretrained={root}/runs/base0",
        f"addons=[{addon}]",
        "train.total_steps=6",
        "checkpoint.every=3",
        "optim.lr=0.01",
        "eval.tasks=[{kind: zero_shot, data: classes}]",
        *more,
    ]


def test_only_the_heads_were_trained(root: Path) -> None:
    base, whole = (CheckpointReader(find_checkpoint(root / "runs" / n)) for n in ("base0", "whole"))
    before, after = base.towers_state(), whole.towers_state()
    assert all(torch.equal(before[n], after[n]) for n in before)
    first = heads_of(CheckpointReader(checkpoint_folder(root / "runs" / "whole", 3)))
    last = heads_of(whole)
    assert first is not None and last is not None and heads_of(base) is None
    assert not torch.equal(first.image.mlp_out.weight, last.image.mlp_out.weight)
    assert all("eval/classes/acc1" not in line for line in metrics(root / "runs" / "whole")[:-1])


def test_no_sample_is_its_own_neighbour(root: Path) -> None:
    for side in ("image", "text"):
        rows = np.load(root / "0" / "neighbours" / f"{side}.npy")
        assert rows.shape == (100, 4) and (rows >= 0).all()
        assert not (rows == np.arange(100)[:, None]).any()  # the memory has the samples' order


def test_a_resumed_run_goes_on_as_if_nothing_had_been(root: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    for name, size in (("again", 1), ("spread", 2)):
        shutil.copytree(root / "runs" / "whole", root / "runs" / name)
        shutil.rmtree(checkpoint_folder(root / "runs" / name, 6))
        arguments = fusion(root, name, 0, "run.resume=auto")
        if size == 1:
            fit_in_pool(ALONE, *arguments)
        else:
            arguments[1].append("data.workers=0")
            ranks(size).run(fit_in_pool, *arguments)
        wanted, found = (curve(root / "runs" / n) for n in ("whole", name))
        resumed, straight = found[-3:], wanted[-3:]
        assert [(s, i) for s, _, i in resumed] == [(s, i) for s, _, i in straight]
        losses = [x for _, x, _ in straight]
        assert [x for _, x, _ in resumed] == (losses if size == 1 else pytest.approx(losses, 1e-5))


def test_load_refines_by_the_memory_it_is_given(root: Path) -> None:
    run, place = root / "runs" / "whole", root / "0"
    encoder = load_encoder(run)
    heads = heads_of(CheckpointReader(find_checkpoint(run)))
    assert heads is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    tool("memory", "add", place / "memory", place / "embeddings", place / "grown")
    shown = []
    for name in ("memory", "grown"):
        model, preprocess, tokenizer = clipkit.load(run, memory=place / name)
        with torch.no_grad():
            images = model.encode_image(preprocess(image)[None])  # type: ignore[operator]
            texts = model.encode_text(tokenizer(["a", "b"]))  # type: ignore[operator]
            plain, _, _ = clipkit.load(run)
            frozen = plain.encode_image(preprocess(image)[None], normalize=True)  # type: ignore[operator]
        fusion = Fusion(heads, open_memory(place / name, encoder.weights_hash))
        torch.testing.assert_close(images, fusion.image(frozen))
        torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))
        assert float((images - frozen).norm()) > 1e-3
        shown.append(images)
    assert not torch.equal(*shown)  # every pair twice: other neighbours
    with pytest.raises(CheckpointError, match="built with other weights"):
        clipkit.load(run, memory=root / "1" / "memory")


REFUSED: list[tuple[int, list[str], str]] = [
    (1, [], "retrieval_fusion.memory: .*built with other weights.*model.pretrained"),
    (0, ["data.mode=streaming", "data.workers=0"], "data.mode=indexed"),
    (0, ["addons.0.search=cross"], "found by search=uni"),
    (0, ["addons.0.k=5"], "holds 4 neighbours of a sample, k is 5"),
    (0, ["addons.0.num_heads=3"], "num_heads: 3 does not divide the embed dim 16"),
    (0, ["addons.0.neighbours=nowhere"], "clipkit-data neighbours"),
    (0, ["addons.0.memory=nowhere"], "clipkit-data memory build"),
    (0, ["model.pretrained=null"], "built with other weights.*model.pretrained"),
]


@pytest.mark.parametrize(("seed", "overrides", "message"), REFUSED)
def test_what_does_not_fit_is_told_before_training(
    root: Path, seed: int, overrides: list[str], message: str
) -> None:
    with pytest.raises(ClipkitError, match=message) as error:
        fit_in_pool(ALONE, *fusion(root, "refused", seed, *overrides))
    assert "\n" not in str(error.value)


def test_shards_in_another_order_are_other_samples(root: Path) -> None:
    files = sorted((root / "data" / "train").glob("*.tar"))
    turned: list[Any] = [str(files[i]) for i in (1, 0, 2)]
    with pytest.raises(ClipkitError, match="shard 0 is"):
        fit_in_pool(ALONE, *fusion(root, "turned", 0, f"data.train={turned}"))
