"""Any range of any tensor, however it was cut; what is not there is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipkit.checkpoint.read import CheckpointReader
from clipkit.errors import CheckpointError
from tests.fixtures_checkpoint import tensors, write_run


@pytest.fixture(params=[1, 2, 5])
def reader(request, tmp_path):
    return CheckpointReader(write_run(tmp_path, 1, request.param))


def test_every_range(reader):
    flat = tensors()["weight", "a"].flatten()
    for start in range(13):
        for stop in range(start, 13):
            assert torch.equal(reader.read("weight", "a", start, stop), flat[start:stop])


def test_names_and_shapes(reader):
    assert sorted(reader.names("weight")) == ["a", "scale"] and reader.names("exp_avg") == ["a"]
    assert reader.names("exp_avg_sq") == []
    assert reader.shape("weight", "a") == (3, 4) and reader.shape("weight", "scale") == ()
    assert reader.full("weight", "scale").shape == ()


def test_missing_tensor_is_named(reader):
    for call in (reader.shape, reader.read, reader.full):
        with pytest.raises(
            CheckpointError, match="has no exp_avg 'b'; it belongs to another model"
        ):
            call("exp_avg", "b")


def test_a_gap_in_the_slices_is_found(tmp_path):
    folder = write_run(tmp_path, 1, 2)
    index = json.loads((folder / "index.json").read_text())
    del index["weight/a"]["slices"][1]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="the slices of 'weight/a' do not fill its shape"):
        CheckpointReader(folder)


def test_a_range_beyond_the_end_is_refused(tmp_path):
    reader = CheckpointReader(write_run(tmp_path, 1, 2))
    assert reader.read("weight", "a", 0, 6).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(CheckpointError, match="'a' ends before element 13"):
        reader.read("weight", "a", 6, 13)


def test_a_missing_or_broken_file_is_named(tmp_path):
    folder = write_run(tmp_path, 1, 2)
    (folder / "rank_00001.safetensors").write_bytes(b"x")
    reader = CheckpointReader(folder)
    assert len(reader.read("weight", "a", 0, 6)) == 6
    with pytest.raises(CheckpointError, match=r"rank_00001\.safetensors: cannot be read"):
        reader.full("weight", "a")
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read"):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.update(file="../../outside.safetensors"), "not in the manifest"),
        (lambda p: p.update(start=4), "gap or overlap"),
        (lambda p: p.update(stop=5), "do not fill its shape"),
        (lambda p: p.pop("start"), "is damaged"),
        (lambda p: p.update(start=0.0), "are no lengths"),
        (lambda p: p.update(stop=True), "are no lengths"),
    ],
)
def test_an_index_reaches_only_what_the_manifest_lists(tmp_path, change, reason):
    folder = write_run(tmp_path, 3)
    index = json.loads((folder / "index.json").read_text())
    change(index["weight/a"]["slices"][0])
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=reason):
        CheckpointReader(folder)


@pytest.mark.parametrize("shape", [[1], [5], [30], [12, 2], []])
def test_a_tensor_is_as_long_as_the_index_says(tmp_path, shape):
    folder = write_run(tmp_path, 3)
    path = folder / "rank_00000.safetensors"
    held = load_file(path)
    held["weight/a@0"] = torch.ones(shape)
    save_file(held, path)
    with pytest.raises(CheckpointError, match="'weight/a@0' is not as long"):
        CheckpointReader(folder).full("weight", "a")


@pytest.mark.parametrize("text", ["[]", '{"weight/a": 3}', '{"weight/a": {"slices": []}}'])
def test_an_index_of_another_shape_is_damage(tmp_path, text):
    folder = write_run(tmp_path, 3)
    (folder / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json is damaged"):
        CheckpointReader(folder)


@pytest.mark.parametrize("shape", [[10**9], [10**19], [-3, -4], [12.0], {}, "", [True]])
def test_an_index_that_claims_more_than_its_files_hold_costs_no_memory(tmp_path, shape):
    folder = write_run(tmp_path, 1, 1)
    index = json.loads((folder / "index.json").read_text())
    stop = shape[0] if isinstance(shape, list) and len(shape) == 1 else 12
    index["weight/a"]["shape"], index["weight/a"]["slices"][0]["stop"] = shape, stop
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"is damaged|not as long as index\.json says"):
        CheckpointReader(folder).full("weight", "a")
