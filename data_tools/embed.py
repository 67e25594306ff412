"""`clipkit-data embed`: the pass of `clipkit embed` as a tool, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_tools.options import DryRunOption, LimitOption, OutArgument, ShardsArgument

if TYPE_CHECKING:
    from clipkit.dist.group import World
    from clipkit.towers.dual import FeatureEncoder


def embed(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder or exported folder.")
    ],
    shards: ShardsArgument,
    out: OutArgument,
    arch: Annotated[
        str | None, typer.Option(help="open_clip architecture of a weights file or tag.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a folder that is an evaluation set.")] = "test",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the towers.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 64,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable images that is an error.")
    ] = 0.1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder of other embeddings.")
    ] = False,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write image and caption features of shards in clip-retrieval's layout.

    Filter and dedup read them. An interrupted pass goes on from the feature cache. For several
    GPUs or machines start `clipkit embed` under torchrun or SLURM: it writes the same folder.
    """
    from clipkit.data.shard_images import find_shards
    from clipkit.eval.embedding_pass import PassSettings, check_precision, run_pass
    from clipkit.eval.feature_cache import default_folder
    from data_tools.summary import write_summary

    check_precision(precision)
    world = _alone(device)
    paths = find_shards(shards, split)[:limit]
    if dry_run:
        print(_plan(checkpoint, arch, paths, out))
        return

    def load() -> tuple[str, FeatureEncoder]:
        from clipkit.loading import load_encoder, resolve

        place = str(resolve(checkpoint, arch))
        return place, load_encoder(place, device=world.device, arch=arch, precision=precision)

    settings = PassSettings(
        out, arch, batch_size, max_bad_fraction=max_bad_fraction, cache=default_folder(),
        overwrite=overwrite,
    )  # fmt: skip
    print(run_pass(paths, load, world, settings))
    write_summary(out, "embed", _facts(out))


def _alone(device: str) -> World:
    """This process as a group of one; no process group is made.

    Raises:
        ConfigError: It is one of several ranks, or there is no such device.
    """
    from clipkit.dist.env import read_env
    from clipkit.dist.group import World, pick_device
    from clipkit.errors import ConfigError

    env = read_env()
    if env.world_size > 1:
        raise ConfigError("clipkit-data embed is one process; on several ranks run clipkit embed")
    return World(device=pick_device(device, env.local_rank))


def _plan(checkpoint: Path, arch: str | None, paths: list[str], out: Path) -> str:
    from clipkit.data.tar_index import load_index
    from clipkit.loading import resolve

    samples = sum(len(load_index(path, write=False)) for path in paths)
    return (
        f"{samples} samples of {len(paths)} shards with {resolve(checkpoint, arch)} into {out}; "
        f"dry run, nothing is written"
    )


def _facts(out: Path) -> dict[str, object]:
    """Summary of a folder: what it was made from, and its counts."""
    from clipkit.eval.embedding_folder import open_embeddings

    facts = open_embeddings(out).facts
    arguments = ("checkpoint", "arch", "weights_hash", "precision")
    counts = ("samples", "rows", "without_caption", "dim")
    return {
        "arguments": {name: facts[name] for name in arguments},
        "shards": len(facts["shards"]),
        "counts": {name: facts[name] for name in counts} | facts["skipped"],
    }
