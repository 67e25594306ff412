"""Architecture name or json file -> open_clip model config.

Imports no torch: a typo is found at once.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from clipkit.config.parts import suggest
from clipkit.errors import ConfigError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _config_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ConfigError("open_clip is not installed; pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs"


def list_architectures() -> list[str]:
    """Names of the architectures that the installed open_clip brings."""
    return sorted(path.stem for path in _config_folder().glob("*.json"))


def read_arch(arch: str) -> dict[str, Any]:
    """Return the open_clip `model_cfg` of a name ("ViT-B-32", "ViT-B/32") or a json file.

    Raises:
        ConfigError: Unknown name (with the nearest one), missing or malformed file, or a model
            that is no dual encoder.
    """
    if arch.endswith(".json"):
        path = Path(arch)
        if not path.is_file():
            raise ConfigError(f"model.arch: no such file: {arch}")
    else:
        path = _config_folder() / f"{arch.replace('/', '-')}.json"
        if "/" in arch.replace("/", "-") or not path.is_file():
            raise ConfigError(
                f"model.arch: unknown architecture '{arch}'{suggest(arch, list_architectures())}"
            )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model.arch: {path} is not valid JSON: {error}") from None
    return check_model_cfg(
        config.get("model_cfg", config) if isinstance(config, dict) else config, str(path)
    )


def check_model_cfg(config: Any, where: str) -> dict[str, Any]:
    """Check that a model_cfg describes a dual encoder clipkit can train.

    Raises:
        ConfigError: Names what is missing.
    """
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if not isinstance(config, dict) or key not in config:
            raise ConfigError(
                f"model.arch: {where} has no '{key}'; it must be an open_clip model config"
            )
    if "multimodal_cfg" in config:
        raise ConfigError(
            f"model.arch: {where} is a captioning model (CoCa); choose a dual encoder"
        )
    return config
