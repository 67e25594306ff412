"""Loading beside open_clip: decoding alone, reading alone, and whole loaders on the same shards.

The peer's loader runs in an environment of its own, because open_clip needs an older webdataset.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit.bench.measure import in_fresh_process, timed
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order
from clipkit.data.shard_writer import write_shard
from clipkit.data.sources import ShardSource
from clipkit.errors import ClipkitError, ConfigError

_SIDE = 512
_SHARDS = 8
_BATCH = 256
_LOADER = {"warm_up": 4, "batches": 12, "size": 224, "workers": 2}
_WANTED = ("jpg", "txt", "json")
_PEER = Path(__file__).with_name("peer_loader.py")
_TIMEOUT_S = 900
_SETUP = "python -m venv E; E/bin/pip install open_clip_torch==3.3.0 webdataset==0.2.86 pandas"


def make_shards(folder: Path, samples: int) -> str:
    """Write photographs, each cut differently, as JPEGs of about 500 pixels; gives the pattern."""
    from clipkit.bench.photographs import jpeg, large_enough, photographs

    pictures = [p for p in photographs().values() if large_enough(p, _SIDE)]
    rng = np.random.default_rng(0)

    def sample(number: int) -> tuple[str, dict[str, bytes]]:
        picture = pictures[number % len(pictures)]
        top, left = (int(rng.integers(0, max(1, side // 8))) for side in picture.shape[:2])
        data = jpeg(np.ascontiguousarray(picture[top:, left:]), _SIDE)
        return f"{number:06d}", {"jpg": data, "txt": b"a photograph, number %d" % number}

    per_shard = samples // _SHARDS
    for shard in range(_SHARDS):
        rows = range(shard * per_shard, (shard + 1) * per_shard)
        write_shard(folder / f"{shard:05d}.tar", (sample(i) for i in rows))
    return str(folder / f"{{00000..{_SHARDS - 1:05d}}}.tar")


def _source(task: dict[str, Any]) -> tuple[ShardSource, Mixture]:
    from clipkit.data.shards import expand_shards

    source = ShardSource(expand_shards([task["pattern"]]))
    order = Order(source.counts, seed=0, global_batch_size=task["batch"])
    return source, Mixture([order], seed=0, global_batch_size=task["batch"])


def _read(task: dict[str, Any]) -> dict[str, float]:
    """Samples per CPU second: ours in the order of training, webdataset's from front to back."""
    source, mixture = _source(task)
    steps = mixture.batches_per_epoch or 1
    everything = slice(0, task["batch"])

    def ours() -> None:
        for step in range(steps):
            drawn = mixture.rows(step, everything)
            for part, row in zip(drawn.part.tolist(), drawn.row.tolist()):
                source.members(part, row, _WANTED, 50_000_000)

    def theirs() -> None:
        import webdataset

        for _ in webdataset.WebDataset(task["pattern"], shardshuffle=False):
            pass

    ours()  # what is read is in the page cache for both
    theirs()
    samples = {"clipkit": steps * task["batch"], "open_clip": int(source.counts.sum())}
    calls: dict[str, Callable[[], None]] = {"clipkit": ours, "open_clip": theirs}
    times: dict[str, list[float]] = {impl: [] for impl in calls}
    for _ in range(task["repeats"]):
        for impl, call in calls.items():
            times[impl].append(timed(call).cpu_s)
    return {impl: samples[impl] / statistics.median(times[impl]) for impl in calls}


def _end_to_end(task: dict[str, Any]) -> dict[str, float]:
    """Seconds of our loader for the timed batches, normalised as the model does it."""
    import open_clip

    from clipkit.data.loader import IndexedLoader
    from clipkit.data.samples import SampleReader
    from clipkit.data.token_cache import TokenCache
    from clipkit.data.transforms import TrainTransform

    source, mixture = _source(task)
    reader = SampleReader(
        {"image": TrainTransform((task["size"], task["size"]))}, decode=task["decode"]
    )
    tokenizer = TokenCache(open_clip.get_tokenizer("ViT-B-32"), 100_000)
    loader = IndexedLoader([source], mixture, reader, tokenizer, workers=task["workers"])
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in _statistics())
    begin, batches = 0.0, task["warm_up"] + task["batches"]
    for number, batch in enumerate(islice(loader, batches), start=1):
        batch.images["image"].float().sub_(mean).div_(std)
        if number == task["warm_up"]:
            begin = time.perf_counter()
    return {"seconds": time.perf_counter() - begin, "samples": task["batches"] * task["batch"]}


