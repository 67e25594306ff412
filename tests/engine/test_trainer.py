"""The loop in one process: what it leaves, results, bad samples in the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import clipkit
from clipkit.dist.group import World
from clipkit.engine import trainer
from clipkit.engine.preemption import StopSignal
from clipkit.eval.results import read_results
from tests.e2e.runs import curve, metrics, write_run
from tests.engine.inprocess import fit_in_pool
from tests.faults.harness import fit_with_fault
from tests.fixtures_shards import write_shards


def test_a_run_leaves_what_it_should(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, checkpoint={"every": 2, "keep": 2}, data={"workers": 0})
    overrides = ["train.total_steps=6", "eval.every=3", "log.every=2"]
    assert ranks(1).run(fit_in_pool, str(config), overrides) == ["done"]
    folder = tmp_path / "runs" / "r"
    assert {p.name for p in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "eval",
        "events.jsonl",
        "metrics.jsonl",
        "results.json",
        "status.json",
    }
    stored = read_results(folder / "eval")
    assert [(r.data["step"], r.kind, len(r.records())) for r in stored] == [
        (3, "zero_shot", 12),
        (6, "zero_shot", 12),
    ]
    assert sorted(p.name for p in (folder / "checkpoints").glob("step_*")) == [
        "step_00000004",
        "step_00000006",
    ]
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000006\n"
    assert [m["step"] for m in metrics(folder)] == [2, 4, 6]
    evaluations = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines() if "eval/" in x
    ]
    assert [e["step"] for e in evaluations] == [3, 6]
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"]["n"] == 12 and 0 <= results["classes"]["acc1"] <= 1


def test_an_evaluation_that_fails_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    run = SimpleNamespace(
        step=4, folder=tmp_path, world=World(),
        watchdog=SimpleNamespace(at=lambda phase, step: None),
        saver=SimpleNamespace(wait=lambda: done.append("on disk")),
    )  # fmt: skip
    monkeypatch.setattr(trainer, "evaluate", lambda run, stop: not done.append("evaluated"))
    monkeypatch.setattr(trainer, "report_bad_samples", lambda run: None)
    trainer.finish(run, StopSignal(), trained=True)  # type: ignore[arg-type]
    assert done == ["on disk", "evaluated"]


def test_the_loss_falls(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0})
    ranks(1).run(fit_in_pool, str(config), ["optim.lr=3e-3", "data.crop_scale=[1.0,1.0]"])
    lines = metrics(tmp_path / "runs" / "r")
    assert sum(m["train/loss"] for m in lines[-3:]) < sum(m["train/loss"] for m in lines[:3])
    assert lines[-1]["train/bad_samples"] == 0


def test_bad_samples_of_all_ranks_are_counted_and_listed_over_restarts(
    tmp_path: Path, ranks
) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0, "max_bad_fraction": 0.5})
    write_shards(tmp_path / "data" / "train", [40, 24, 36], bad=(3, 50, 51, 77))
    options = ["optim.schedule=constant", "run.resume=auto", "train.total_steps=8"]
    ranks(1).run(fit_in_pool, str(config), [*options, "run.name=one"])
    ranks(2).run(fit_in_pool, str(config), [*options, "run.name=two", "train.total_steps=5"])
    ranks(1).run(fit_in_pool, str(config), [*options, "run.name=two"])
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    counts = [m["train/bad_samples"] for m in metrics(one)]
    assert counts == [m["train/bad_samples"] for m in metrics(two)] and counts[-1] >= 4
    for folder in (one, two):
        for line in metrics(folder):  # by cause in each step, once one was met
            by_cause = {k: v for k, v in line.items() if k.startswith("train/bad_samples/")}
            total = line["train/bad_samples"]
            assert by_cause == ({"train/bad_samples/unreadable_image": total} if total else {})
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["train/bad_samples/unreadable_image"] == counts[-1]
        worst = {Path(x["shard"]).name: x["bad_samples"] for x in last["train/bad_shards"]}
        assert set(worst) == {"000.tar", "001.tar", "002.tar"}
        assert sum(worst.values()) == counts[-1] and worst["001.tar"] == max(worst.values())
    listed = {folder: sorted(map(tuple, _listed(folder))) for folder in (one, two)}
    assert listed[one] == listed[two] and len(listed[one]) == counts[-1]
    assert {key for *_, key in listed[one]} == {"000003", "000050", "000051", "000077"}


def _listed(folder: Path) -> list[tuple[int, int, str]]:
    """(step, row of the batch, key) of every bad sample, from the files of all ranks."""
    texts = [path.read_text() for path in folder.glob("bad_samples.rank*.jsonl")]
    lines = [json.loads(line) for line in "".join(texts).splitlines()]
    return [(line["step"], line["batch_row"], line["key"]) for line in lines]


def test_streaming_mode_trains_and_resumes(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0, "mode": "streaming", "shuffle_buffer": 10})
    for name, steps in (("straight", [8]), ("resumed", [5, 8])):
        for total in steps:
            overrides = [f"run.name={name}", f"train.total_steps={total}", "run.resume=auto"]
            overrides += ["optim.schedule=constant"]
            assert ranks(1).run(fit_in_pool, str(config), overrides) == ["done"]
    straight, resumed = (curve(tmp_path / "runs" / n) for n in ("straight", "resumed"))
    assert straight == resumed


def test_a_list_of_losses_is_summed_by_weight(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    losses = [{"kind": "infonce", "weight": 0.5}, {"kind": "siglip", "weight": 0.25}]
    config = write_run(tmp_path, loss=losses, model={"init_logit_bias": -2.0}, data={"workers": 0})
    ranks(1).run(fit_in_pool, str(config), ["train.total_steps=2"])
    for line in metrics(tmp_path / "runs" / "r"):
        terms = [line["train/InfoNCELoss/contrastive"], line["train/SigLIPLoss/contrastive"]]
        assert abs(sum(terms) - line["train/loss"]) < 1e-5


def test_a_run_starts_from_another_runs_weights(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0})
    ranks(1).run(fit_in_pool, str(config), ["run.name=a", "optim.lr=3e-3"])
    source = tmp_path / "runs" / "a"
    exported = clipkit.export(source, tmp_path / "out")
    results = json.loads((source / "results.json").read_text())
    for start in (source, exported, exported / "open_clip_model.safetensors"):
        name = f"run.name=from-{start.name}"
        overrides = [name, f"model.pretrained={start}", "train.total_steps=1", "optim.lr=1e-9"]
        ranks(1).run(fit_in_pool, str(config), overrides)
        again = json.loads((tmp_path / "runs" / f"from-{start.name}" / "results.json").read_text())
        assert again["classes"]["acc1"] == results["classes"]["acc1"]


def test_pure_bf16_trains_and_evaluates(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0})
    overrides = ["train.precision=pure_bf16", "train.total_steps=3", "optim.lr=1e-3"]
    assert ranks(1).run(fit_in_pool, str(config), overrides) == ["done"]
    assert all(m["train/skipped"] == 0 for m in metrics(tmp_path / "runs" / "r"))
    assert (tmp_path / "runs" / "r" / "results.json").exists()


def test_a_wrong_evaluation_set_is_found_before_training(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0})
    (tmp_path / "data" / "classes" / "classnames.txt").write_bytes(b"\xe9\n")
    with pytest.raises(AssertionError, match="classnames.txt cannot be read as UTF-8"):
        ranks(1).run(fit_in_pool, str(config), ["train.total_steps=1"])
    (tmp_path / "data" / "classes" / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(AssertionError, match="is of type retrieval"):
        ranks(1).run(fit_in_pool, str(config), ["train.total_steps=1"])
    assert not (tmp_path / "runs" / "r" / "metrics.jsonl").exists()


def test_a_run_that_ended_before_its_evaluation_is_judged_on_resume(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, data={"workers": 0})
    ranks(1).run(fit_in_pool, str(config), ["train.total_steps=2"])
    results = tmp_path / "runs" / "r" / "results.json"
    before = results.read_text()
    results.unlink()
    ranks(1).run(fit_in_pool, str(config), ["train.total_steps=2", "run.resume=auto"])
    assert results.read_text() == before


def test_an_evaluation_due_where_a_run_was_stopped_is_made_up_for(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = str(write_run(tmp_path, data={"workers": 0}))
    brief = ["train.total_steps=6", "eval.every=3", "run.resume=auto"]
    assert ranks(1).run(fit_with_fault, config, brief, "term@0:2") == ["preempted"]
    path = tmp_path / "runs" / "r" / "metrics.jsonl"
    assert "eval/" not in path.read_text(), "the time to save is short"
    assert ranks(1).run(fit_in_pool, config, brief) == ["done"]
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    assert [x["step"] for x in lines if any(k.startswith("eval/") for k in x)] == [3, 6]
    assert [x["step"] for x in lines if "train/loss" in x] == [1, 2, 3, 4, 5, 6]
