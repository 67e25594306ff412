"""`clipkit embed CHECKPOINT SHARDS... OUT`, alone, under torchrun, under SLURM."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.errors import ClipkitError, ConfigError

if TYPE_CHECKING:
    from clipkit.dist.group import World

_TIMEOUT_S = 6 * 3600.0  # ranks hash and read large shards apart; a dead rank is noticed otherwise


@dataclass(frozen=True)
class _Settings:
    checkpoint: Path
    shards: list[str]
    out: Path
    split: str
    arch: str | None
    precision: str
    batch_size: int
    rows_per_file: int
    max_bad_fraction: float
    cache: Path | None
    overwrite: bool


def embed(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder or exported folder.")
    ],
    shards: Annotated[
        list[str],
        typer.Argument(help="Brace patterns, globs or folders of tars, in quotes; then OUT."),
    ],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    split: Annotated[str, typer.Option(help="Of a folder that is an evaluation set.")] = "test",
    arch: Annotated[
        str | None, typer.Option(help="open_clip architecture of a weights file or tag.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the towers.")] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once per rank.")] = 64,
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Samples per file; memory grows with it.")
    ] = 250_000,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unusable images that is an error.")
    ] = 0.1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the feature cache; default: the user's cache.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep no features on disk; starts over each time.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder of other embeddings.")
    ] = False,
) -> None:
    """Write image and caption features of shards in clip-retrieval's layout.

    OUT holds img_emb/ and text_emb/ (float16 .npy), metadata/ (.parquet) and index.json. The same
    command on a complete OUT does nothing; an interrupted one goes on from the cache. Samples
    without a usable image are left out and counted.
    """
    from clipkit.dist.env import read_env
    from clipkit.eval.feature_cache import default_folder

    env = read_env()
    kept = None if no_cache else cache or default_folder()
    settings = _Settings(
        checkpoint, shards, out, split, arch, precision, batch_size, rows_per_file,
        max_bad_fraction, kept, overwrite,
    )  # fmt: skip
    status = _on_all_ranks(settings, device)
    if status and env.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # another rank may be stuck in a collective of a broken group


def _on_all_ranks(settings: _Settings, device: str) -> int:
    """A failure on any rank ends all ranks with the same status; alone, it is raised."""
    from clipkit.dist import group

    world = group.setup(device=device, timeout_s=_TIMEOUT_S)
    watch = group.AbortWatch(world)
    try:
        _embed(settings, world)
    except ClipkitError as error:
        if world.world_size == 1:
            raise
        if watch.is_first():
            print(f"clipkit: {error}", file=sys.stderr, flush=True)
        watch.announce(error.exit_status)
        return error.exit_status
    except Exception:
        watch.follow()  # a collective broke because another rank has already said why
        watch.announce(1)
        raise
    finally:
        watch.close()
        if world.world_size == 1:
            group.teardown()
    if world.world_size > 1:
        group.teardown()
    return 0


def _embed(settings: _Settings, world: World) -> None:
    from clipkit.data.shard_images import ShardImages, find_shards, hash_shards, open_shards
    from clipkit.eval.embed import Embedder
    from clipkit.eval.embedding_folder import open_embeddings
    from clipkit.eval.embedding_writer import embed_shards
    from clipkit.eval.feature_cache import FeatureCache
    from clipkit.loading import load_encoder

    if settings.precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision '{settings.precision}': choose fp32 or bf16")
    paths = find_shards(settings.shards, settings.split)
    indexes, notes = open_shards(paths)
    if world.is_main:
        for note in notes:
            print(f"clipkit: warning: {note}", file=sys.stderr)
    place = checkpoint_place(settings.checkpoint)
    encoder = load_encoder(
        place, device=world.device, arch=settings.arch, precision=settings.precision
    )
    model = Embedder(
        encoder,
        world,
        cache=FeatureCache(settings.cache) if settings.cache else None,
        batch_size=settings.batch_size,
        progress=True,
    )
    computed = embed_shards(
        model,
        ShardImages(indexes, hash_shards(paths, world)),
        settings.out,
        checkpoint=place,
        arch=settings.arch,
        rows_per_file=settings.rows_per_file,
        max_bad_fraction=settings.max_bad_fraction,
        overwrite=settings.overwrite,
    )
    if world.is_main:
        facts = open_embeddings(settings.out).facts
        skipped = ", ".join(f"{n} {cause}" for cause, n in facts["skipped"].items()) or "none"
        captions = facts["rows"] - facts["without_caption"] if facts["text"] else 0
        print(
            f"{settings.out}: {'' if computed else 'up to date: '}{facts['rows']} rows of "
            f"{facts['dim']}, {captions} with a caption; skipped: {skipped}"
        )


def checkpoint_place(checkpoint: Path) -> str:
    """The checkpoint that a run folder stands for now: later ones will have other weights."""
    from clipkit.checkpoint.verify import MANIFEST, find_checkpoint
    from clipkit.loading import is_export

    if not checkpoint.is_dir() or is_export(checkpoint) or (checkpoint / MANIFEST).is_file():
        return str(checkpoint.resolve() if checkpoint.exists() else checkpoint)
    return str(find_checkpoint(checkpoint).resolve())