def _statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


TASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "loader_read": _read,
    "loader_end_to_end": _end_to_end,
}


def check_peer(python: Path) -> dict[str, str]:
    """Versions in the peer's environment.

    Raises:
        ConfigError: It is not there, or cannot run open_clip's loader; with the line that mends it.
    """
    ask = (
        "import json, open_clip_train.data; from importlib.metadata import version as v; "
        "print(json.dumps({n: v(n) for n in ('open_clip_torch', 'webdataset', 'torch')}))"
    )
    try:
        done = subprocess.run(  # noqa: S603
            [str(python), "-c", ask], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--peer-python {python}: cannot be run: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigError(f"--peer-python {python}: {reason}; make one: {_SETUP}")
    versions: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return versions


def _peer(python: Path, task: dict[str, Any]) -> float:
    """Images per second of open_clip's loader in its own environment."""
    command = [str(python), str(_PEER), json.dumps(task)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)  # the peer's packages only
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, env=env, timeout=_TIMEOUT_S
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ClipkitError(f"open_clip's loader failed: {reason}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return float(answer["samples"] / answer["seconds"])


def rows(base: dict[str, Any], peer: Path | None, samples: int) -> Iterator[dict[str, Any]]:
    """Rows of all stages; without `peer` those of open_clip's loader say what is missing."""
    from clipkit.bench.decode import decode_rows

    decode_rate = 0.0
    for row in decode_rows():
        if row["impl"] == "clipkit" and row.get("side") == _SIDE:
            decode_rate = row["images_per_s"]
        yield row
    with tempfile.TemporaryDirectory() as folder:
        task = {
            **base,
            "pattern": make_shards(Path(folder), samples),
            "batch": _BATCH,
            "repeats": 5,
        }
        read = in_fresh_process({**task, "what": "loader_read", "threads": 1})
        for impl, rate in read.items():
            yield {
                "impl": impl,
                "stage": "read",
                "images_per_s": rate,
                "ratio_to_open_clip": rate / read["open_clip"],
                "ratio_to_decode": rate / decode_rate if decode_rate else None,
            }
        yield from _loaders(task, peer)


def _loaders(task: dict[str, Any], peer: Path | None) -> Iterator[dict[str, Any]]:
    """Whole loaders by turns, so that all see the same machine."""
    task = {**task, **_LOADER, "threads": 1}
    facts = {"stage": "end_to_end", "workers": task["workers"], "batch": task["batch"]}
    facts |= {"peer": task.get("peer")}
    rates: dict[str, list[float]] = {"open_clip": [], "clipkit": [], "clipkit_scaled": []}
    for _ in range(task["repeats"]):
        if peer:
            rates["open_clip"].append(_peer(peer, task))
        for impl, decode in (("clipkit", "exact"), ("clipkit_scaled", "scaled")):
            done = in_fresh_process({**task, "what": "loader_end_to_end", "decode": decode})
            rates[impl].append(done["samples"] / done["seconds"])
    if not peer:
        yield {**facts, "impl": "open_clip", "skipped": f"--peer-python E/bin/python; {_SETUP}"}
    for impl, found in rates.items():
        if not found:
            continue
        pairs = list(zip(found, rates["open_clip"]))
        yield {
            **facts,
            "impl": impl,
            "images_per_s": statistics.median(found),
            "ratio_to_open_clip": statistics.median(a / b for a, b in pairs) if pairs else None,
            "repeats": len(found),
        }
