"""Every shipped config loads and builds; the model on the meta device, no data read."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from clipkit.addons.base import AddOn
from clipkit.config.load import load_config
from clipkit.config.schema import RunConfig
from clipkit.contracts import Tiling
from clipkit.dist.group import World
from clipkit.engine import build
from clipkit.engine.build import build_step
from clipkit.engine.guard import Guard
from clipkit.engine.run_folder import claim
from clipkit.engine.strategy_torch import TorchStrategy
from clipkit.errors import ConfigError
from clipkit.optim.adamw import build_adamw
from clipkit.optim.groups import build_groups
from clipkit.optim.schedules import Schedule
from clipkit.towers.build import Towers
from clipkit.towers.identity import weights_hash
from tests.e2e.runs import write_run
from tests.fixtures_checkpoint import write_run as write_checkpoint
from tests.tiny_model import tiny_model

ROOT = Path(__file__).parents[2] / "configs"
# what a study runs is named *_run.yaml; the studies themselves are no configs of a run
CONFIGS = sorted(
    p for p in ROOT.rglob("*.yaml") if p.parent.name != "studies" or p.stem.endswith("_run")
)


def test_all_configs_are_found() -> None:
    assert {"quickstart", "cifar_sample"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPKIT_DATA", str(tmp_path))
    (tmp_path / "demo.json").write_text('{"held_out": ["red triangle"]}')  # of clipkit-data demo
    config = load_config(path)
    with torch.device("meta"):
        addons = build.build_addons(config)
        model, _ = build.build_model(config, addons)
    build.check_batch_norm(model, config, world_size=1)
    groups = build_groups(model, config.optim.weight_decay)
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    assert build.build_losses(config)
    total = config.train.total_steps or 100
    schedule = Schedule(
        config.optim.schedule, config.optim.lr, 0.0, config.optim.warmup_steps, total
    )
    assert all(0 <= schedule(s) <= config.optim.lr for s in range(total))


def test_batch_norm_is_refused_or_frozen(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    (tmp_path / "model.json").write_text(
        '{"embed_dim": 16, "vision_cfg": {"timm_model_name": "test_byobnet", "image_size": 32},'
        ' "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2,'
        ' "layers": 1}}'
    )
    config = load_config(path)
    model, _ = build.build_model(config, [])
    with pytest.raises(ConfigError, match="batch statistics.*model.freeze_batch_norm=true"):
        build.check_batch_norm(model, config, world_size=1)
    whole = load_config(path, ["train.chunk_size=null"])
    assert build.check_batch_norm(model, whole, world_size=1) is None
    with pytest.raises(ConfigError):
        build.check_batch_norm(model, whole, world_size=2)
    allowed = load_config(path, ["train.batch_norm=chunk"])
    assert "not those of the global batch" in str(
        build.check_batch_norm(model, allowed, world_size=1)
    )
    frozen = load_config(path, ["model.freeze_batch_norm=true"])
    assert build.check_batch_norm(build.build_model(frozen, [])[0], frozen, world_size=2) is None


def test_locked_towers_and_precision(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    model, _ = build.build_model(
        load_config(path, ["model.lock=[image]", "model.patch_dropout=0.5"]), []
    )
    assert model.frozen_towers == {"image"}
    pure, _ = build.build_model(load_config(path, ["train.precision=pure_bf16"]), [])
    assert pure.towers.visual.conv1.weight.dtype == torch.bfloat16
    assert pure.towers.logit_scale.dtype == torch.float32
    mixed, _ = build.build_model(load_config(path, ["train.precision=bf16"]), [])
    assert (
        mixed.autocast == torch.bfloat16 and mixed.towers.visual.conv1.weight.dtype == torch.float32
    )


def test_weights_depend_on_the_seed_only(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    one, two, other = (
        build.build_model(load_config(path, [f"run.seed={s}"]), [])[0] for s in (1, 1, 2)
    )
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters())]
    assert all(same)
    assert not torch.equal(one.towers.visual.proj, other.towers.visual.proj)


def test_loss_settings_of_the_engine_reach_the_kernel() -> None:
    config = RunConfig.model_validate(
        {
            "train": {"total_steps": 1, "chunk_size": 4, "text_chunk_size": 8, "precision": "bf16"},
            "engine": {"tile_size": 77, "loss_plan": "lse", "gather_size": 5},
        }
    )
    model = tiny_model()
    optimizer = build_adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    strategy = TorchStrategy(model, optimizer, World(num_nodes=3), clip_norm=None)
    step = build_step(config, strategy, [], [], Guard())
    assert step.tiling == Tiling(77, "lse", 5, torch.bfloat16, num_nodes=3)
    assert (step.chunk_size, step.text_chunk_size) == (4, 8)


class _Heads(AddOn):
    """Trains one head over towers that it wants frozen."""

    freeze_towers = True

    def __init__(self) -> None:
        self.seen: list[str] = []

    def prepare(self, towers: Towers) -> None:
        self.seen.append(weights_hash(towers))

    def heads(self) -> dict[str, torch.nn.Module]:
        self.seen.append("heads")
        return {"head": torch.nn.Linear(2, 2)}


def test_an_add_on_sees_the_towers_and_may_freeze_them(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    config = load_config(path, ["model.init_logit_bias=-10", "model.patch_dropout=0.5"])
    addon = _Heads()
    model, towers = build.build_model(config, [addon])
    assert addon.seen == [weights_hash(towers), "heads"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"heads.head.weight", "heads.head.bias"}  # temperature and bias are not
    assert {"towers.logit_scale", "towers.logit_bias"} <= {n for n, _ in model.named_parameters()}
    assert model.frozen_towers == {"image", "text"} and not model.towers.visual.training
    assert not build.build_model(config, [AddOn()])[0].frozen_towers


def test_an_add_on_comes_once(tmp_path: Path) -> None:
    for kind in ("gap", "hard_negatives", "ema"):
        addons = [{"kind": kind}, {"kind": "gap" if kind == "ema" else "ema"}, {"kind": kind}]
        config = load_config(write_run(tmp_path, addons=addons))
        with pytest.raises(ConfigError, match=f"addons.2: a second '{kind}'; .*once"):
            build.build_addons(config)


def build_beside_another(world: World, config: str, folder: str) -> str:
    """What a run is told that starts while another one trains in its folder."""
    lock = claim(Path(folder))
    try:
        with mock.patch("clipkit.engine.run_folder._PATIENCE_S", 0.1):
            build.build_run(load_config(config, ["run.resume=auto", "data.workers=0"]), world)
    except ConfigError as error:
        return str(error)
    finally:
        lock.close()
    return "built"


def test_nothing_is_looked_for_or_fetched_beside_a_run_that_goes_on(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "runs" / "r"
    copies = write_checkpoint(tmp_path / "copied", 3).parent
    copies.rename(tmp_path / "r")
    config = write_run(tmp_path, checkpoint={"remote": str(tmp_path)})
    (told,) = ranks(1).run(build_beside_another, str(config), str(folder))
    assert "another process is training there" in told
    assert not (folder / "checkpoints").exists()


def test_a_build_that_failed_leaves_the_folder_to_others(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path, addons=[{"kind": "ema"}, {"kind": "ema"}]))
    with pytest.raises(ConfigError, match="a second 'ema'") as told:
        build.build_run(config, World())
    with mock.patch("clipkit.engine.run_folder._PATIENCE_S", 0.0):
        claim(tmp_path / "runs" / "r").close()
    assert told.tb is not None  # the frames of the failed build are still held
