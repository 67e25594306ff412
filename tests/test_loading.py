"""load and export: open_clip gets the same features, and nothing heavy is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import CheckpointError
from clipkit.loading import load_encoder
from tests.e2e.runs import write_run
from tests.engine.inprocess import fit_in_pool

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


def test_load_needs_neither_deepspeed_wandb_nor_faiss(trained: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('deepspeed', 'wandb', 'faiss', 'webdataset'): sys.modules[name] = None\n"
        "import clipkit\n"
        f"model, preprocess, tokenizer = clipkit.load({str(trained / 'runs' / 'r')!r})\n"
        "print(tuple(model.encode_text(tokenizer(['a'])).shape))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 16)"


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
