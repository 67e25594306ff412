"""`clipkit export`: open_clip's layout with the same weights."""

import json

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionSettings
from clipkit.cli.main import app
from clipkit.errors import CheckpointError
from tests.fixtures_trained import write_trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, write_trained_run(folder)


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_weights_config_and_manifest(run, tmp_path):
    folder, state = run
    result = export(folder, tmp_path / "out")
    assert result.exit_code == 0 and f'"local-dir:{tmp_path / "out"}"' in result.output
    exported = safetensors.torch.load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert exported["logit_scale"].shape == ()
    assert set(exported) == set(state)
    assert all(torch.equal(v, state[k].reshape(v.shape)) for k, v in exported.items())
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["embed_dim"] == 8 and config["preprocess_cfg"]["size"] == [8, 8]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out")]).exit_code == 0


@pytest.mark.parametrize("kind", ["retrieval_fusion", "other"])
def test_heads_that_refine_are_said(tmp_path, kind):
    settings = FusionSettings(8, 2, num_heads=2)
    addons = [{"kind": kind, **settings.as_json()}]
    write_trained_run(tmp_path / "run", heads={"fusion": FusionHeads(settings)}, addons=addons)
    out = tmp_path / "out"
    first, *more = export(tmp_path / "run", out).output.splitlines()
    line = f'refined features: clipkit.load("{out}", memory=...)'
    assert "open_clip" in first and more == ([line] if kind == "retrieval_fusion" else [])


def test_an_existing_folder_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine").write_text("x")
    result = export(run[0], tmp_path)
    assert isinstance(result.exception, CheckpointError) and "not empty" in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    write_trained_run(tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step_00000003" / "rank_00000.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    result = export(tmp_path / "run", tmp_path / "out")
    assert isinstance(result.exception, CheckpointError) and "sha256 differs" in str(
        result.exception
    )
    assert not (tmp_path / "out").exists()
