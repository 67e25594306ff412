"""What a config allows but its author should know: refused, or told at start."""

from __future__ import annotations

import os
import shutil

from torch import nn

from clipkit.config.schema import RunConfig
from clipkit.dist.group import World
from clipkit.engine.chunks import num_chunks
from clipkit.errors import ConfigError
from clipkit.towers.build import first_batch_norm
from clipkit.towers.dual import DualEncoder


def check_batch_norm(model: nn.Module, config: RunConfig, world_size: int) -> str | None:
    """Batch statistics make chunks and ranks inexact: refuse, or return a warning if allowed.

    Raises:
        ConfigError: Names the module and the remedies.
    """
    name = first_batch_norm(model)
    local = config.train.global_batch_size // world_size
    chunk = config.train.chunk_size or local
    apart = config.train.text_chunk_size is not None  # the last chunk is then encoded twice
    split = world_size > 1 or chunk == "auto" or chunk < local or apart
    if name is None or not split:
        return None
    if config.train.batch_norm == "refuse":
        raise ConfigError(
            f"{name} uses batch statistics, which differ between chunks and ranks; "
            f"set model.freeze_batch_norm=true, "
            f"choose another model.arch, or accept inexact gradients with train.batch_norm=chunk"
        )
    return (
        f"train.batch_norm=chunk: {name} sees one chunk at a time; "
        f"gradients are not those of the global batch"
    )


def check_auto_chunk(config: RunConfig, world: World) -> None:
    """A chunk size can be measured where memory is the GPU's.

    Raises:
        ConfigError: There is none.
    """
    if config.train.chunk_size == "auto" and world.device.type != "cuda":
        raise ConfigError("train.chunk_size=auto measures GPU memory; on the CPU give a number")


def bias_note(model: DualEncoder, losses: list[tuple[nn.Module, float]]) -> list[str]:
    """A sigmoid loss on a model without a bias starts far off."""
    wanting = [type(x).__name__ for x, _ in losses if getattr(x, "wants_logit_bias", False)]
    if not wanting or model.towers.logit_bias is not None:
        return []
    return [
        f"{wanting[0]} wants model.init_logit_bias=-10 (and model.init_logit_scale=2.3026); "
        f"without a bias the first steps push all pairs apart"
    ]


def zero3_note(stage: int, rows: int, size: int | None, text_size: int | None) -> list[str]:
    """How often ZeRO-3 gathers the parameters for a step of `rows` samples: for a forward and
    a backward of each chunk, and for the forwards of pass 1."""
    chunks, kept = num_chunks(rows, size, text_size)
    if stage != 3 or chunks == 1:
        return []
    return [
        f"ZeRO-3 with {chunks} chunks gathers the parameters they use "
        f"{3 * chunks - kept} times a step, 2 without chunks; "
        f"a larger train.chunk_size or engine.zero_stage=2 sends less"
    ]


def check_compiler(config: RunConfig, world: World) -> None:
    """On the CPU torch.compile writes C++.

    Raises:
        ConfigError: No compiler.
    """
    if not config.train.compile or world.device.type != "cpu":
        return
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"train.compile: no C++ compiler ({', '.join(names)}); install one, or set "
            f"train.compile=false"
        )
