"""`clipkit calibrate CHECKPOINT DATA`: the means of a model's modalities, saved beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.on_ranks import run_on_ranks
from clipkit.cli.refine import FusionOption, MemoryOption, RefineOption, RefineOptions

if TYPE_CHECKING:
    from clipkit.dist.group import World
    from clipkit.eval.embed import Embedder
    from clipkit.eval.modality_means import Fit


def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder or exported folder.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="Evaluation set, shards, or embeddings. Do not score it with this calibration."
        ),
    ],
    split: Annotated[
        str,
        typer.Option(
            help="Of an evaluation set. Default: test, which evaluation scores, too; take another "
            "set or split than that."
        ),
    ] = "test",
    queries: Annotated[
        str | None,
        typer.Option(help="Queries: a file with one a line, or a set. Default: DATA's texts."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File; default: calibration.safetensors in the run.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="open_clip architecture of a weights file or tag.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once per rank.")] = 64,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no features on disk.")] = False,
    memory: MemoryOption = None,
    fusion: FusionOption = "head",
    refine: RefineOption = None,
) -> None:
    """Fit the means that --calibration subtracts (GR-CLIP), on data that is not scored.

    With a memory they are means of the features it has refined, and are used with the same memory.
    """
    from clipkit.eval.modality_means import fit_calibration
    from clipkit.loading import calibration_path, resolve

    place = resolve(checkpoint, arch)
    path = out or calibration_path(place)
    options = RefineOptions(None, memory, fusion, refine)

    def work(world: World) -> None:
        model = _model(place, arch, options, world, batch_size, no_cache)
        fit = fit_calibration(model, data, split=split, queries=queries)
        if world.is_main:
            fit.calibration.save(path)
            print(_line(path, fit))

    run_on_ranks(work, device)


def _model(
    place: Path,
    arch: str | None,
    options: RefineOptions,
    world: World,
    batch_size: int,
    no_cache: bool,
) -> Embedder:
    from clipkit.eval.embed import Embedder
    from clipkit.eval.feature_cache import FeatureCache, default_folder
    from clipkit.loading import load_encoder

    encoder = load_encoder(place, device=world.device, arch=arch)
    return Embedder(
        encoder,
        world,
        cache=None if no_cache else FeatureCache(default_folder()),
        batch_size=batch_size,
        progress=True,
        refinements=options.build(place, encoder, arch),
    )


def _line(path: Path, fit: Fit) -> str:
    counts = fit.calibration.counts
    return (
        f"{path}: means of {counts['image']} images, {counts['text']} texts and "
        f"{counts['query_text']} queries ({fit.asked}); gap between the modalities' means "
        f"{fit.gap:.3f}, after centring {fit.gap_after:.3f}"
    )
