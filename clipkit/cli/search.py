"""`clipkit search INDEX "a red circle"`: the closest samples of a folder of embeddings."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.refine import (
    CalibrationOption,
    FusionOption,
    MemoryOption,
    RefineOption,
    RefineOptions,
    ShiftOption,
)
from clipkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from clipkit.eval.embed import Embedder
    from clipkit.eval.embedding_folder import EmbeddingFolder
    from clipkit.eval.embedding_search import Hit

_CAPTION = 80  # characters of a caption in the table


def search(
    index: Annotated[Path, typer.Argument(help="Folder that clipkit embed wrote.")],
    query: Annotated[str | None, typer.Argument(help="Text to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to look for, instead of text.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Hits shown.")] = 10,
    on: Annotated[str, typer.Option(help="Side that is searched: image or text.")] = "image",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Model; default: the one the index was written with.")
    ] = None,
    allow_other_weights: Annotated[
        bool,
        typer.Option("--allow-other-weights", help="Search with weights the index is not from."),
    ] = False,
    arch: Annotated[
        str | None, typer.Option(help="open_clip architecture of a weights file or tag.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Contact sheet; default: search.html in INDEX.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object a line; a sheet only with --html."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    calibration: CalibrationOption = None,
    memory: MemoryOption = None,
    fusion: FusionOption = "head",
    refine: RefineOption = None,
    shift: ShiftOption = None,
) -> None:
    """Print the samples closest to a text or an image, and write a contact sheet of them.

    An index of refined features is searched with the same options it was written with. A text is
    centred by the mean of queries.
    """
    _check(on, query, image)
    from clipkit.eval import embedding_search
    from clipkit.eval.embedding_folder import SHEET, open_embeddings

    folder = open_embeddings(index)
    folder.check_side(on)
    picture = embedding_search.open_query_image(image) if image is not None else None
    options = RefineOptions(calibration, memory, fusion, refine, shift)
    model = _load(folder, checkpoint, arch, allow_other_weights, options, device)
    hits = embedding_search.search(folder, _encode(model, query, picture), top, on)
    if as_json:
        for hit in hits:
            print(json.dumps(asdict(hit)))
    else:
        _print_table(hits)
    if html is not None or not as_json:
        title = query.strip() if query is not None else str(image)
        _write_sheet(html or index / SHEET, html is None, title, hits, picture, folder)


def _check(on: str, query: str | None, image: Path | None) -> None:
    """Before anything is loaded."""
    if on not in ("image", "text"):
        raise ConfigError(f"--on '{on}': choose image or text")
    if (query is None) == (image is None):
        raise ConfigError("give either a text or --image PATH to look for")
    if query is not None and not query.strip():
        raise ConfigError("the query is empty; give a text to look for")


def _encode(model: Embedder, query: str | None, picture: Image | None) -> Tensor:
    """(D,) feature of the query."""
    from clipkit.eval.embedding_search import encode_image, encode_text

    return encode_image(model, picture) if picture is not None else encode_text(model, query or "")


def _load(
    folder: EmbeddingFolder,
    checkpoint: Path | None,
    arch: str | None,
    any_weights: bool,
    options: RefineOptions,
    device: str,
) -> Embedder:
    """The model for queries: the weights and refinements the index was written with."""
    from clipkit.dist.group import World, pick_device
    from clipkit.eval.embed import Embedder
    from clipkit.loading import load_encoder
    from clipkit.retrieval.calibration import for_queries

    place = checkpoint or Path(folder.facts["checkpoint"])
    arch = arch or (folder.facts.get("arch") if checkpoint is None else None)
    if checkpoint is None and arch is None and not place.exists():
        raise CheckpointError(
            f"{place}, which {folder.root} was written with, is gone; "
            f"give --checkpoint with the same weights"
        )
    world = World(device=pick_device(device, 0))
    encoder = load_encoder(
        place,
        device=world.device,
        arch=arch,
        precision=folder.facts["precision"],
    )
    if encoder.weights_hash != folder.facts["weights_hash"] and not any_weights:
        raise CheckpointError(
            f"{place}: its weights are not those that {folder.root} was written with; give the "
            f"right --checkpoint, embed again, or --allow-other-weights"
        )
    refinements = options.build(place, encoder, arch)
    remedy = "give the --calibration and --memory options it was written with, or embed again"
    folder.check_refinements([r.name for r in refinements], remedy)
    return Embedder(encoder, world, batch_size=1, refinements=for_queries(refinements))


def _print_table(hits: list[Hit]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clipkit.eval.plain_text import printable

    table = Table("rank", "score", "key", "caption", "shard")
    names = _told_apart({hit.shard for hit in hits})
    for hit in hits:
        caption = hit.caption[:_CAPTION] + ("..." if len(hit.caption) > _CAPTION else "")
        words = (hit.key, caption, names[hit.shard])
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *(Text(printable(w)) for w in words))
    Console().print(table)


def _told_apart(paths: Collection[str]) -> dict[str, str]:
    """For each path its end, of as many parts as it takes for no two to be the same."""
    parts = {path: Path(path).parts for path in paths}
    length = 1
    while len({p[-length:] for p in parts.values()}) < len(set(parts.values())):
        length += 1
    return {path: str(Path(*p[-length:])) for path, p in parts.items()}


def _write_sheet(
    path: Path,
    is_default: bool,
    title: str,
    hits: list[Hit],
    picture: Image | None,
    folder: EmbeddingFolder,
) -> None:
    from clipkit.checkpoint.files import write_text
    from clipkit.eval.contact_sheet import contact_sheet, pictures_of

    note = f"{len(hits)} of {len(folder)} samples of {folder.root.absolute()}"
    page = contact_sheet(title, hits, pictures_of(hits), picture, note)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        if not is_default:
            raise ConfigError(f"--html {path}: cannot be written: {error.strerror}") from None
        print(f"clipkit: warning: {path}: {error.strerror}; give --html PATH", file=sys.stderr)
        return
    print(f"contact sheet: {path}", file=sys.stderr)
