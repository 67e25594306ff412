"""A checkpoint of any strategy, stage and world size is read by any other, moments included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipkit.addons.base import AddOn
from clipkit.addons.ema import ExponentialMovingAverage
from clipkit.addons.gap import GapClosing
from clipkit.dist.group import World
from clipkit.engine.snapshot import addon_scalars, restore, slices
from clipkit.errors import CheckpointError
from tests.engine import strategy_cells as cells
from tests.fixtures_checkpoint import write_checkpoint
from tests.tiny_model import tiny_model

KINDS = ["torch", 0, 1, 2, 3]
CROSSINGS = [
    ("torch", 2, 1, 1),
    (3, 2, 1, 2),
    *(
        pytest.param(*crossing, marks=pytest.mark.slow)
        for crossing in [
            (0, 2, 3, 2),
            (1, 2, 2, 1),
            (2, 1, 3, 2),
            (3, 2, "torch", 1),
            (1, 1, 0, 2),
        ]
    ),
]


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_slices_equal_what_deepspeed_assembles(kind: int, ranks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = ranks(2).run(cells.train_and_save, kind, str(tmp_path), 2, 0)[0]["deepspeed"]
    saved = cells.read_all(str(tmp_path))
    assert saved.keys() == found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(kind, ranks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    straight = ranks(2).run(cells.train_and_save, kind, str(tmp_path), 2, 2)
    resumed = ranks(2).run(cells.load_and_train, kind, str(tmp_path), 2, 2)
    for a, b in zip(straight, resumed):
        assert a["losses"] == b["losses"]
        assert all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])
        assert b["decay"] == {"decay": 0.1, "no_decay": 0.0}


@pytest.mark.parametrize(("kind", "world", "to_kind", "to_world"), CROSSINGS)
def test_world_size_stage_and_strategy_may_change(
    kind, world, to_kind, to_world, ranks, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    straight = ranks(world).run(cells.train_and_save, kind, str(tmp_path), 2, 2)[0]
    resumed = ranks(to_world).run(cells.load_and_train, to_kind, str(tmp_path), 2, 2)[0]
    assert resumed["losses"] == pytest.approx(straight["losses"], rel=1e-5)
    for name, weight in straight["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_ranks_write_every_element_once(ranks, tmp_path) -> None:  # type: ignore[no-untyped-def]
    ranks(2).run(cells.train_and_save, 2, str(tmp_path), 1, 0)
    reader = cells.CheckpointReader(cells.find_checkpoint(str(tmp_path)))
    for entry in reader.index.values():
        ends = [0]
        for piece in entry["slices"]:
            assert piece["start"] == ends[-1]
            ends.append(piece["stop"])
        assert ends[-1] == torch.Size(entry["shape"]).numel()
    assert {p["file"] for e in reader.index.values() for p in e["slices"]} == {
        "rank_00000.safetensors",
        "rank_00001.safetensors",
    }


def test_other_add_ons_are_refused_by_name(tmp_path: Path) -> None:
    strategy = cells.build_strategy(tiny_model(), World(), "torch")

    def saved(step: int, addons: list[AddOn], kinds: bool = True) -> Path:
        scalars = addon_scalars(addons) if kinds else [addon.state_dict() for addon in addons]
        state = {"step": step, "optimizer_steps": 0, "addons": scalars}
        own = slices(strategy, addons)
        return write_checkpoint(
            tmp_path, step, slices=own, state=state, model_config={}, world=World(), keep=9
        )

    gap, ema = GapClosing(), ExponentialMovingAverage()
    ema.start(strategy)
    restore(saved(1, [gap, ema]), strategy, [gap, ema])
    restore(saved(2, [gap, ema], kinds=False), strategy, [gap, ema])
    for wrong, named in (([ema, gap], "ema, gap"), ([gap], "gap"), ([], "none")):
        with pytest.raises(CheckpointError, match=f"add-ons .gap, ema., .* has .{named}.;"):
            restore(saved(1, [gap, ema]), strategy, list(wrong))
    with pytest.raises(CheckpointError, match=r"add-ons .\?, \?., this run has .gap.;"):
        restore(saved(2, [gap, ema], kinds=False), strategy, [gap])
