"""Towers from a config, weights from files; foreign files are refused by name, never run."""

import copy
import pickle

import pytest
import safetensors.torch
import torch

from clipkit.errors import CheckpointError, ConfigError
from clipkit.towers.build import (
    build_towers,
    first_batch_norm,
    load_open_clip_state,
    load_pretrained,
    lock_towers,
)
from tests.fixtures_model import ARCH


@pytest.fixture(scope="module")
def towers():
    return build_towers(ARCH)


@pytest.fixture(scope="module")
def other():
    return build_towers(ARCH)


def test_what_comes_with_the_towers(towers):
    assert towers.image_size == (8, 8) and len(towers.mean) == len(towers.std) == 3
    assert towers.config["model_cfg"] == ARCH
    assert towers.clip.logit_scale.shape == (1,)
    assert towers.tokenizer(["a", "b"]).shape == (2, 16)
    from PIL import Image

    assert towers.preprocess(Image.new("RGB", (30, 20))).shape == (3, 8, 8)


def test_the_given_config_is_not_changed_and_options_are_taken():
    given = copy.deepcopy(ARCH)
    towers = build_towers(given, image_size=12, patch_dropout=0.5, nonscalar_logit_scale=False)
    assert given == ARCH
    assert (
        towers.image_size == (12, 12)
        and towers.config["model_cfg"]["vision_cfg"]["image_size"] == 12
    )
    assert towers.clip.visual.patch_dropout.prob == 0.5 and towers.clip.logit_scale.shape == ()


def test_initial_temperature_and_bias_come_from_the_config():
    towers = build_towers({**ARCH, "init_logit_scale": 1.5, "init_logit_bias": -10.0})
    assert towers.clip.logit_scale.item() == 1.5 and towers.clip.logit_bias.item() == -10.0


@pytest.mark.parametrize(
    "change", [{"width": "wide"}, {"unknown_key": 1}, {"timm_model_name": "no_such_model"}]
)
def test_a_config_open_clip_refuses_is_one_line(change):
    with pytest.raises(ConfigError, match="open_clip cannot build it") as caught:
        build_towers({**ARCH, "vision_cfg": {**ARCH["vision_cfg"], **change}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_weights_with_scalar_or_one_element_temperature(tmp_path, towers, other, suffix, shape):
    state = {
        k: torch.rand_like(v) if v.is_floating_point() else v
        for k, v in other.clip.state_dict().items()
    }
    state["logit_scale"] = state["logit_scale"].reshape(shape)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(state, path)
    load_pretrained(towers.clip, str(path))
    for name, value in towers.clip.state_dict().items():
        assert torch.equal(value, state[name].reshape(value.shape)), name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("visual.proj"), r"'visual\.proj' is \(16, 8\) against absent"),
        (lambda s: s.update(extra=torch.ones(2)), r"'extra' is absent against \(2,\)"),
        (
            lambda s: s.update({"text_projection": torch.ones(8, 9)}),
            r"'text_projection' is \(8, 8\) against \(8, 9\)",
        ),
        (lambda s: s.update(logit_scale=torch.ones(3)), r"'logit_scale' is \(1,\) against \(3,\)"),
        (lambda s: s.update(logit_bias=torch.ones(())), r"'logit_bias' is absent"),
    ],
)
def test_another_architecture_names_its_first_wrong_key(towers, change, expected):
    state = dict(towers.clip.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_open_clip_state(towers.clip, state, "w.pt")
    assert "w.pt holds another architecture" in str(caught.value)


def test_a_refused_state_changes_no_weight(towers, other):
    before = {k: v.clone() for k, v in towers.clip.state_dict().items()}
    state = dict(other.clip.state_dict(), text_projection=torch.ones(1, 1))
    with pytest.raises(CheckpointError):
        load_open_clip_state(towers.clip, state, "w")
    assert all(torch.equal(v, before[k]) for k, v in towers.clip.state_dict().items())


def test_pickled_code_is_not_run(tmp_path, towers):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return open, (str(canary), "w")

    for number, save in enumerate((torch.save, lambda o, p: p.write_bytes(pickle.dumps(o)))):
        path = tmp_path / f"evil{number}.pt"
        save({"state_dict": Evil()}, path)
        with pytest.raises(CheckpointError, match=rf"evil{number}\.pt cannot be read") as caught:
            load_pretrained(towers.clip, str(path))
        assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x80\x02]", b"\xff" * 100])
def test_damaged_files(tmp_path, towers, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_pretrained(towers.clip, str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [torch.ones(2), [1], {"a": 1}, {"state_dict": [1]}])
def test_files_without_a_state_dict(tmp_path, towers, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_pretrained(towers.clip, str(tmp_path / "w.pt"))


def test_missing_file(towers):
    with pytest.raises(CheckpointError, match="no such file: /absent.pt"):
        load_pretrained(towers.clip, "/absent.pt")


@pytest.mark.parametrize(
    ("lock", "frozen"),
    [((), ""), (("image",), "image"), (("text",), "text"), (("image", "text"), "both")],
)
def test_locking(lock, frozen):
    clip = build_towers(ARCH).clip
    lock_towers(clip, lock, 0)
    trains = {n for n, p in clip.named_parameters() if p.requires_grad}
    assert any(n.startswith("visual.") for n in trains) == (frozen not in ("image", "both"))
    assert any(n.startswith("transformer.") for n in trains) == (frozen not in ("text", "both"))
    assert "logit_scale" in trains


def test_first_batch_norm(towers):
    assert first_batch_norm(towers.clip) is None
    module = torch.nn.Sequential(
        torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.BatchNorm1d(1))
    )
    assert first_batch_norm(module) == "1.0 (BatchNorm1d)"
    assert first_batch_norm(module.eval()) is None
