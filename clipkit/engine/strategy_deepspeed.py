"""DeepSpeed, ZeRO 0 to 3, over torch's AdamW.

The engine runs with gradient_accumulation_steps = 1 and an explicit boundary, so K chunks need no
1/K correction; ZeRO-2 coalesces, so its gradients are reduced once a step instead of once a chunk.
Moments are reached through the flat fp32 partitions themselves (`_hp_mapping` at stages 1 and 2,
`grad_position` at stage 3): DeepSpeed's own links to them break with two parameter groups.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from clipkit.contracts import Batch, Outputs
from clipkit.dist.group import World
from clipkit.engine.strategy import Fragment, Strategy
from clipkit.engine.strategy_torch import replicated_fragments
from clipkit.errors import ConfigError
from clipkit.towers.dual import DualEncoder

_STAGE = "engine.zero_stage"
_OWNED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.global_batch_size",
    "gradient_accumulation_steps": "train.chunk_size",
    "gradient_clipping": "optim.gradient_clip_norm",
    "optimizer": "the optim section",
    "scheduler": "optim.schedule",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this device, quietly, without compiling its CPU communication op."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if device.type == "cpu":
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_config(
    local_batch: int, zero_stage: int, clip_norm: float | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """DeepSpeed's JSON; `overrides` replaces single keys, sections being merged."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": local_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,  # the default is 1.0, not off
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": zero_stage},
        "zero_force_ds_cpu_optimizer": False,
    }
    for key, value in overrides.items():
        if key in _OWNED or (key == "zero_optimization" and "stage" in (value or {})):
            raise ConfigError(f"deepspeed.{key}: clipkit sets this; use {_OWNED.get(key, _STAGE)}")
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            config[key] = {**config[key], **value}
        else:
            config[key] = value
    return config


class DeepSpeedStrategy(Strategy):
    """The model inside a DeepSpeed engine.

    Args:
        model: On its device, fp32 (bf16 is autocast inside the model).
        optimizer: torch AdamW over the model's parameters.
        world: The ranks; the process group must be up.
        zero_stage: 0 to 3.
        local_batch: Samples of this rank per step; only DeepSpeed's own counters use it.
        clip_norm: Global gradient norm bound, None for none.
        overrides: The config's `deepspeed:` section.
    """

    def __init__(
        self,
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        world: World,
        *,
        zero_stage: int,
        local_batch: int = 1,
        clip_norm: float | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        deepspeed = import_deepspeed(world.device)
        self._zero = deepspeed.zero
        deepspeed.init_distributed(
            "nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
        )
        self.model, self.optimizer, self.world = model, optimizer, world
        self.stage, self.clip_norm = zero_stage, clip_norm
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._names = [name for name, _ in model.named_parameters()]
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=engine_config(local_batch, zero_stage, clip_norm, overrides or {}),
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigError(f"deepspeed.{place}: {first['msg']}") from None
        self._coalescing = contextlib.ExitStack()
        self._first = True

    def forward(self, batch: Batch, *, last: bool = False) -> Outputs:
        """See Strategy."""
        return self._engine(batch)

    def backward(self, surrogate: Tensor, *, last: bool) -> None:
        """See Strategy."""
        if self.stage == 2 and not (self._first and last):
            if self._first:
                self._coalescing.enter_context(self._engine.coalesce_grad_reduction())
            self._engine.backward(surrogate, scale_wrt_gas=False)
            if last:
                self._coalescing.close()
        else:
            self._engine.set_gradient_accumulation_boundary(last)
            self._engine.backward(surrogate, scale_wrt_gas=False)
        self._first = last
        if last:
            self._engine.set_gradient_accumulation_boundary(True)

    def step(self, lr: float) -> tuple[bool, float]:
        """See Strategy."""
        self._first = True
        self.set_lr(lr)
        if self.stage == 0:
            return self._step_unsharded()
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return bool(self._engine.was_step_applied()), math.nan if norm is None else float(norm)

    def _step_unsharded(self) -> tuple[bool, float]:
        """Stage 0 has no overflow guard of its own: look at the norm before the update."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return False, norm
        self._engine.step()
        return True, norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See Strategy."""
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in zip(self._names, self.model.parameters()):
            if parameter.requires_grad:
                grad = parameter.grad if self.stage == 0 else safe_get_full_grad(parameter)
                if grad is not None:
                    yield name, grad.detach().clone().view(self._shapes[name])

    def fragments(self, only: str | None = None) -> Iterator[Fragment]:
        """See Strategy."""
        if self.stage == 0:
            yield from replicated_fragments(self, only)
            return
        for name, parameter in zip(self._names, self.model.parameters()):
            if only not in (None, name):
                continue
            place = (
                self._place_zero3(parameter, name)
                if self.stage == 3
                else self._place_zero12(parameter)
            )
            if place is None:  # no element of it lies in this rank's partition
                continue
            flat, offset, start, length, replicated = place
            moments = self.init_moments(flat) if parameter.requires_grad else {}
            yield Fragment(
                name,
                self._shapes[name],
                start,
                flat.detach()[offset : offset + length],
                {k: v[offset : offset + length] for k, v in moments.items()},
                replicated,
            )

    def _place_zero12(self, parameter: Any) -> tuple[Tensor, int, int, int, bool] | None:
        """(flat master, offset in it, first element of the parameter, length, replicated)."""
        if not parameter.requires_grad:
            return parameter.detach().view(-1), 0, 0, parameter.numel(), True
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = self._engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        inside = mapping.lp_fragment_address
        return flat, mapping.hp_fragment_address.start, inside.start, inside.numel, False

    def _place_zero3(self, parameter: Any, name: str) -> tuple[Tensor, int, int, int, bool]:
        """As _place_zero12; partitions are equal and the last ones padded."""
        numel, per = math.prod(self._shapes[name]), parameter.ds_tensor.ds_numel
        start = min(self.world.rank * per, numel)
        length = min(per, numel - start)
        if not parameter.requires_grad:
            return parameter.ds_tensor.detach().view(-1), 0, start, length, False
        zero = self._engine.optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        return zero.fp32_partitioned_groups_flat[group], offset, start, length, False

    def refresh_weights(self, only: str | None = None) -> None:
        """See Strategy; the masters' owners hand their ranges to all, one parameter at a time."""
        if self.stage == 0:
            return
        for name, parameter in zip(self._names, self.model.parameters()):
            if not parameter.requires_grad or only not in (None, name):
                continue
            whole = torch.zeros(math.prod(self._shapes[name]), device=self.world.device)
            for f in self.fragments(only=name):
                whole[f.start : f.start + f.master.numel()] = f.master
            full = self.world.sum_(whole).view(self._shapes[name])
            if self.stage == 3:
                with self._zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(full)
            else:
                parameter.data.copy_(full)

    @contextlib.contextmanager
    def full_parameters(self) -> Iterator[None]:
        """See Strategy."""
        if self.stage < 3:
            yield
            return
        with self._zero.GatheredParameters(list(self.model.parameters())):
            yield
