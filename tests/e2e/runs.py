"""A complete small run on disk, and ways to start it: alone, by torchrun, by hand like SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.fixtures_shards import noise_bytes, write_shards, write_tar
from tests.tiny_model import MODEL_CFG

NUM_CLASSES = 4
TEXT_CFG = {**MODEL_CFG["text_cfg"], "vocab_size": 49408}


def write_run(folder: Path, **sections: Any) -> Path:
    """Shards, an evaluation set, a model and a config below `folder`; sections update its own."""
    write_shards(folder / "data" / "train", [40, 24, 36])
    root = folder / "data" / "classes"
    members = []
    for i in range(12):
        members += [
            (f"s{i:07d}.png", noise_bytes(500 + i)),
            (f"s{i:07d}.cls", str(i % NUM_CLASSES).encode()),
        ]
    write_tar(root / "test" / "0.tar", members)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("one\ntwo\nthree\nfour\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    (folder / "model.json").write_text(json.dumps({**MODEL_CFG, "text_cfg": TEXT_CFG}))
    config: dict[str, Any] = {
        "run": {"dir": str(folder / "runs"), "name": "r"},
        "model": {"arch": "model.json"},
        "data": {
            "train": [str(folder / "data" / "train" / "*.tar")],
            "eval": {"classes": str(root)},
            "workers": 1,
            "crop_scale": [0.5, 1.0],
            "flip": 0.5,
            "streams": 4,
            "window": 8,
        },
        "train": {"total_steps": 20, "global_batch_size": 16, "chunk_size": 4, "threads": 1},
        "optim": {"lr": 1e-3, "warmup_steps": 4},
        "engine": {"strategy": "torch"},
        "eval": {"tasks": [{"kind": "zero_shot", "data": "classes"}]},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def environment(**extra: str) -> dict[str, str]:
    """Of a process that trains: this tree, one thread, no network, nobody else's ranks."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_"))
    }
    env.update(
        PYTHONPATH=str(Path(__file__).parents[2]),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        HF_HUB_OFFLINE="1",
        WANDB_MODE="offline",
        **extra,
    )
    return env


def start(arguments: list[str], **env: str) -> subprocess.Popen[str]:
    """`python -m clipkit <arguments>` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "clipkit", *arguments],
        env=environment(**env),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """(status, stdout, stderr); ends the process group on a time-out."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def finish_all(
    processes: list[subprocess.Popen[str]], timeout: float = 120
) -> list[tuple[int, str, str]]:
    """`finish` of several that work together: one whose pipe nobody reads would stop them all."""
    with ThreadPoolExecutor(len(processes)) as readers:
        return list(readers.map(lambda process: finish(process, timeout), processes))


def train(config: Path, *overrides: str, **env: str) -> tuple[int, str, str]:
    """`clipkit train` in one process."""
    return finish(start(["train", str(config), *overrides], **env))


def torchrun(config: Path, *overrides: str, ranks: int = 2) -> tuple[int, str, str]:
    """`torchrun -m clipkit train`."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        "-m",
        "clipkit",
        "train",
        str(config),
        *overrides,
    ]
    process = subprocess.Popen(
        command,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return finish(process)


def by_hand(config: Path, *overrides: str, job: int) -> list[tuple[int, str, str]]:
    """Two processes with the variables srun sets."""
    processes = [
        start(
            ["train", str(config), *overrides],
            SLURM_PROCID=str(rank),
            SLURM_NTASKS="2",
            SLURM_LOCALID=str(rank),
            SLURM_JOB_NODELIST="localhost",
            SLURM_TASKS_PER_NODE="2",
            SLURM_JOB_ID=str(job),
        )
        for rank in (0, 1)
    ]
    return finish_all(processes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Training lines of metrics.jsonl."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def curve(folder: Path) -> list[tuple[int, float, int]]:
    """(step, loss, checksum of the sample ids) of every step."""
    return [(m["step"], m["train/loss"], m["train/ids"]) for m in metrics(folder)]
