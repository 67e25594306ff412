"""Every setting of a run, with its default.

pydantic checks types and ranges; unknown keys are errors.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from clipkit.config.data_section import DataSection
from clipkit.config.section import Section

PartSpec = dict[str, Any]
_Switch = BeforeValidator(lambda value: "off" if value is False else value)  # YAML's reading of off


class RunSection(Section):
    """Where the run lives and how it starts."""

    dir: str = Field(
        "runs", description="Folder that holds run folders; ${VARIABLES} are expanded."
    )
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Run folder below `dir`."
    )
    seed: int = Field(0, ge=0, description="Seeds weights, order, augmentation and dropout.")
    resume: Literal["none", "auto"] = Field(
        "none", description="auto: go on from the newest valid checkpoint."
    )


class ModelSection(Section):
    """The dual encoder."""

    arch: str = Field(
        "ViT-B-32", description="open_clip architecture, or path of a model config json."
    )
    pretrained: str | None = Field(
        None, description="Weights file, run or exported folder, open_clip tag."
    )
    lock: tuple[Literal["image", "text"], ...] = Field(
        (), description="Towers that stay frozen (LiT)."
    )
    unlocked_groups: int = Field(
        0, ge=0, description="Last groups of a locked tower that still train."
    )
    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="Share of image patches dropped in training."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations inside the towers."
    )
    freeze_batch_norm: bool = Field(
        False, description="Replace batch norm by its fixed statistics."
    )
    image_size: int | None = Field(
        None, gt=0, description="Overrides the architecture's image size."
    )
    init_logit_scale: float = Field(
        math.log(1 / 0.07), description="Log of the first temperature's inverse."
    )
    init_logit_bias: float | None = Field(
        None, description="Set (-10) for sigmoid losses; null: no bias."
    )


class OptimSection(Section):
    """AdamW and its schedule; norms, biases and logit_scale are never decayed."""

    lr: float = Field(5e-4, gt=0)
    min_lr: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine", description="wsd: warmup, stable, decay."
    )
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="wsd: length of the final linear decay.")
    gradient_clip_norm: float | None = Field(
        1.0, gt=0, description="Global norm; null: no clipping."
    )
    max_logit_scale: float = Field(
        100.0, gt=0, description="logit_scale is clamped to this after each step."
    )


class TrainSection(Section):
    """How long and how large."""

    total_steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    global_batch_size: int = Field(256, gt=0, description="Samples per step over all ranks.")
    chunk_size: int | Literal["auto"] | None = Field(
        None, description="Samples encoded at once per rank; null: all; auto: as many as fit (GPU)."
    )
    text_chunk_size: int | None = Field(
        None, gt=0, description="Samples whose texts are encoded at once; null: as chunk_size."
    )
    compile: bool = Field(False, description="torch.compile the towers, in both passes.")
    precision: Literal["fp32", "bf16", "pure_bf16"] = "fp32"
    batch_norm: Literal["refuse", "chunk"] = Field(
        "refuse", description="chunk: inexact statistics per chunk."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(
        None, gt=0, description="CPU threads per rank; null: cores / ranks of the node."
    )

    @field_validator("chunk_size", mode="before")
    @classmethod
    def _a_count_or_auto(cls, value: Any) -> Any:
        counts = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is None or value == "auto" or counts:
            return value
        raise ValueError(f"{value!r} is no chunk size; give a whole number, auto, or null for all")


class EngineSection(Section):
    """Who owns parameters and gradients."""

    strategy: Literal["deepspeed", "torch"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    timeout_s: float = Field(
        600.0, gt=0, description="A collective that takes longer ends the run."
    )
    tile_size: int | None = Field(
        None, gt=0, description="Rows and columns of a tile of logits; null: from cache or memory."
    )
    loss_plan: Literal["auto", "rs", "lse"] = Field(
        "auto", description="Exchange of features: rs inside a node, lse across nodes."
    )
    gather_size: int | None = Field(
        None, gt=0, description="Rows per rank gathered at once for the loss; null: up to 1 GiB."
    )


class EvalSection(Section):
    """Evaluation inside training."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: only at the end.")
    batch_size: int = Field(64, gt=0, description="Images encoded at once per rank; texts: 4 x.")
    tasks: tuple[PartSpec, ...] = Field((), description="Evaluators: {kind, name, ...}.")


