"""`clipkit embed`: stored rows are the model's own, and every refusal is one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from typer.testing import CliRunner

import clipkit
from clipkit.cli.embed import embed
from clipkit.dist import group
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.loading import resolve
from tests.fixtures_shards import noise_bytes, write_shards
from tests.fixtures_trained import write_trained_run

app = typer.Typer()
app.command("embed")(embed)


@pytest.fixture(autouse=True)
def _leave_the_group(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    yield
    group.teardown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("embed")
    write_trained_run(root / "run")
    write_shards(root / "shards", [5, 4], bad=(3,))
    return root


def run(*arguments):
    found = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    group.teardown()
    return found


def test_rows_are_what_load_and_encode_give(place, tmp_path):
    options = ("--rows-per-file", 6, "--batch-size", 4, "--max-bad-fraction", 0.2)
    result = run(place / "run", place / "shards" / "*.tar", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "8 rows of 8, 8 with a caption; skipped: 1 unreadable_image" in result.output
    model, preprocess, tokenizer = clipkit.load(place / "run")
    rows = [i for i in range(9) if i != 3]
    images = [Image.open(io.BytesIO(noise_bytes(i))).convert("RGB") for i in rows]
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        expected = F.normalize(model.encode_image(pixels), dim=-1).numpy()
        tokens = tokenizer([f"caption {i}" for i in rows])
        texts = F.normalize(model.encode_text(tokens), dim=-1).numpy()
    for side, wanted in (("img_emb", expected), ("text_emb", texts)):
        parts = [np.load(tmp_path / "out" / side / f"{side}_{n}.npy") for n in (0, 1)]
        assert [len(p) for p in parts] == [5, 3] and parts[0].dtype == np.float16
        np.testing.assert_allclose(np.concatenate(parts), wanted, atol=1e-3)
        cosines = (np.concatenate(parts).astype(np.float64) * wanted).sum(1)
        assert np.abs(cosines - 1).max() < 1e-3
    tables = [parquet.read_table(tmp_path / "out" / "metadata" / f"metadata_{n}.parquet")
              for n in (0, 1)]  # fmt: skip
    assert [k for t in tables for k in t["key"].to_pylist()] == [f"{i:06d}" for i in rows]
    facts = json.loads((tmp_path / "out" / "index.json").read_text())
    assert facts["checkpoint"] == str((place / "run" / "checkpoints" / "step_00000003").resolve())
    assert len(facts["weights_hash"]) == 64 and facts["precision"] == "fp32"


def test_the_same_again_is_up_to_date_and_other_weights_are_not(place, tmp_path):
    shards, out = place / "shards", tmp_path / "out"
    assert run(place / "run", shards, out, "--max-bad-fraction", 1).exit_code == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = run(place / "run", f"{shards}/{{000..001}}.tar", out)
    assert again.exit_code == 0 and "up to date" in again.output
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    other = run(place / "run", shards / "000.tar", out, "--max-bad-fraction", 1)
    assert isinstance(other.exception, ConfigError) and "--overwrite" in str(other.exception)
    again = run(place / "run", shards / "000.tar", out, "--overwrite", "--max-bad-fraction", 1)
    assert again.exit_code == 0 and "4 rows" in again.output


def test_no_cache_and_a_cache_elsewhere(place, tmp_path):
    options = ("--max-bad-fraction", 1)
    run(place / "run", place / "shards", tmp_path / "a", *options, "--no-cache")
    assert not (tmp_path / "cache" / "features").exists()
    run(place / "run", place / "shards", tmp_path / "b", *options, "--cache", tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("*.safetensors"))
    names = ("img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_refusals(place, tmp_path):
    shards, out = place / "shards", tmp_path / "out"
    for arguments, kind, words in (
        ((tmp_path / "absent", shards, out), CheckpointError, "absent"),
        ((place / "run", tmp_path / "nowhere", out), DataError, "nowhere"),
        ((place / "run", shards, shards, out), DataError, "named twice"),
        ((place / "run", shards, out), DataError, "000.tar with 1"),
        ((place / "run", shards, out, "--precision", "fp8"), ConfigError, "fp8"),
        ((place / "run", shards, place / "run"), ConfigError, "not written by clipkit embed"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, kind), (arguments, result.exception)
        assert words in str(result.exception) and "\n" not in str(result.exception)
        assert not out.exists()


def test_a_damaged_shard_is_warned_of(place, tmp_path):
    (path,) = write_shards(tmp_path / "cut", [6])
    Path(path).write_bytes(Path(path).read_bytes()[:6000])
    result = run(place / "run", path, tmp_path / "out")
    assert result.exit_code == 0 and "warning" in result.stderr and "000.tar" in result.stderr
    facts = json.loads((tmp_path / "out" / "index.json").read_text())
    assert list(facts["damaged_shards"]) == [path]


def test_the_place_of_a_checkpoint(place, tmp_path):
    step = place / "run" / "checkpoints" / "step_00000003"
    assert resolve(place / "run") == resolve(step) == step.resolve()
    clipkit.export(place / "run", tmp_path / "export")
    assert resolve(tmp_path / "export") == (tmp_path / "export").resolve()
    assert resolve("openai", "ViT-B-32") == Path("openai")


@pytest.mark.slow
def test_under_torchrun(place, tmp_path):
    code = (
        "import sys, typer\nfrom clipkit.cli.embed import embed\n"
        "typer.run(embed)\n"
    )  # fmt: skip
    script = tmp_path / "go.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tail = ["--device", "cpu", "--max-bad-fraction", "1"]
    arguments = [str(place / "run"), str(place / "shards"), str(tmp_path / "two"), *tail]
    ran = subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("8 rows of 8") == 1
    assert run(place / "run", place / "shards", tmp_path / "one", "--max-bad-fraction", 1)
    for name in ("img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    arguments = [str(place / "run"), str(place / "shards"), str(tmp_path / "three"), "--device",
                 "cpu"]  # fmt: skip
    ran = subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=200
    )
    assert ran.returncode != 0 and ran.stderr.count("clipkit: 1 of 9 samples") == 1
