"""Mistakes found in a second, before torch is imported: settings, files, arithmetic, run folder.

Nothing here may import torch, directly or through a room's module.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from clipkit import faults
from clipkit.checkpoint.verify import MANIFEST, list_checkpoints, read_json
from clipkit.config.schema import RunConfig
from clipkit.config.versions import check_versions
from clipkit.data.negatives.phrases import read_phrases
from clipkit.dist.env import read_env
from clipkit.engine.train_files import check_train_files
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.towers.arch import read_arch


def preflight(config: RunConfig) -> list[str]:
    """Check everything that needs neither torch nor a full pass over the data. Returns warnings.

    Raises:
        ClipkitError: The first problem found.
    """
    warnings = [*check_versions(), *faults.warning()]
    env = read_env()
    size = config.train.global_batch_size
    if size % env.world_size:
        raise ConfigError(
            f"train.global_batch_size={size} is not divisible by the world size {env.world_size}; "
            f"use a multiple of {env.world_size}"
        )
    model_cfg = read_arch(config.model.arch)
    source = config.model.pretrained
    if source and os.sep in source and not Path(source).exists():
        raise ConfigError(f"model.pretrained: no such file or folder: {source}")
    for name, folder in config.data.eval.items():
        if not Path(folder).is_dir():
            raise DataError(f"data.eval.{name}: '{folder}': no such folder")
    if config.data.decode == "scaled" and importlib.util.find_spec("simplejpeg") is None:
        raise ConfigError("data.decode=scaled needs simplejpeg; pip install simplejpeg")
    for addon in config.addons:
        if addon["kind"] == "hard_negatives" and addon["forbid_file"]:
            read_phrases(addon["forbid_file"], "addons.hard_negatives.forbid_file")
    check_train_files(config)
    check_best(config)
    check_run_folder(config, model_cfg)
    return warnings


def run_folder(config: RunConfig) -> Path:
    """<run.dir>/<run.name>."""
    return Path(config.run.dir) / config.run.name


def check_best(config: RunConfig) -> None:
    """The best checkpoint is one that was evaluated: both are due at the same steps.

    Raises:
        ConfigError: Some evaluations have no checkpoint, and some checkpoints no evaluation.
    """
    every, of = config.eval.every, config.checkpoint.every
    if config.checkpoint.best is not None and (not every or not of or (every % of and of % every)):
        raise ConfigError(
            f"checkpoint.best: the best checkpoint is one that was evaluated; set eval.every "
            f"(now {every}) or checkpoint.every (now {of}) to a multiple of the other"
        )


def check_run_folder(config: RunConfig, model_cfg: dict[str, Any]) -> None:
    """A new run needs a free name; a resumed one a checkpoint of the same architecture.

    Raises:
        ConfigError: The folder holds a run and run.resume is none.
        CheckpointError: The newest checkpoint is of another architecture.
    """
    folder = run_folder(config)
    if not (folder / "config.yaml").exists():
        return
    if config.run.resume == "none":
        raise ConfigError(
            f"{folder} already holds a run; set run.resume=auto to go on, or another run.name"
        )
    checkpoints = list_checkpoints(folder)
    if not checkpoints:  # ended before its first checkpoint: it starts again
        return
    for newest in reversed(checkpoints):
        saved = _saved_model_cfg(newest)
        if saved is not None:
            break
    else:
        if config.checkpoint.remote is not None:  # a copy there may be
            return
        raise CheckpointError(
            f"{folder}: no checkpoint is valid; restore one or set another run.name"
        )
    for key, value in model_cfg.items():
        if saved.get(key) != value and not _same_section(saved.get(key), value, config):
            raise CheckpointError(
                f"{newest} holds another architecture ('{key}' differs from {config.model.arch}); "
                f"restore model.arch or set another run.name"
            )


def _saved_model_cfg(checkpoint: Path) -> dict[str, Any] | None:
    """Architecture of a checkpoint, None where it is plainly damaged; hashes are checked later."""
    if not (checkpoint / MANIFEST).is_file():
        return None
    try:
        saved = read_json(checkpoint / "open_clip_config.json")["model_cfg"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return saved if isinstance(saved, dict) else None


def _same_section(saved: Any, wanted: Any, config: RunConfig) -> bool:
    """Equal but for what clipkit itself writes into a section (image size)."""
    if not isinstance(saved, dict) or not isinstance(wanted, dict):
        return False
    own = {"image_size"} if config.model.image_size else set()
    keys = (set(saved) | set(wanted)) - own
    return all(saved.get(k) == wanted.get(k) for k in keys)
