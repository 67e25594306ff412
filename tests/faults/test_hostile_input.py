"""Row 17: nothing foreign is run, and no secret is in any file below the run folder."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.config.load import load_config
from clipkit.engine.preflight import preflight
from clipkit.errors import CheckpointError, DataError
from clipkit.towers.build import build_towers, load_pretrained
from tests.e2e.runs import train
from tests.engine.inprocess import fit_in_pool
from tests.faults.harness import write_config
from tests.fixtures_shards import noise_bytes, write_shards, write_tar
from tests.tiny_model import MODEL_CFG

SECRETS = {
    "token": "hf_" + "q9W8e7R6t5Y4u3I2o1P0",
    "key": "sk-" + "zyxwvutsrqponmlkjihgfedc",
    "url": "hunter2-in-a-url",
    "query": "c2lnbmVkLXF1ZXJ5",
    "environment": "a plain word of the environment",
}
SHOWN = "a-project-that-may-be-read"


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that the payloads below would make."""
    return tmp_path / "canary"


def test_shards_with_members_that_run_code(tmp_path: Path, canary: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config, payload = write_config(tmp_path), pickle.dumps(Opens(canary))
    members = []
    for i in range(40):
        members += [(f"{i:06d}.png", noise_bytes(i)), (f"{i:06d}.txt", b"a caption")]
        kinds = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cbor", "ten", "json")
        members.append((f"{i:06d}.{kinds[i % len(kinds)]}", payload))
    members += [("../../out.png", noise_bytes(99)), ("../../out.txt", b"a caption")]
    write_tar(tmp_path / "data" / "train" / "000.tar", members)
    for mode in ("indexed", "streaming"):
        overrides = [
            f"run.name={mode}",
            f"data.mode={mode}",
            "train.total_steps=8",
            "data.workers=0",
        ]
        outcomes = ranks(2).run(fit_in_pool, str(config), [*overrides, "data.max_bad_fraction=0.5"])
        assert outcomes == ["done"] * 2
    assert not canary.exists() and not list(tmp_path.rglob("out.*"))
    pickle.loads(payload).close()
    assert canary.exists(), "the payload is live"


@pytest.mark.parametrize("command", ["pipe:touch {canary}", "PIPE:touch {canary} #.tar"])
@pytest.mark.parametrize(
    "setting",
    ["data.train={command}", "data.train=['{command}']", "data.mode=streaming|data.train={command}",
     "data.train=[]|data.sources=[{{shards: '{command}'}}]"],
)  # fmt: skip
def test_commands_among_the_shards(
    tmp_path: Path, canary: Path, command: str, setting: str
) -> None:
    text = setting.format(command=command.format(canary=canary))
    config = load_config(write_config(tmp_path), text.split("|"))
    with pytest.raises(DataError, match="would run a shell command"):
        preflight(config)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "as safetensors"])
def test_weights_that_run_code(tmp_path: Path, canary: Path, kind: str) -> None:
    path = tmp_path / ("evil.safetensors" if kind == "as safetensors" else "evil.pt")
    state = {"logit_scale": torch.zeros(()), "x": Opens(canary)}
    if kind in ("zip", "legacy"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
        assert zipfile.is_zipfile(path) == (kind == "zip")
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(CheckpointError, match="evil"):
        load_pretrained(build_towers(MODEL_CFG).clip, str(path))
    assert not canary.exists()


def found_in(folder: Path, text: str) -> list[str]:
    """Files below a folder that hold a text."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 5
    return [str(p.relative_to(folder)) for p in files if text.encode() in p.read_bytes()]


@pytest.mark.slow
def test_no_secret_in_any_file_of_a_run(tmp_path: Path) -> None:
    """Through the command line, wandb offline included; and of a run that failed with one."""
    s, config = SECRETS, write_config(tmp_path)
    environment = {"MY_STORE_PASSWORD": s["environment"], "HF_TOKEN": s["token"]}
    remote = f"memory://me:{s['url']}@store/copies?sig={s['query']}"
    arguments = [
        "log.wandb=offline", f"log.wandb_project={SHOWN}", "train.total_steps=3",
        "checkpoint.every=2", f"checkpoint.remote={remote}",
        f"model.pretrained={s['key']}",
    ]  # fmt: skip
    failed = train(config, *arguments, **environment)
    assert failed[0] != 0
    done = train(config, *arguments[:-1], "run.resume=auto", **environment)
    assert done[0] == 0, done[2]
    for path in write_shards(tmp_path / "bad", [40, 24, 36], bad=tuple(range(0, 100, 3))):
        Path(path).rename(Path(path).with_name(f"{s['environment']} {Path(path).name}"))
    damaged = f"data.train={tmp_path}/bad/*.tar"
    second = train(config, damaged, "run.name=second", "data.workers=0", **environment)
    assert second[0] == 3, second[2]
    runs = tmp_path / "runs"
    error = json.loads((runs / "second" / "status.json").read_text())["error"]
    assert "[redacted] 00" in error, "it names the shard"
    assert list((runs / "second").glob("bad_samples.rank*.jsonl"))
    (stored,) = runs.rglob("*.wandb")
    assert SHOWN.encode() in stored.read_bytes(), "what wandb stores can be searched"
    for name, secret in s.items():
        assert not found_in(runs, secret), name
    for told in (failed, done, second):
        assert s["url"] not in told[2] and s["query"] not in told[2]
