"""The script counts the batches behind the warm-up, and asks open_clip for what it measures."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from clipkit.bench import peer_loader


def test_only_the_batches_behind_the_warm_up_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    taken = []

    def get_wds_dataset(args: Any, transform: Any, is_train: bool, tokenizer: Any) -> Any:
        asked.update(vars(args), is_train=is_train)
        batches = ((torch.zeros(args.batch_size, 1), taken.append(n)) for n in range(100))
        return SimpleNamespace(dataloader=batches)

    fake = ModuleType("open_clip_train.data")
    fake.get_wds_dataset = get_wds_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip_train", ModuleType("open_clip_train"))
    monkeypatch.setitem(sys.modules, "open_clip_train.data", fake)
    task = {"warm_up": 2, "batches": 3, "batch": 4, "workers": 1, "size": 32, "pattern": "x.tar"}
    monkeypatch.setattr(sys, "argv", ["peer_loader.py", json.dumps(task)])
    with pytest.raises(SystemExit) as left:
        peer_loader.main()
    answer = json.loads(capsys.readouterr().out)
    assert left.value.code == 0 and answer["samples"] == 3 * 4 and answer["seconds"] >= 0
    assert len(taken) == 5
    assert (asked["train_data"], asked["batch_size"], asked["workers"]) == ("x.tar", 4, 1)
    assert asked["dataset_resampled"] and asked["is_train"]  # an endless stream of shuffled samples
    assert set(answer["versions"]) == {"open_clip_torch", "webdataset", "torch"}
