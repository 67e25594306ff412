"""`clipkit bench loss|step|addons|checkpoint|retrieval|loader`: cost, beside peers in the same run.

`clipkit bench study` runs rows of commands and compares what they give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure clipkit beside its peers.")

_LOSS_COLUMNS = [
    "impl", "batch", "extra_mb", "cpu_s", "wall_s", "cpu_ratio_to_naive",
    "wall_ratio_to_naive", "ns_per_pair",
]  # fmt: skip
_STEP_COLUMNS = [
    "case", "impl", "batch", "chunks", "extra_mb", "cpu_s", "wall_s", "cpu_ratio_to_plain",
    "cpu_ratio_to_naive_loss", "cpu_ratio_to_open_clip_accumulation",
]  # fmt: skip

_ADDON_COLUMNS = [
    "case", "impl", "batch", "held_mb", "extra_mb", "cpu_s", "wall_s", "cpu_ratio_to_plain",
    "wall_ratio_to_plain",
]  # fmt: skip

_CHECKPOINT_COLUMNS = [
    "impl", "arch", "batch", "parameters", "mb", "step_s", "blocked_s", "blocked_share_of_step",
    "step_beside_s", "total_s",
]  # fmt: skip

_RETRIEVAL_COLUMNS = [
    "case", "impl", "batch", "extra_mb", "cpu_s", "wall_s", "cpu_ratio_to_matmul",
    "wall_ratio_to_matmul", "recall@1",
]  # fmt: skip

_LOADER_COLUMNS = [
    "stage", "impl", "side", "images_per_s", "ratio_to_open_clip", "ratio_to_decode",
    "mean_abs_difference", "psnr",
]  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, no table.")]
Out = Annotated[
    Path, typer.Option(help="Folder for <bench>.jsonl, <bench>.md and the plot loss.png.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


@app.command("loss")
def loss(
    sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1024,4096,16384",
    dim: Annotated[int, typer.Option(min=1, help="Embedding dimension.")] = 512,
    dtype: Annotated[str, typer.Option(help="fp32, or bf16 (autocast).")] = "fp32",
    scale: Annotated[float, typer.Option(help="logit_scale.")] = 14.3,
    as_json: Json = False,
    out: Out = Path("runs/bench"),
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Forward and backward of the contrastive loss: naive, open_clip, checkpointed, tiled.

    "tiled" is clipkit's. MB: peak memory of the call beyond the features, gradients included, in a
    process of its own. CPU s: seconds of all threads; ratios are medians over interleaved runs.
    """
    numbers = _numbers(sizes)
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"--scale {scale}: give a positive number")
    if dtype not in ("fp32", "bf16"):
        raise ConfigError(f"--dtype '{dtype}': choose fp32 or bf16")
    from clipkit.bench import loss as bench

    base = {**_base(threads, device), "dim": dim, "dtype": dtype, "scale": scale}
    found = _collect("loss", bench.rows(numbers, base), base, as_json, out, _LOSS_COLUMNS)
    from clipkit.bench.report import plot

    plot(found, out / "loss.png")


