"""Checkpoints, exports, calibrations and memories of others: whole, or refused by name.

Half of the damaged ones get a manifest that agrees with the damage: a hostile one would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.verify import find_checkpoint, newest_valid
from clipkit.loading import load_towers
from clipkit.retrieval.calibration import Calibration, load_calibration
from clipkit.retrieval.memory import FolderMemory
from clipkit.towers.build import build_towers
from tests.fuzz.bounds import bounds, cases, folder_of_its_own, some_or_many
from tests.fuzz.mutations import changed_json, damaged
from tests.retrieval.memory.cells import unit, write_memory
from tests.tiny_model import MODEL_CFG

STEP = "step_00000003"


def manifest_of(files: dict[str, bytes]) -> bytes:
    """A manifest that agrees with the files."""
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    return json.dumps({"format": "clipkit-1", "files": entries}).encode()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A checkpoint of the tiny model, in two slices a tensor where it has two elements."""
    torch.manual_seed(0)
    state = build_towers(MODEL_CFG).clip.state_dict()
    index: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        flat, key = value.float().flatten(), f"weight/towers.{name}"
        half = len(flat) // 2
        slices = []
        for start, stop in ((0, half), (half, len(flat))):
            if start < stop:
                tensors[f"{key}@{start}"] = flat[start:stop].clone()
                piece = {"file": "rank_00000.safetensors", "key": f"{key}@{start}"}
                slices.append({**piece, "start": start, "stop": stop})
        index[key] = {"shape": list(value.shape), "slices": slices}
    facts = {"step": 3, "samples_seen": 12, "optimizer_steps": 3, "addons": [{"kind": "ema"}]}
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    return {
        "rank_00000.safetensors": save(tensors),
        "index.json": json.dumps(index).encode(),
        "state.json": json.dumps(facts).encode(),
        "open_clip_config.json": json.dumps(config).encode(),
    }


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For files that another machine has written a moment ago."""
    monkeypatch.setattr("clipkit.checkpoint.verify._PAUSES_S", ())


def write(root: Path, content: dict[str, bytes], manifest: bytes) -> Path:
    """A run folder with one checkpoint."""
    folder = folder_of_its_own(root) / "checkpoints" / STEP
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest)
    return folder.parents[1]


@st.composite
def headers(draw: st.DrawFn, whole: bytes) -> bytes:
    """safetensors: its header changed as JSON, its length, or any byte."""
    size = struct.unpack("<Q", whole[:8])[0]
    kind = draw(st.sampled_from(["header", "length", "bytes"]))
    if kind == "bytes":
        return draw(damaged(whole))
    if kind == "length":
        length = draw(st.sampled_from([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1]))
        return struct.pack("<Q", length) + whole[8:]
    header = draw(changed_json(json.loads(whole[8 : 8 + size])))
    return struct.pack("<Q", len(header)) + header + whole[8 + size :]


def broken(name: str, whole: bytes) -> st.SearchStrategy[bytes]:
    """Damage of one file, after its kind."""
    return changed_json(json.loads(whole)) if name.endswith(".json") else headers(whole)


@some_or_many(60, 2000)
def test_checkpoint(tmp_path: Path, files: dict[str, bytes], count: int) -> None:
    @cases(count)
    @given(st.sampled_from([*files, "manifest.json"]), st.booleans(), st.data())
    def one(name: str, hostile: bool, data: st.DataObject) -> None:
        manifest, content = manifest_of(files), dict(files)
        if name == "manifest.json":
            manifest = data.draw(changed_json(json.loads(manifest)))
        else:
            content[name] = data.draw(broken(name, files[name]))
            manifest = manifest_of(content) if hostile else manifest
        run = write(tmp_path, content, manifest)
        with bounds(run):
            found, skipped = newest_valid(run)
            if not hostile and name != "manifest.json":
                assert (found is None) == (content[name] != files[name]) == bool(skipped)
            reader = CheckpointReader(find_checkpoint(run))
            for key in reader.index:
                reader.full(*key.split("/", 1))
            towers = load_towers(run)
            assert all(p.isfinite().all() or hostile for p in towers.clip.parameters())
        shutil.rmtree(run)

    one()


@some_or_many(20, 500)
def test_files_exchanged(tmp_path: Path, files: dict[str, bytes], count: int) -> None:
    """Whole files in each other's place, or none."""

    @cases(count)
    @given(st.permutations(list(files.values())), st.integers(0, 4), st.booleans())
    def one(contents: list[bytes], kept: int, hostile: bool) -> None:
        content = dict(list(zip(files, contents))[:kept])
        run = write(tmp_path, content, manifest_of(content if hostile else files))
        with bounds(run):
            CheckpointReader(find_checkpoint(run)).towers_state()
            load_towers(run)
        shutil.rmtree(run)

    one()


@some_or_many(20, 500)
def test_export(tmp_path: Path, files: dict[str, bytes], count: int) -> None:
    """open_clip's layout, without a manifest as others write it."""
    state = {k: v.clone() for k, v in build_towers(MODEL_CFG).clip.state_dict().items()}
    whole = {
        "open_clip_model.safetensors": save(state),
        "open_clip_config.json": files["open_clip_config.json"],
    }

    @cases(count)
    @given(st.sampled_from(list(whole)), st.data())
    def one(name: str, data: st.DataObject) -> None:
        folder = folder_of_its_own(tmp_path)
        for file, content in {**whole, name: data.draw(broken(name, whole[name]))}.items():
            (folder / file).write_bytes(content)
        with bounds(folder):
            load_towers(folder)
        shutil.rmtree(folder)

    one()


@some_or_many(100, 2000)
def test_calibration(tmp_path: Path, count: int) -> None:
    mean = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0).double() / 2
    Calibration(mean, mean, mean, weights_hash="w" * 64).save(tmp_path / "whole")
    path = tmp_path / "calibration.safetensors"

    @cases(count)
    @given(headers((tmp_path / "whole").read_bytes()))
    def one(content: bytes) -> None:
        path.write_bytes(content)
        with bounds(tmp_path):
            found = load_calibration(path)
            assert found.text.shape == found.image.shape == found.query_text.shape

    one()


@some_or_many(40, 800)
def test_memory(tmp_path: Path, count: int) -> None:
    whole = write_memory(tmp_path / "whole", 60)
    contents = {p.name: p.read_bytes() for p in sorted(Path(whole).iterdir())}

    @cases(count)
    @given(st.sampled_from(sorted(contents)), st.data())
    def one(name: str, data: st.DataObject) -> None:
        folder = folder_of_its_own(tmp_path)
        content = contents[name]
        content = data.draw(
            changed_json(json.loads(content)) if name.endswith(".json") else damaged(content)
        )
        for file, told in {**contents, name: content}.items():
            (folder / file).write_bytes(told)
        if name != "memory.json":  # it agrees with the damage
            facts = json.loads(contents["memory.json"])
            facts["files"][name] = len(content)
            (folder / "memory.json").write_text(json.dumps(facts))
        with bounds(folder):
            memory = FolderMemory(folder)
            memory.table(["caption"])
            for side in ("image", "text"):
                memory.search(unit(2), side, 3)
        shutil.rmtree(folder)

    one()
