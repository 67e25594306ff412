"""`clipkit patch`: from any kind of checkpoint to a folder that open_clip reads."""

import json

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from clipkit.cli.main import app
from clipkit.errors import CheckpointError
from clipkit.loading import load_towers
from tests.fixtures_model import ARCH
from tests.fixtures_trained import write_trained_run


def patch(*arguments):
    return CliRunner().invoke(app, ["patch", *map(str, arguments)])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run, and a weights file with its architecture whose every value is larger by 0.5."""
    folder = tmp_path_factory.mktemp("models")
    state = write_trained_run(folder / "run")
    (folder / "arch.json").write_text(json.dumps(ARCH))
    tuned = {k: v + 0.5 for k, v in state.items()}
    safetensors.torch.save_file(tuned, folder / "tuned.safetensors")
    return folder, state


def test_a_run_and_a_weights_file(models, tmp_path):
    folder, state = models
    arguments = (folder / "run", folder / "tuned.safetensors", tmp_path / "out")
    result = patch(*arguments, "--weight", 0.2, "--arch", folder / "arch.json")
    assert result.exit_code == 0 and "0.8 * " in result.output and "note" not in result.output
    written = safetensors.torch.load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert written["logit_scale"].shape == ()
    for name, value in written.items():
        torch.testing.assert_close(value, (state[name] + 0.1).reshape(value.shape))
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out")]).exit_code == 0
    again = patch(folder / "run", tmp_path / "out", tmp_path / "again", "--weight", 1)
    assert again.exit_code == 0, "its own folder is a model too"
    same = load_towers(tmp_path / "again").clip.state_dict()
    assert all(torch.equal(same[n], t) for n, t in written.items())


def test_the_published_weight_is_the_default(models, tmp_path):
    folder, state = models
    arguments = (folder / "run", folder / "tuned.safetensors", tmp_path / "out")
    assert patch(*arguments, "--arch", folder / "arch.json").exit_code == 0
    written = safetensors.torch.load_file(tmp_path / "out" / "open_clip_model.safetensors")
    torch.testing.assert_close(written["visual.proj"], state["visual.proj"] + 0.3)


def test_problems_leave_nothing_behind(models, tmp_path):
    folder, _ = models
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    taken = patch(folder / "run", folder / "run", tmp_path / "full")
    assert isinstance(taken.exception, CheckpointError) and "not empty" in str(taken.exception)
    no_arch = patch(folder / "run", folder / "tuned.safetensors", tmp_path / "out")
    assert isinstance(no_arch.exception, CheckpointError) and "--arch" in str(no_arch.exception)
    missing = patch(folder / "run", folder / "none", tmp_path / "out")
    assert isinstance(missing.exception, CheckpointError)
    assert not (tmp_path / "out").exists()
