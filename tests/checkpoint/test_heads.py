"""Heads copied beside an export are read as those of the checkpoint are."""

import pytest
import torch
from torch import nn

from clipkit.checkpoint.heads import heads_reader, write_heads
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint, verify_checkpoint
from clipkit.errors import CheckpointError
from clipkit.loading import export
from tests.fixtures_trained import write_trained_run

ADDONS = [{"kind": "other", "rate": 0.5}, {"kind": "layer", "dim": 3}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(checkpoint folder, its head)."""
    torch.manual_seed(1)
    head = nn.Linear(3, 5)
    place = tmp_path_factory.mktemp("runs") / "run"
    write_trained_run(place, heads={"layer": head}, addons=ADDONS)
    return find_checkpoint(place), head


def test_an_export_gives_the_tensors_and_facts_of_the_checkpoint(run, tmp_path):
    place, head = run
    out = export(place, tmp_path / "out")
    reader = heads_reader(out)
    assert sorted(reader.names("weight")) == ["heads.layer.bias", "heads.layer.weight"]
    for name, tensor in head.state_dict().items():
        assert torch.equal(reader.full("weight", f"heads.layer.{name}"), tensor)
    assert reader.state["addons"] == ADDONS and not reader.names("buffer")
    listed = set(verify_checkpoint(out)["files"])
    assert listed | {"manifest.json"} == {p.name for p in out.iterdir()}
    assert {"heads.safetensors", "index.json", "state.json"} < listed


def test_a_checkpoint_is_read_itself(run):
    place, head = run
    assert torch.equal(heads_reader(place).full("weight", "heads.layer.bias"), head.bias)


def test_without_heads_nothing_is_written(tmp_path):
    write_trained_run(tmp_path / "run")
    reader = CheckpointReader(find_checkpoint(tmp_path / "run"))
    (tmp_path / "out").mkdir()
    assert write_heads(reader, tmp_path / "out") == []
    assert not list((tmp_path / "out").iterdir())
    out = export(tmp_path / "run", tmp_path / "exported")
    assert heads_reader(out) is None and len(list(out.iterdir())) == 3


def test_changed_heads_are_seen(run, tmp_path):
    out = export(run[0], tmp_path / "out")
    data = bytearray((out / "heads.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "heads.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="heads.safetensors was changed"):
        find_checkpoint(out)
