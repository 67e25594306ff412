"""Config -> Run. The only reader of RunConfig; every part receives plain keyword arguments."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from clipkit.addons.base import AddOn
from clipkit.checkpoint.read import CheckpointReader
from clipkit.checkpoint.remote import refuse_copies
from clipkit.checkpoint.verify import find_checkpoint
from clipkit.config.parts import build_part
from clipkit.config.schema import RunConfig
from clipkit.contracts import Tiling
from clipkit.data.loader import IndexedLoader
from clipkit.dist.env import RankEnv
from clipkit.dist.group import World
from clipkit.engine.bad_sample_report import forget_after
from clipkit.engine.build_data import Loader, build_loader
from clipkit.engine.build_records import build_log, build_saver, build_watchdog
from clipkit.engine.cautions import (
    bias_note,
    check_auto_chunk,
    check_batch_norm,
    check_compiler,
    zero3_note,
)
from clipkit.engine.compile_lock import avoid_dead_locks
from clipkit.engine.guard import Guard
from clipkit.engine.log import RunLog
from clipkit.engine.preflight import run_folder
from clipkit.engine.run import Run
from clipkit.engine.run_folder import changed_settings, claim, write_config
from clipkit.engine.saving import pick_checkpoint, resume
from clipkit.engine.status import StatusFile
from clipkit.engine.step import TrainStep
from clipkit.engine.strategy import Strategy
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.errors import ConfigError
from clipkit.eval.tasks import Evaluator
from clipkit.optim.adamw import build_adamw
from clipkit.optim.schedules import Schedule
from clipkit.towers.arch import read_arch
from clipkit.towers.build import (
    WEIGHTS_NAME,
    Towers,
    build_towers,
    download_tag,
    load_open_clip_state,
    load_pretrained,
    lock_towers,
)
from clipkit.towers.dual import DualEncoder, FeatureEncoder


def model_cfg_of(config: RunConfig) -> dict[str, Any]:
    """The open_clip model_cfg with the run's own initial temperature and bias."""
    model_cfg = copy.deepcopy(read_arch(config.model.arch))
    given = config.model.model_fields_set
    if "init_logit_scale" in given or "init_logit_scale" not in model_cfg:
        model_cfg["init_logit_scale"] = config.model.init_logit_scale
    if "init_logit_bias" in given:
        model_cfg["init_logit_bias"] = config.model.init_logit_bias
    return model_cfg


def build_model(config: RunConfig, addons: list[AddOn]) -> tuple[DualEncoder, Towers]:
    """Towers with weights, locked as asked, and the add-ons' heads; on the CPU (or meta device)."""
    m = config.model
    torch.manual_seed(config.run.seed)
    towers = build_towers(
        model_cfg_of(config), image_size=m.image_size, patch_dropout=m.patch_dropout
    )
    if m.pretrained:
        load_weights(towers, m.arch, m.pretrained)
    try:
        lock_towers(towers.clip, m.lock, m.unlocked_groups)
    except (AssertionError, RuntimeError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"model.lock: open_clip cannot lock {list(m.lock)} of {m.arch} with "
            f"model.unlocked_groups={m.unlocked_groups}: {error or 'not supported there'}"
        ) from None
    if any(addon.freeze_towers for addon in addons):
        towers.clip.requires_grad_(False)
    if m.gradient_checkpointing:
        towers.clip.set_grad_checkpointing(True)
    heads: dict[str, nn.Module] = {}
    for addon in addons:
        addon.prepare(towers)
        heads.update(addon.heads())
    precision = config.train.precision
    model = DualEncoder(
        towers.clip,
        mean=towers.mean,
        std=towers.std,
        heads=heads,
        autocast=torch.bfloat16 if precision == "bf16" else None,
    )
    if m.freeze_batch_norm:
        from open_clip.utils import freeze_batch_norm_2d

        model.towers = freeze_batch_norm_2d(model.towers)
    if precision == "pure_bf16":
        for name, parameter in model.named_parameters():
            if not name.endswith(("logit_scale", "logit_bias")):
                parameter.data = parameter.data.bfloat16()
    if config.train.compile:
        model.towers.compile()
    return model.train(), towers


