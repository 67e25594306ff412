"""load and export: open_clip gets the same features, and nothing heavy is needed."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.addons.retrieval_fusion import Fusion, FusionHeads, Prototype
from clipkit.addons.retrieval_fusion.head import FusionSettings
from clipkit.errors import CheckpointError, ConfigError
from clipkit.loading import calibration_path, load_encoder, refinements_of
from clipkit.retrieval.calibration import Calibration, Centring, Shift
from clipkit.retrieval.refinement import Refinement
from tests.addons.retrieval_fusion.memories import PlainMemory
from tests.e2e.runs import write_run
from tests.engine.inprocess import fit_in_pool
from tests.fixtures_model import write_arch
from tests.fixtures_trained import write_trained_run

SCORE = """
import io, json, sys, tarfile
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("clipkit", "deepspeed", "wandb", "faiss", "webdataset"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import open_clip, torch
from PIL import Image
export, data = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{export}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{export}")
files = ("classnames", "zeroshot_classification_templates")
names, templates = (open(f"{data}/{f}.txt").read().split("\\n")[:-1] for f in files)
tar = tarfile.open(f"{data}/test/0.tar")
members = {m.name: tar.extractfile(m).read() for m in tar}
pngs = [d for n, d in members.items() if n.endswith("png")]
images = torch.stack([preprocess(Image.open(io.BytesIO(d)).convert("RGB")) for d in pngs])
labels = torch.tensor([int(d) for n, d in members.items() if n.endswith("cls")])
model.eval()
with torch.no_grad():
    tokens = [tokenizer([t.replace("{c}", c) for t in templates]) for c in names]
    classes = torch.stack([model.encode_text(t, normalize=True).mean(0) for t in tokens])
    classes = torch.nn.functional.normalize(classes, dim=-1)
    scores = model.encode_image(images, normalize=True) @ classes.T
print(json.dumps({"acc1": (scores.argmax(1) == labels).double().mean().item(), "n": len(labels)}))
"""


@pytest.fixture(scope="module")
def trained(ranks, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    """A run folder of a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_run(folder, data={"workers": 0})
    ranks(1).run(fit_in_pool, str(config), ["train.total_steps=3", "optim.lr=1e-2"])
    return folder


def test_export_loads_in_open_clip_with_equal_features(trained: Path, tmp_path: Path) -> None:
    out = clipkit.export(trained / "runs" / "r", tmp_path / "out")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    assert theirs.logit_scale.shape == ()
    for source in (trained / "runs" / "r", out):
        ours, our_preprocess, our_tokenizer = clipkit.load(source)
        image = Image.effect_noise((40, 30), 80).convert("RGB")
        texts = ["caption 3", "a two"]
        assert torch.equal(our_preprocess(image), preprocess(image))
        assert torch.equal(our_tokenizer(texts), tokenizer(texts))
        with torch.no_grad():
            pixels = preprocess(image)[None]
            for a, b in (
                (ours.encode_image(pixels), theirs.eval().encode_image(pixels)),
                (ours.encode_text(tokenizer(texts)), theirs.encode_text(tokenizer(texts))),
                (ours.logit_scale, theirs.logit_scale),
            ):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_script_with_only_open_clip_scores_alike(trained: Path, tmp_path: Path) -> None:
    out = clipkit.export(trained / "runs" / "r", tmp_path / "out")
    data = trained / "data" / "classes"
    run = subprocess.run(
        [sys.executable, "-c", SCORE, str(out), str(data)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((trained / "runs" / "r" / "results.json").read_text())["classes"]
    assert json.loads(run.stdout.splitlines()[-1]) == {"acc1": results["acc1"], "n": results["n"]}


def test_load_needs_neither_deepspeed_wandb_nor_faiss(trained: Path, tmp_path: Path) -> None:
    run_folder = trained / "runs" / "r"
    weights, zero = load_encoder(run_folder).weights_hash, torch.zeros(16, dtype=torch.float64)
    Calibration(zero, zero, zero, weights).save(tmp_path / "c")
    code = (
        "import sys\n"
        "for name in ('deepspeed', 'wandb', 'faiss', 'webdataset'): sys.modules[name] = None\n"
        "import clipkit\n"
        f"model, preprocess, tokenizer = clipkit.load({str(run_folder)!r})\n"
        "print(tuple(model.encode_text(tokenizer(['a'])).shape))\n"
        f"centred, _, _ = clipkit.load({str(run_folder)!r}, calibration={str(tmp_path / 'c')!r})\n"
        "print(len(centred.refinements), 'clipkit.retrieval.memory' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == ["(1, 16)", "1 False", ""]


def test_export_does_not_overwrite(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        clipkit.export(trained / "runs" / "r", tmp_path / "out")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        clipkit.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        clipkit.load(tmp_path)


def test_a_changed_export_is_refused(trained: Path, tmp_path: Path) -> None:
    out = clipkit.export(trained / "runs" / "r", tmp_path / "out")
    weights = out / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_encoder(out)


HEAD = FusionSettings(8, k=3, num_heads=2, mlp_ratio=1.0)


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> tuple[Path, Path, FusionHeads]:  # type: ignore[no-untyped-def]
    """A run with trained fusion heads, its export, and the heads."""
    root = tmp_path_factory.mktemp("fused")
    torch.manual_seed(3)
    heads = FusionHeads(HEAD)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    addons = [{}, {"kind": "retrieval_fusion", **HEAD.as_json()}]
    write_trained_run(root / "run", heads={"fusion": heads}, addons=addons)
    return root / "run", clipkit.export(root / "run", root / "out"), heads


@pytest.fixture
def memories(monkeypatch) -> list[tuple[object, str]]:  # type: ignore[no-untyped-def]
    """Every memory opens as a plain one; what was asked for."""
    asked = []

    def opened(path: object, weights: str) -> PlainMemory:
        asked.append((path, weights))
        return PlainMemory(dim=8)

    monkeypatch.setattr("clipkit.retrieval.memory.open_memory", opened)
    return asked


def calibrated(path: Path, out: Path, weights: str | None = None, **facts: Any) -> Calibration:
    """Means drawn at random, for the weights of a checkpoint."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(3, 8, generator=rng, dtype=torch.float64) / 8
    weights = weights or load_encoder(path).weights_hash
    fitted = Calibration(*means, weights, **facts)
    fitted.save(out)
    return fitted


@functools.cache
def inputs(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and tokens."""
    _, preprocess, tokenizer = clipkit.load(path)
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)) for _ in range(4)]
    return torch.stack([preprocess(i) for i in noise]), tokenizer(["a", "a red", "two things"])


@functools.cache
def raw(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of `inputs` without any refinement."""
    model, _, _ = clipkit.load(path)
    assert type(model) in (open_clip.CLIP, open_clip.CustomTextCLIP)
    pixels, tokens = inputs(path)
    with torch.no_grad():
        return model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)


@torch.no_grad()
def check_features(path: Path, expected: list[Refinement], **options: Any) -> None:
    """load() does just these to all features, however they are asked for."""
    images, texts = raw(path)
    for refinement in expected:
        images, texts = refinement.image(images), refinement.text(texts)
    model, _, _ = clipkit.load(path, **options)
    assert [r.name for r in model.refinements] == [r.name for r in expected]
    pixels, tokens = inputs(path)
    for normalize in (False, True):
        for got, wanted in (
            (model.encode_image(pixels, normalize), images),
            (model.encode_text(tokens, normalize=normalize), texts),
        ):
            assert torch.allclose(got, wanted, atol=1e-6) and got.dtype == torch.float32
            assert torch.allclose(got.norm(dim=1), torch.ones(len(got)), atol=1e-5)
    whole = model(pixels, tokens)
    assert torch.allclose(whole[0], images, atol=1e-6)
    assert torch.allclose(whole[1], texts, atol=1e-6)
    assert model.visual is not None and model.logit_scale.shape == () and not model.training


def test_a_calibration_centres_what_a_loaded_model_gives(fused, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run, out, _ = fused
    fitted = calibrated(run, tmp_path / "c")
    check_features(run, [Centring(fitted)], calibration=tmp_path / "c")
    check_features(run, [Shift(fitted, 0.5)], calibration=str(tmp_path / "c"), shift=0.5)
    for place in (run, out):
        with pytest.raises(CheckpointError, match="no such calibration"):
            refinements_of(place, calibration=True, weights=fitted.weights_hash)
        fitted.save(calibration_path(place))
        for asked in (True, "auto"):
            check_features(place, [Centring(fitted)], calibration=asked)
        calibration_path(place).unlink()
    assert calibration_path(run / "checkpoints" / "step_00000003") == calibration_path(run)
    with pytest.raises(ConfigError, match="name the file"):
        calibration_path(run / "config.yaml")


def test_texts_that_are_queries_lose_their_own_mean(fused, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run, _, _ = fused
    fitted, options = calibrated(run, tmp_path / "c"), {"calibration": tmp_path / "c"}
    check_features(run, [Centring(fitted)], **options, texts="document")
    check_features(run, [Centring(fitted).for_queries()], **options, texts="query")
    check_features(run, [Shift(fitted, 0.5)], **options, shift=0.5, texts="query")
    assert type(clipkit.load(run, texts="query")[0]) is open_clip.CLIP
    with pytest.raises(ConfigError, match="texts 'asked': choose document or query"):
        clipkit.load(run, texts="asked")


def test_neither_is_todays_model(fused) -> None:  # type: ignore[no-untyped-def]
    for options in ({}, {"calibration": None}, {"calibration": False, "memory": None}):
        model, _, _ = clipkit.load(fused[0], **options)
        assert type(model) is open_clip.CLIP and refinements_of(fused[0], **options) == []


def test_a_memory_refines_by_the_heads_of_a_run_or_its_export(fused, memories) -> None:  # type: ignore[no-untyped-def]
    run, out, heads = fused
    memory = PlainMemory(dim=8)
    for place in (run, out):
        check_features(place, [Fusion(heads, memory)], memory="m")
        check_features(place, [Fusion(heads, memory, sides="text")], memory="m", refine="text")
        check_features(place, [Prototype(memory)], memory=["m", "n"], fusion="prototype")
    (found,) = refinements_of(run, memory="m", method="prototype", sides="both")
    assert found.name == Prototype(memory, sides="both").name
    paths, weights = zip(*memories)
    assert set(map(str, paths)) == {"m", "['m', 'n']"}
    assert set(weights) == {load_encoder(run).weights_hash}


def test_a_memory_refines_before_the_centring(fused, memories, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run, _, heads = fused
    fusion = Fusion(heads, PlainMemory(dim=8))
    fitted = calibrated(run, tmp_path / "c", refinements=(fusion.name,))
    options = {"memory": "m", "calibration": tmp_path / "c"}
    check_features(run, [fusion, Centring(fitted)], **options)
    with pytest.raises(CheckpointError, match="these have no refinement"):
        clipkit.load(run, calibration=tmp_path / "c")
    calibrated(run, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="was fitted on features with no refinement"):
        clipkit.load(run, calibration=tmp_path / "plain", memory="m")


def test_what_belongs_to_another_model_is_refused(fused, memories, tmp_path) -> None:  # type: ignore[no-untyped-def]
    calibrated(fused[0], tmp_path / "c", weights="v" * 64)
    with pytest.raises(CheckpointError, match="fitted on weights vvvvvvvvvvvv, the model has"):
        clipkit.load(fused[0], calibration=tmp_path / "c")
    write_trained_run(tmp_path / "plain")
    for place in (tmp_path / "plain", clipkit.export(tmp_path / "plain", tmp_path / "out")):
        with pytest.raises(CheckpointError, match="has no fusion heads; train with"):
            clipkit.load(place, memory="m")
    for options, words in (
        ({"shift": 1.0}, "a shift needs means"),
        ({"refine": "text"}, "give --memory"),
        ({"fusion": "prototype"}, "give --memory"),
        ({"memory": "m", "fusion": "mean"}, "choose head or prototype"),
    ):
        with pytest.raises(ConfigError, match=words):
            clipkit.load(fused[0], **options)


def test_the_weights_hash_of_a_file_with_an_architecture(fused, memories, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run, out, _ = fused
    fitted = calibrated(run, tmp_path / "c")
    arch, weights = str(write_arch(tmp_path)), out / "open_clip_model.safetensors"
    (found,) = refinements_of(weights, calibration=tmp_path / "c", arch=arch)
    assert found.name == Centring(fitted).name
    with pytest.raises(CheckpointError, match="has no fusion heads"):
        refinements_of(weights, memory="m", arch=arch)


def test_a_copy_of_a_refined_model_is_refined(fused, tmp_path) -> None:  # type: ignore[no-untyped-def]
    calibrated(fused[0], tmp_path / "c")
    model, _, _ = clipkit.load(fused[0], calibration=tmp_path / "c")
    _, tokens = inputs(fused[0])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model).encode_text(tokens), model.encode_text(tokens))
    assert set(model.state_dict()) == set(clipkit.load(fused[0])[0].state_dict())
