"""Rows 11 and 13: other ranks or another strategy take over; shards do not come out even."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import metrics
from tests.engine.inprocess import fit_in_pool
from tests.faults.conftest import Reference
from tests.faults.harness import assert_exact_coverage, fit_with_fault, history, write_config
from tests.faults.lives import groups_after_loading


def assert_joins(run: Path, reference: Reference) -> None:
    """Losses within 1e-5 of the reference's in each step, and the same samples."""
    ours, theirs = history(run), history(reference.run)
    assert [x[2] for x in ours] == [x[2] for x in theirs]
    assert [x[1] for x in ours] == pytest.approx([x[1] for x in theirs], abs=1e-5)
    assert_exact_coverage(run)


@pytest.mark.slow
def test_two_ranks_one_two(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    overrides = [f"run.dir={tmp_path}", "data.workers=0", "run.resume=auto"]
    for count, fault in ((2, "term@1:13"), (1, "term@0:26"), (2, "")):
        ranks(count).run(fit_with_fault, str(reference.config), overrides, fault)
    assert_joins(tmp_path / "r", reference)


@pytest.mark.slow
def test_zero_one_zero_two_torch(tmp_path: Path, reference: Reference, ranks) -> None:  # type: ignore[no-untyped-def]
    lives = [
        ("term@1:13", ["engine.strategy=deepspeed", "engine.zero_stage=1"]),
        ("term@1:26", ["engine.strategy=deepspeed", "engine.zero_stage=2"]),
        ("", ["engine.strategy=torch"]),
    ]
    for fault, engine in lives:
        overrides = [f"run.dir={tmp_path}", "data.workers=0", "run.resume=auto", *engine]
        ranks(2).run(fit_with_fault, str(reference.config), overrides, fault)
    assert_joins(tmp_path / "r", reference)


@pytest.mark.parametrize(
    "kind", ["torch", *(pytest.param(s, marks=pytest.mark.slow) for s in "123")]
)
def test_every_group_has_the_config_s_hyper_parameters_after_a_load(
    kind: str, tmp_path: Path, ranks
) -> None:  # type: ignore[no-untyped-def]
    engine = {"strategy": "torch"}
    if kind != "torch":
        engine = {"strategy": "deepspeed", "zero_stage": int(kind)}  # type: ignore[dict-item]
    config = write_config(tmp_path, engine=engine, optim={"schedule": "constant"})
    saved = ["data.workers=0", "optim.warmup_steps=0", "optim.lr=3e-3", "optim.weight_decay=0.3"]
    ranks(2).run(fit_in_pool, str(config), [*saved, "train.total_steps=2"])
    own = ["optim.lr=2e-3", "optim.weight_decay=0.1", "optim.beta1=0.8", "optim.eps=1e-7"]
    overrides = [*saved, *own, "train.total_steps=3", "run.resume=auto"]
    for groups, steps in ranks(2).run(groups_after_loading, str(config), overrides):
        assert sorted(g["weight_decay"] for g in groups) == [0.0, 0.1]
        for group in groups:
            assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.98), 1e-7)
        assert steps == {3}, "updates that the moments have seen"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["indexed", "streaming"])
def test_three_uneven_shards_on_two_ranks_end_for_neither(mode: str, tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    data = {"mode": mode, "workers": 0, "shuffle_buffer": 10}
    config = write_config(tmp_path, data=data)
    assert ranks(2).run(fit_in_pool, str(config), ["train.total_steps=16"]) == ["done"] * 2
    lines = metrics(tmp_path / "runs" / "r")
    assert [m["train/samples_seen"] for m in lines] == [16 * step for step in range(1, 17)]
    assert all(m["train/skipped"] == m["train/bad_samples"] == 0 for m in lines)
    if mode == "indexed":  # an epoch is 6 batches of 16; 4 of the 100 samples wait for another
        assert_exact_coverage(tmp_path / "runs" / "r", 16)
