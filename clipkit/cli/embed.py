"""`clipkit embed CHECKPOINT SHARDS... OUT`, alone, under torchrun, under SLURM."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.on_ranks import run_on_ranks
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from clipkit.dist.group import World


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
    from clipkit.eval.feature_cache import default_folder

    kept = None if no_cache else cache or default_folder()
    settings = _Settings(
        checkpoint, shards, out, split, arch, precision, batch_size, rows_per_file,
        max_bad_fraction, kept, overwrite,
    )  # fmt: skip
    run_on_ranks(partial(_embed, settings), device)


def _embed(settings: _Settings, world: World) -> None:
    from clipkit.data.shard_images import ShardImages, find_shards, hash_shards, open_shards
    from clipkit.eval.embed import Embedder
    from clipkit.eval.embedding_folder import open_embeddings
    from clipkit.eval.embedding_writer import embed_shards
    from clipkit.eval.feature_cache import FeatureCache
    from clipkit.loading import load_encoder, resolve

    if settings.precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision '{settings.precision}': choose fp32 or bf16")
    paths = find_shards(settings.shards, settings.split)
    indexes, notes = open_shards(paths)
    if world.is_main:
        for note in notes:
            print(f"clipkit: warning: {note}", file=sys.stderr)
    place = str(resolve(settings.checkpoint, settings.arch))
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
