"""A failure on one rank is told once and ends all; alone, it is raised."""

import json
import os
import subprocess
import sys

import pytest
import torch.distributed as torch_dist

from clipkit.cli.on_ranks import run_on_ranks
from clipkit.errors import ConfigError, DataError
from tests.fixtures_eval_sets import write_noise_sets
from tests.fixtures_shards import write_tar
from tests.fixtures_trained import write_trained_run


def test_alone_a_failure_is_raised_and_the_group_left():
    def work(world):
        assert torch_dist.is_initialized() and world.world_size == 1
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        run_on_ranks(work, "cpu")
    assert not torch_dist.is_initialized()


def test_work_is_done_once():
    seen = []
    run_on_ranks(seen.append, "cpu")
    assert len(seen) == 1 and not torch_dist.is_initialized()


def test_an_unknown_device_is_named():
    with pytest.raises(ConfigError, match="device 'tpu': choose auto, cpu or cuda"):
        run_on_ranks(lambda world: None, "tpu")


def torchrun(*arguments, cache):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "clipkit", "eval", "run", "--device", "cpu", *map(str, arguments)]
    environment = {**os.environ, "CLIPKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.slow
def test_eval_under_torchrun(tmp_path):
    write_trained_run(tmp_path / "run")
    data = write_noise_sets(tmp_path / "data", 90)
    words = ["--checkpoint", tmp_path / "run", "--data", data, "--batch-size", 16]
    two = torchrun(*words, "--out", tmp_path / "two", cache=tmp_path / "a")
    assert two.returncode == 0, two.stderr
    one = subprocess.run(
        [sys.executable, "-m", "clipkit", "eval", "run", "--device", "cpu", *map(str, words),
         "--out", str(tmp_path / "one")],
        env={**os.environ, "CLIPKIT_CACHE": str(tmp_path / "b"), "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    assert one.returncode == 0
    paths = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.json*"))
    assert len(paths) == 8
    for path in paths:
        a, b = ((tmp_path / n / path).read_text() for n in ("one", "two"))
        if path.suffix == ".json":
            a, b = (json.dumps({**json.loads(x), "seconds": 0}) for x in (a, b))
        assert a == b, path
    broken = [("s00000.png", b"no image"), ("s00000.cls", b"0")]
    write_tar(data / "classes" / "test" / "0.tar", broken)
    failed = torchrun(*words, "--out", tmp_path / "three", cache=tmp_path / "c")
    assert failed.returncode != 0
    assert failed.stderr.count("clipkit: ") == 1 and "sample 's00000'" in failed.stderr
