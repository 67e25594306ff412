"""Weights files of others: tensors that fit, or one clear error; nothing in them is run."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

from clipkit.errors import CheckpointError, ConfigError
from clipkit.towers.build import build_towers, load_pretrained
from tests.tiny_model import MODEL_CFG

NAME = "text_projection"
CHANGES = {
    "a key that is no text": lambda v: {3: v},
    "sparse": lambda v: {NAME: v.to_sparse()},
    "complex": lambda v: {NAME: v.to(torch.complex64)},
    "without content": lambda v: {NAME: v.to("meta")},
    "quantized": lambda v: {NAME: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)},
    "no tensor": lambda v: {NAME: [1.0]},
}


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return build_towers(MODEL_CFG).clip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_no_model_has(tmp_path: Path, clip: torch.nn.Module, change: str) -> None:
    state = {k: v.clone() for k, v in clip.state_dict().items()}
    torch.save({**state, **CHANGES[change](state[NAME])}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no state dict of dense tensors|cannot be read"):
        load_pretrained(clip, str(tmp_path / "w.pt"))


def test_code_is_not_run(tmp_path: Path, clip: torch.nn.Module) -> None:
    (tmp_path / "w.pt").write_bytes(f"cposix\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_pretrained(clip, str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


def test_an_old_torch_does_not_read_them(
    tmp_path: Path, clip: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(clip.state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.1")
    with pytest.raises(ConfigError, match="torch 2.5.1 is unsafe"):
        load_pretrained(clip, str(tmp_path / "w.pt"))