@app.command("step")
def step(
    as_json: Json = False,
    out: Out = Path("runs/bench"),
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """A training step: plain, gradient-cached, open_clip's accumulation. About 8 minutes, 7 GB."""
    from clipkit.bench import step as bench

    base = _base(threads, device)
    _collect("step", bench.rows(base), base, as_json, out, _STEP_COLUMNS)


@app.command("addons")
def addons(
    as_json: Json = False,
    out: Out = Path("runs/bench"),
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """A training step with each add-on beside the plain one. About 10 minutes, 3 GB.

    Held MB: weights, moments and what the add-on keeps. MB: peak of a step beyond that. Ratios are
    medians over interleaved steps.
    """
    from clipkit.bench import addons as bench

    base = _base(threads, device)
    _collect("addons", bench.rows(base), base, as_json, out, _ADDON_COLUMNS)


@app.command("checkpoint")
def checkpoint(
    arch: Annotated[str, typer.Option(help="open_clip architecture.")] = "ViT-B-32",
    batch: Annotated[int, typer.Option(min=2, help="Samples of a step.")] = 16,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write; default: the system's temporary folder.")
    ] = None,
    as_json: Json = False,
    out: Out = Path("runs/bench"),
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Seconds of a step, seconds a save stops the loop, seconds until it is on disk. 3 minutes.

    Background: the loop waits for a copy, a thread writes. Step beside: a step while it does.
    """
    from clipkit.bench import checkpoint as bench

    base = _base(threads, device)
    found = bench.rows(base, arch, batch, str(folder) if folder else None)
    _collect("checkpoint", found, base, as_json, out, _CHECKPOINT_COLUMNS)


@app.command("retrieval")
def retrieval(
    sizes: Annotated[
        str, typer.Option(help="Numbers of queries and of targets, comma-separated.")
    ] = "10000,50000",
    dim: Annotated[int, typer.Option(min=1, help="Embedding dimension.")] = 512,
    as_json: Json = False,
    out: Out = Path("runs/bench"),
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Exact retrieval ranks, one way and both, beside the tiled product alone and a full matrix.

    "paired" features put about half of the positives first, "random" ones leave them anywhere. MB:
    peak memory beyond the features, in a process of its own. Ratios are medians over interleaved
    runs. 50000 takes about 6 minutes on two cores.
    """
    numbers = _numbers(sizes)
    from clipkit.bench import retrieval as bench

    base = {**_base(threads, device), "dim": dim}
    _collect("retrieval", bench.rows(numbers, base), base, as_json, out, _RETRIEVAL_COLUMNS)


@app.command("loader")
def loader(
    peer_python: Annotated[
        Path | None,
        typer.Option(help="Python of an environment with open_clip_torch and webdataset 0.2.86."),
    ] = None,
    samples: Annotated[int, typer.Option(min=512, help="Photographs in the shards.")] = 2048,
    as_json: Json = False,
    out: Out = Path("runs/bench"),
) -> None:
    """Decoding, reading and whole loaders beside open_clip's, on re-encoded photographs.

    Decoding and reading: per CPU second of one core. Whole loaders: 2 workers, batch 256, wall
    time. open_clip's loader runs under --peer-python, because it needs an older webdataset. About
    10 minutes on two cores.
    """
    from clipkit.bench import loader as bench

    peer = bench.check_peer(peer_python) if peer_python else {}
    base = {**_base(1, "cpu"), "peer": peer}
    found = bench.rows(base, peer_python, samples)
    _collect("loader", found, base, as_json, out, _LOADER_COLUMNS)


@app.command("study")
def study(
    file: Annotated[Path, typer.Argument(help="YAML file, as those in configs/studies.")],
    seeds: Annotated[str | None, typer.Option(help="Run these only, comma-separated.")] = None,
    rows: Annotated[str | None, typer.Option(help="Run these only, comma-separated.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of its runs; default: runs/studies/<study>.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="CLIPKIT_DATA", help="Folder of the data sets, {data}.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 1,
    show: Annotated[
        bool, typer.Option("--list", help="Print the commands and which are done; run none.")
    ] = False,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Tabulate what is there; run nothing.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Folder that <study>.md and .jsonl are copied to.")
    ] = None,
) -> None:
    """Run what a study lists and is not done yet, and tabulate it against its baselines.

    A study compares rows of `clipkit` and `clipkit-data` commands over the same seeds. OUT/<study>
    .md and .jsonl hold every seed, the mean, and the paired difference to each baseline with its
    interval over test items, from all results in OUT.
    """
    from clipkit.bench.study.definition import load_study
    from clipkit.bench.study.run import StudyRun, default_out

    run = StudyRun(load_study(file), file, out or default_out(file), data)
    chains = run.chains(_names(rows), _names(seeds))
    if show:
        for line in run.listing(chains):
            typer.echo(line)
        return
    if not table_only:
        run.execute(chains, jobs, table)
    typer.echo(run.tabulate(table))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _numbers(sizes: str) -> list[int]:
    try:
        numbers = [int(s) for s in sizes.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--sizes '{sizes}': give whole numbers, e.g. --sizes 1024,4096")
    return numbers


def _base(threads: int | None, device: str) -> dict[str, Any]:
    import os

    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device '{device}': choose cpu, or cuda where there is a GPU")
    return {"threads": threads or len(os.sched_getaffinity(0)), "device": device}


def _size_of(row: dict[str, Any]) -> str:
    return f" at {row['batch']}" if "batch" in row else ""


def _collect(
    name: str,
    rows: Iterator[dict[str, Any]],
    base: dict[str, Any],
    as_json: bool,
    out: Path,
    columns: list[str],
) -> list[dict[str, Any]]:
    """Print rows as they come, or a table at the end; write both to `out`."""
    from rich.console import Console

    from clipkit.bench.measure import machine
    from clipkit.bench.report import json_line, markdown, table_of
    from clipkit.checkpoint.files import write_text

    facts, found = machine(base["threads"], base["device"]), []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out '{out}': cannot write there ({error.strerror})") from None
    with Console(stderr=True).status(f"bench {name}") as status:
        for row in rows:
            found.append({**row, "device": base["device"], **facts})
            write_text(out / f"{name}.jsonl", "".join(json_line(r) + "\n" for r in found))
            status.update(f"bench {name}: {row['impl']}{_size_of(row)} done")
            if as_json:
                print(json_line(found[-1]), flush=True)
    write_text(out / f"{name}.md", markdown(found, columns))
    if not as_json:
        Console().print(table_of(found, columns, f"clipkit bench {name}, {facts['machine']}"))
    return found