def load_weights(towers: Towers, arch: str, source: str) -> None:
    """Start from a weights file, a run, checkpoint or exported folder, or an open_clip tag.

    Raises:
        ClipkitError: Nothing there, damaged, or of another architecture.
    """
    path = Path(source)
    if (path / WEIGHTS_NAME).is_file():
        load_pretrained(towers.clip, str(path / WEIGHTS_NAME))
    elif path.is_dir():
        reader = CheckpointReader(find_checkpoint(path))
        load_open_clip_state(towers.clip, reader.towers_state(), str(reader.folder))
    elif path.is_file():
        load_pretrained(towers.clip, source)
    else:
        load_pretrained(towers.clip, download_tag(arch, source))


def build_strategy(config: RunConfig, model: DualEncoder, world: World) -> Strategy:
    """The optimizer, and the strategy that owns it."""
    o = config.optim
    optimizer = build_adamw(
        model, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay
    )
    if config.engine.strategy == "torch":
        return TorchStrategy(model, optimizer, world, clip_norm=o.gradient_clip_norm)
    from clipkit.engine.strategy_deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(
        model,
        optimizer,
        world,
        zero_stage=config.engine.zero_stage,
        clip_norm=o.gradient_clip_norm,
        local_batch=config.train.global_batch_size // world.world_size,
        overrides=config.deepspeed,
    )


def build_losses(config: RunConfig) -> list[tuple[nn.Module, float]]:
    """(loss, weight) in order."""
    return [
        (
            build_part(
                "losses", spec, base=nn.Module, extensions=config.extensions, drop=("weight",)
            ),
            float(spec["weight"]),
        )
        for spec in config.loss
    ]


def build_addons(config: RunConfig) -> list[AddOn]:
    """Add-ons in order.

    Raises:
        ConfigError: Two of a kind: what they bring (heads, texts, loss terms) has fixed names.
    """
    kinds = [spec["kind"] for spec in config.addons]
    for number, kind in enumerate(kinds):
        if kind in kinds[:number]:
            raise ConfigError(f"addons.{number}: a second '{kind}'; give each kind once")
    return [
        build_part("addons", spec, base=AddOn, extensions=config.extensions)
        for spec in config.addons
    ]


def build_evaluators(config: RunConfig) -> list[Evaluator]:
    """Evaluation tasks in order, their data sets opened once: a mistake there costs no training.

    Raises:
        DataError: A data set is missing, damaged or of another kind than its task.
    """
    evaluators = [
        build_part(
            "eval",
            spec,
            config.data.eval[spec["data"]],
            spec["name"],
            extensions=config.extensions,
            drop=("data", "name"),
        )
        for spec in config.eval.tasks
    ]
    for evaluator in evaluators:
        evaluator.check()
    return evaluators


def build_step(
    config: RunConfig,
    strategy: Strategy,
    losses: list[tuple[nn.Module, float]],
    addons: list[AddOn],
    guard: Guard,
) -> TrainStep:
    """The step; with train.chunk_size=auto its chunk is measured on the first batch."""
    t, e = config.train, config.engine
    half = torch.bfloat16 if t.precision in ("bf16", "pure_bf16") else None
    return TrainStep(
        strategy,
        losses,
        addons,
        chunk_size=t.chunk_size,
        text_chunk_size=t.text_chunk_size,
        seed=config.run.seed,
        max_log_logit_scale=math.log(config.optim.max_logit_scale),
        tiling=Tiling(e.tile_size, e.loss_plan, e.gather_size, half),
        judge=guard.judge,
    )


