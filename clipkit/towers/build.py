"""open_clip's factory, seen through one function: config in, DualEncoder and its model_cfg out."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from clipkit.config.parts import suggest
from clipkit.config.versions import check_versions
from clipkit.errors import CheckpointError, ConfigError
from clipkit.towers.arch import check_model_cfg
from clipkit.towers.tokenizer import build_tokenizer

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


@dataclass
class Towers:
    """An open_clip model with everything needed to feed and to export it.

    Attributes:
        clip: The open_clip module.
        config: {"model_cfg": ..., "preprocess_cfg": ...}, what an export writes.
        preprocess: PIL image -> (3, H, W) float, normalised, for evaluation.
        tokenizer: list of str -> (n, context_length) int64.
    """

    clip: open_clip.CLIP | open_clip.CustomTextCLIP
    config: dict[str, Any]
    preprocess: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, 0..1."""
        return tuple(self.config["preprocess_cfg"]["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, 0..1."""
        return tuple(self.config["preprocess_cfg"]["std"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width the image tower expects."""
        size = self.config["preprocess_cfg"]["size"]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def build_towers(
    model_cfg: dict[str, Any],
    *,
    preprocess_cfg: dict[str, Any] | None = None,
    nonscalar_logit_scale: bool = True,
    image_size: int | None = None,
    patch_dropout: float | None = None,
) -> Towers:
    """Build random-weight towers from a model_cfg, through open_clip's public `local-dir:` schema.

    Raises:
        ConfigError: open_clip refuses the config; its reason in one line.
    """
    config = {
        "model_cfg": copy.deepcopy(check_model_cfg(model_cfg, "the model config")),
        "preprocess_cfg": preprocess_cfg or {},
    }
    if image_size is not None:
        config["model_cfg"]["vision_cfg"]["image_size"] = image_size
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random; they should be
    try:
        _refuse_foreign_code(config["model_cfg"]["text_cfg"].get("hf_model_name"))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
            clip = open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,
                pretrained_text=False,
                pretrained_image=False,
                force_patch_dropout=patch_dropout,
                nonscalar_logit_scale=nonscalar_logit_scale,
                device=torch.get_default_device(),
            )
    except Exception as error:  # a wrong config makes its constructors raise whatever they do
        raise ConfigError(
            f"model.arch: open_clip cannot build it: {' '.join(str(error).split())[:300]}"
        ) from error
    finally:
        logging.disable(level)
    full = PreprocessCfg(**clip.visual.preprocess_cfg)
    config["preprocess_cfg"] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in vars(full).items()
    }
    return Towers(
        clip, config, image_transform_v2(full, is_train=False), build_tokenizer(config["model_cfg"])
    )


def _refuse_foreign_code(hf_model_name: str | None) -> None:
    """Raises ValueError where transformers would ask whether to run code of a model's folder.

    open_clip leaves it to ask, and a foreign config must not come to run code by a "y".
    """
    if hf_model_name:
        from transformers import MODEL_MAPPING, AutoConfig

        config = AutoConfig.from_pretrained(hf_model_name, trust_remote_code=False)
        if type(config) not in MODEL_MAPPING:
            raise ValueError(f"'{hf_model_name}' is no text model that transformers itself knows")


def load_pretrained(clip: nn.Module, path: str) -> None:
    """Load open_clip weights from a file into freshly built towers; never unpickles code.

    Raises:
        CheckpointError: Missing file, unreadable content, or weights of another architecture.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"model.pretrained: no such file: {path}")
    state: Any
    try:
        if file.suffix == ".safetensors":
            state = safetensors.torch.load_file(file)
        else:
            check_versions()  # some could be made to run code even so
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # damaged zip, pickle and safetensors files raise a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"model.pretrained: {path} cannot be read: {reason}") from None
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    load_open_clip_state(clip, state, path)


def download_tag(arch: str, tag: str) -> str:
    """Path of the weights open_clip knows by a tag ("laion2b_s34b_b79k"), fetched if not cached.

    Raises:
        ConfigError: Unknown tag (with the known ones), or no way to fetch it.
    """
    name = arch.replace("/", "-")
    known = open_clip.list_pretrained_tags_by_model(name)
    if tag not in known:
        raise ConfigError(
            f"model.pretrained: '{tag}' is neither a file, a folder nor a tag of "
            f"{name}{suggest(tag, known)}"
        )
    try:
        return open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except Exception as error:  # hub and http clients raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"model.pretrained: '{tag}' cannot be fetched: {reason}") from None


def pretrained_preprocess(arch: str, tag: str) -> dict[str, Any]:
    """The image transform that open_clip's weights of a tag were trained with."""
    found = open_clip.get_pretrained_cfg(arch.replace("/", "-"), tag)
    wanted = ("mean", "std", "interpolation", "resize_mode")
    return {k: found[k] for k in wanted if found.get(k) is not None}


def load_open_clip_state(clip: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict whose logit_scale may be 0-d or [1], with or without a "module." prefix.

    Raises:
        CheckpointError: A key or shape differs; names the first.
    """
    own = clip.state_dict()
    if not isinstance(state, dict) or not all(map(_is_weight, state, state.values())):
        raise CheckpointError(
            f"{where} holds no state dict of dense tensors; save the model's state_dict()"
        )
    clean = {k.removeprefix("module."): v for k, v in state.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in clean and name in own and clean[name].numel() == 1:
            clean[name] = clean[name].reshape(own[name].shape)
    clean.pop("attn_mask", None)
    wrong = next((k for k in own if k not in clean), None) or next(
        (k for k in clean if k not in own), None
    )
    wrong = wrong or next((k for k in own if own[k].shape != clean[k].shape), None)
    if wrong:
        here, there = own.get(wrong), clean.get(wrong)
        shapes = " against ".join(
            "absent" if t is None else str(tuple(t.shape)) for t in (here, there)
        )
        raise CheckpointError(
            f"{where} holds another architecture: '{wrong}' is {shapes}; check model.arch"
        )
    clip.load_state_dict(clean)


def _is_weight(name: Any, value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return isinstance(name, str) and dense and not (value.is_quantized or value.is_complex())


def lock_towers(
    clip: open_clip.CLIP | open_clip.CustomTextCLIP, lock: tuple[str, ...], unlocked_groups: int
) -> None:
    """Freeze towers as open_clip does (LiT, Zhai et al. 2022): "image", "text"."""
    if "image" in lock:
        clip.lock_image_tower(unlocked_groups=unlocked_groups, freeze_bn_stats=True)
    if "text" in lock:
        clip.lock_text_tower(unlocked_layers=unlocked_groups)


def first_batch_norm(module: nn.Module) -> str | None:
    """Name of the first submodule that uses batch statistics in training mode, if any."""
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training:
            return f"{name} ({type(child).__name__})"
    return None
