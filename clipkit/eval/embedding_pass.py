"""The embedding pass from paths of shards to a folder: what every embed command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipkit.data.shard_images import ShardImages, hash_shards, open_shards
from clipkit.dist.group import World
from clipkit.errors import ConfigError
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import open_embeddings
from clipkit.eval.embedding_writer import embed_shards
from clipkit.eval.feature_cache import FeatureCache
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.dual import FeatureEncoder

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class PassSettings:
    """How shards are embedded.

    Attributes:
        out: The folder.
        arch: open_clip architecture that the checkpoint was loaded as, None if it knows its own.
        batch_size: Images encoded at once per rank.
        rows_per_file: Samples per file; memory grows with it.
        max_bad_fraction: Share of unusable images that is an error.
        cache: Folder of the feature cache, by which an interrupted pass goes on; None: no cache.
        overwrite: Replace a folder of other embeddings.
    """

    out: Path
    arch: str | None = None
    batch_size: int = 64
    rows_per_file: int = 250_000
    max_bad_fraction: float = 0.1
    cache: Path | None = None
    overwrite: bool = False


def check_precision(precision: str) -> None:
    """See that the towers can compute so.

    Raises:
        ConfigError: They cannot.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision '{precision}': choose {' or '.join(PRECISIONS)}")


def run_pass(
    paths: Sequence[str],
    load: Callable[[], tuple[str, FeatureEncoder]],
    world: World,
    settings: PassSettings,
    refine: Callable[[str, FeatureEncoder], Sequence[Refinement]] = lambda place, encoder: (),
) -> str:
    """Embed shards; all ranks must call.

    Args:
        paths: Of the shards.
        load: Gives the checkpoint's place and its encoder; called once the shards are known good.
        world: Ranks that share the work.
        settings: How.
        refine: (place, encoder) -> what is done to features after the towers.

    Returns:
        A line on the folder; "" on all ranks but the first.

    Raises:
        ClipkitError: As `open_shards`, `load` and `embed_shards` do.
    """
    indexes, notes = open_shards(paths)
    if world.is_main:
        for note in notes:
            print(f"clipkit: warning: {note}", file=sys.stderr)
    place, encoder = load()
    model = Embedder(
        encoder,
        world,
        cache=FeatureCache(settings.cache) if settings.cache else None,
        batch_size=settings.batch_size,
        progress=True,
        refinements=refine(place, encoder),
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
    if not world.is_main:
        return ""
    folder = open_embeddings(settings.out)
    facts, names = folder.facts, folder.refinements
    skipped = ", ".join(f"{n} {cause}" for cause, n in facts["skipped"].items()) or "none"
    captions = facts["rows"] - facts["without_caption"] if facts["text"] else 0
    refined = f"; refined by {' + '.join(names)}" if names else ""
    return (
        f"{settings.out}: {'' if computed else 'up to date: '}{facts['rows']} rows of "
        f"{facts['dim']}, {captions} with a caption; skipped: {skipped}{refined}"
    )