class CheckpointSection(Section):
    """When to save and how many to keep."""

    every: int = Field(0, ge=0, description="Steps between checkpoints; 0: only at the end.")
    every_minutes: float = Field(0.0, ge=0, description="Minutes between checkpoints; 0: off.")
    keep: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    keep_every: int = Field(
        0, ge=0, description="Checkpoints at multiples of this step stay for good; 0: none."
    )
    best: str | None = Field(
        None, description="Metric whose best checkpoint is kept too: <evaluation>/<metric>."
    )
    best_mode: Literal["max", "min"] = "max"
    background: bool = Field(
        True, description="The step waits for the copy only; a thread writes it to disk."
    )
    remote: str | None = Field(
        None, description="Folder (fsspec URL) that finished checkpoints are copied to."
    )


class GuardSection(Section):
    """What happens when numbers go wrong."""

    nonfinite: int = Field(
        3, ge=1, description="Skipped (not finite) batches in a row after which the run rolls back."
    )
    rollbacks: int = Field(3, ge=0, description="Roll-backs after which the run fails.")
    spike: Annotated[Literal["off", "warn", "skip", "rollback"], _Switch] = Field(
        "warn", description="What to do with a batch whose loss jumps."
    )
    spike_factor: float = Field(
        10.0, gt=1, description="Robust standard deviations above the median that make a jump."
    )
    spike_window: int = Field(100, ge=10, description="Applied steps the median is of.")


class LogSection(Section):
    """Progress, metrics.jsonl, wandb."""

    every: int = Field(1, gt=0, description="Steps between lines of metrics.jsonl.")
    progress: bool = True
    wandb: Annotated[Literal["off", "offline", "online"], _Switch] = "off"
    wandb_project: str = "clipkit"


class RunConfig(Section):
    """A complete run."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    loss: tuple[PartSpec, ...] = ({"kind": "infonce", "weight": 1.0},)
    addons: tuple[PartSpec, ...] = ()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    engine: EngineSection = EngineSection()
    deepspeed: dict[str, Any] = Field(
        {}, description="Overrides single keys of the generated DeepSpeed config."
    )
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guard: GuardSection = GuardSection()
    log: LogSection = LogSection()
    extensions: tuple[str, ...] = Field(
        (), description="Packages whose modules may be named as a kind."
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _one_loss_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"write loss.kind={value}, or loss: {{kind: {value}}} in the file")
        return (value,) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        train, engine = self.train, self.engine
        if (train.total_steps is None) == (train.epochs is None):
            raise ValueError("train: set exactly one of total_steps and epochs")
        if (
            train.epochs is not None
            and self.data.mode == "streaming"
            and self.data.virtual_epoch is None
        ):
            raise ValueError(
                "train.epochs: streaming mode has no known length; "
                "set train.total_steps or data.virtual_epoch"
            )
        if train.epochs is not None and len(self.data.sources) > 1:
            raise ValueError(
                "train.epochs: each of several data.sources has epochs of its own; "
                "set train.total_steps"
            )
        if train.precision == "pure_bf16" and engine.strategy == "deepspeed":
            raise ValueError(
                "train.precision: pure_bf16 needs engine.strategy=torch; use bf16 under deepspeed"
            )
        if (
            engine.strategy == "torch"
            and "zero_stage" in engine.model_fields_set
            and engine.zero_stage
        ):
            raise ValueError(
                "engine.zero_stage: the torch strategy does not shard; "
                "set engine.strategy=deepspeed"
            )
        if train.compile and engine.strategy == "deepspeed" and engine.zero_stage == 3:
            raise ValueError(
                "train.compile: a compiled tower does not see ZeRO-3's gathered parameters; "
                "set engine.zero_stage=2 or train.compile=false"
            )
        if train.chunk_size == "auto" and train.device == "cpu":
            raise ValueError("train.chunk_size: auto measures GPU memory; on the CPU give a number")
        if train.text_chunk_size is not None and train.chunk_size is None:
            raise ValueError("train.text_chunk_size: set train.chunk_size too")
        if engine.strategy == "torch" and self.deepspeed:
            raise ValueError(
                "deepspeed: has no effect with engine.strategy=torch; remove the section"
            )
        if not self.loss:
            raise ValueError("loss: at least one loss is needed, e.g. loss: {kind: infonce}")
        return self