def set_threads(config: RunConfig, env: RankEnv) -> None:
    """CPU threads of this rank: its share of the node's cores, unless set."""
    share = max(1, len(os.sched_getaffinity(0)) // env.local_world_size)
    torch.set_num_threads(config.train.threads or share)


def total_steps_of(config: RunConfig, loader: Loader) -> int:
    """train.total_steps, or train.epochs in steps."""
    if config.train.total_steps is not None:
        return config.train.total_steps
    assert config.train.epochs is not None and loader.batches_per_epoch is not None
    return max(1, math.ceil(config.train.epochs * loader.batches_per_epoch))


def build_run(config: RunConfig, world: World) -> Run:
    """Build every part and, with run.resume=auto, continue from the newest valid checkpoint.

    Raises:
        ClipkitError: The config does not fit the model, the data or the checkpoint.
    """
    folder = run_folder(config)  # claimed first: mistakes are told in it, and by nobody else
    lock = claim(folder) if world.is_main else None
    try:
        return _build(config, world, folder, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def _build(config: RunConfig, world: World, folder: Path, lock: TextIO | None) -> Run:
    """`build_run` in a folder that is claimed by `lock`, on rank 0."""
    check_compiler(config, world)
    check_auto_chunk(config, world)
    addons, losses = build_addons(config), build_losses(config)
    model, towers = build_model(config, addons)
    warning = check_batch_norm(model, config, world.world_size)
    model.to(world.device)
    evaluators = build_evaluators(config)
    world.barrier()
    newest, notes = _pick(config, folder, world)  # claimed: no other run removes what is found
    log = build_log(config, folder, world)
    status = StatusFile(folder, main=world.is_main, log=log)
    if config.engine.strategy == "deepspeed":
        _avoid_dead_locks(folder, world, log)
    loader = build_loader(config, towers, addons, world)
    for addon in addons:
        addon.check_data(loader.sources if isinstance(loader, IndexedLoader) else [])
    log.total_steps = total = total_steps_of(config, loader)
    strategy = build_strategy(config, model, world)
    o, t = config.optim, config.train
    guard = Guard(**config.guard.model_dump())
    step = build_step(config, strategy, losses, addons, guard)
    for addon in addons:
        addon.start(strategy)
    run = Run(
        folder=folder,
        world=world,
        strategy=strategy,
        train_step=step,
        loader=loader,
        addons=addons,
        schedule=Schedule(o.schedule, o.lr, o.min_lr, o.warmup_steps, total, o.decay_steps),
        evaluators=evaluators,
        model_config=towers.config,
        log=log,
        guard=guard,
        total_steps=total,
        encoder=FeatureEncoder(strategy.forward, towers.preprocess, towers.tokenizer, world.device),
        global_batch_size=t.global_batch_size,
        log_every=config.log.every,
        eval_every=config.eval.every,
        eval_batch_size=config.eval.batch_size,
        save_every=config.checkpoint.every,
        save_minutes=config.checkpoint.every_minutes,
        saver=build_saver(config, folder, world, log),
        status=status,
        watchdog=build_watchdog(config, folder, world, log, status),
        lock=lock,
    )
    for text in [*([warning] if warning else []), *_notes(config, run, model, losses)]:
        log.warn(text)
    _begin(run, config, newest, notes)
    return run


def _avoid_dead_locks(folder: Path, world: World, log: RunLog) -> None:
    """What DeepSpeed compiles may be locked by a process that is no more."""
    if text := avoid_dead_locks(folder, main=world.is_main):
        log.event("compile_lock", 0, text, alarm=True)


def _pick(config: RunConfig, folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """Where to go on from, with run.resume=auto, and what to say about it."""
    remote = config.checkpoint.remote
    if config.run.resume == "auto":
        return pick_checkpoint(folder, world, remote)
    if remote is not None and world.is_main:
        refuse_copies(remote, folder)
    return None, []


def _notes(
    config: RunConfig, run: Run, model: DualEncoder, losses: list[tuple[nn.Module, float]]
) -> list[str]:
    """What is allowed but probably not meant."""
    t, notes = config.train, bias_note(model, losses)
    if t.chunk_size != "auto":
        rows = t.global_batch_size // run.world.world_size
        notes += zero3_note(run.strategy.stage, rows, t.chunk_size, t.text_chunk_size)
    return notes


def _begin(run: Run, config: RunConfig, newest: Path | None, notes: list[str]) -> None:
    """Restore, and only when nothing speaks against the resume, write in the run folder."""
    if newest is not None:
        resume(run, newest)
        run.status.update(step=run.step, last_checkpoint=newest.name)
        run.log.event("resumed", run.step, f"resumed from {newest}")
        for text in changed_settings(run.folder, config):
            run.log.warn(text)
    for text in run.loader.notes:  # a resumed one may have more to say
        run.log.warn(text)
    run.log.begin(run.step)
    if run.world.is_main:
        forget_after(run.folder, run.step)
        write_config(run.folder, config, run.step)
    run.world.barrier()
    for text in notes:
        run.log.event("passed_over", run.step, text, alarm=True)
