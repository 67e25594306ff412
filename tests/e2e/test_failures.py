"""Errors that need the data or the model: one line, soon, and every rank ends with one status."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from clipkit.engine.status import read_status
from tests.e2e.runs import by_hand, train, write_run
from tests.fixtures_shards import write_shards


@pytest.mark.slow
def test_unreadable_images_end_all_ranks(tmp_path: Path) -> None:
    config = write_run(tmp_path, data={"workers": 0})
    write_shards(tmp_path / "data" / "train", [40, 24, 36], bad=tuple(range(0, 100, 3)))
    begin = time.monotonic()
    answers = by_hand(config, job=random.randrange(20000))
    assert [status for status, _, _ in answers] == [3, 3]
    told = [
        line for _, _, err in answers for line in err.splitlines() if line.startswith("clipkit:")
    ]
    assert told and "data.max_bad_fraction" in told[0] and ".tar" in told[0]
    assert not any("Traceback" in err for _, _, err in answers)
    assert time.monotonic() - begin < 60


def test_unreadable_images_in_a_worker(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    write_shards(tmp_path / "data" / "train", [40, 24, 36], bad=tuple(range(100)))
    status, _, err = train(config)
    assert status == 3
    assert "unusable" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_batch_norm_is_refused_with_chunks(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    (tmp_path / "model.json").write_text(
        '{"embed_dim": 16, "vision_cfg": {"timm_model_name": "test_byobnet", "image_size": 32},'
        ' "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2,'
        ' "layers": 1}}'
    )
    status, _, err = train(config)
    assert status == 2
    assert "batch statistics" in err and "model.freeze_batch_norm=true" in err
    status, _, err = train(
        config, "train.batch_norm=chunk", "train.total_steps=1", "run.name=chunk"
    )
    assert status == 0, err
    assert "not those of the global batch" in err
    status, _, err = train(
        config, "model.freeze_batch_norm=true", "train.total_steps=1", "run.name=frozen"
    )
    assert status == 0, err


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config = write_run(tmp_path)
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    status, _, err = train(config, f"model.pretrained={tmp_path}/other.safetensors")
    assert status == 4
    assert "another architecture" in err.splitlines()[-1] and "Traceback" not in err
    found = read_status(tmp_path / "runs" / "r")  # torchrun's own status would be 1: start again
    assert (found["state"], found["exit_status"]) == ("failed", 4)
