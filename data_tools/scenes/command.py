"""The command line of `clipkit-data scenes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import ShardsArgument


def scenes(
    shards: ShardsArgument,
    out: Annotated[Path, typer.Argument(help="Folder to create; its parents may be missing.")],
    train: Annotated[int, typer.Option(help="Scenes to train on.")] = 12_000,
    test: Annotated[
        int, typer.Option(help="Scenes to test on; no two with the same things.")
    ] = 1000,
    things: Annotated[int, typer.Option(help="2, or 3: every other scene then has three.")] = 3,
    kinds: Annotated[int, typer.Option(help="Different things, drawn from the shards.")] = 200,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes.")] = 0,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Json 'category' of pictures to use; repeat. Else things of all sorts."),
    ] = None,
) -> None:
    """Compose scenes of two or three things from shards of single transparent pictures.

    Captions say how the things lie; each sample carries captions that are nearly right, by type.
    The things of a test scene are never seen together in training.
    """
    from data_tools.scenes.build import Settings, write_scenes
    from data_tools.scenes.things import CATEGORIES

    categories = tuple(category or CATEGORIES)
    settings = Settings(train, test, things, kinds, size, seed, categories)
    counts = write_scenes(shards, out, settings)
    print(f"wrote {out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
