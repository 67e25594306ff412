"""`clipkit embed CHECKPOINT SHARDS... OUT`, alone, under torchrun, under SLURM."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.on_ranks import run_on_ranks
from clipkit.cli.refine import (
    CalibrationOption,
    FusionOption,
    MemoryOption,
    RefineOption,
    RefineOptions,
    ShiftOption,
)

if TYPE_CHECKING:
    from clipkit.dist.group import World
    from clipkit.eval.embedding_pass import PassSettings
    from clipkit.towers.dual import FeatureEncoder


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
    calibration: CalibrationOption = None,
    memory: MemoryOption = None,
    fusion: FusionOption = "head",
    refine: RefineOption = None,
    shift: ShiftOption = None,
) -> None:
    """Write image and caption features of shards in clip-retrieval's layout.

    OUT holds img_emb/ and text_emb/ (float16 .npy), metadata/ (.parquet) and index.json. The same
    command on a complete OUT does nothing; an interrupted one goes on from the cache. Samples
    without a usable image are left out and counted. Refined features say so in index.json.
    """
    from clipkit.eval.embedding_pass import PassSettings
    from clipkit.eval.feature_cache import default_folder

    kept = None if no_cache else cache or default_folder()
    settings = PassSettings(out, arch, batch_size, rows_per_file, max_bad_fraction, kept, overwrite)
    options = RefineOptions(calibration, memory, fusion, refine, shift)
    run_on_ranks(partial(_embed, settings, options, checkpoint, shards, split, precision), device)


def _embed(
    settings: PassSettings,
    options: RefineOptions,
    checkpoint: Path,
    shards: list[str],
    split: str,
    precision: str,
    world: World,
) -> None:
    from clipkit.data.shard_images import find_shards
    from clipkit.eval.embedding_pass import check_precision, run_pass
    from clipkit.loading import load_encoder, resolve

    check_precision(precision)

    def load() -> tuple[str, FeatureEncoder]:
        place = str(resolve(checkpoint, settings.arch))
        return place, load_encoder(
            place, device=world.device, arch=settings.arch, precision=precision
        )

    refine = partial(options.build, arch=settings.arch)
    line = run_pass(find_shards(shards, split), load, world, settings, refine)
    if world.is_main:
        print(line)
