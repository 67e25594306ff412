"""CLIP scores: cosine of a sample's image and caption features, and what they select.

DataComp, Gadre et al. 2023, https://arxiv.org/abs/2304.14108 keeps a fixed share or all above a
threshold. A score compares samples of one model only.

Shapes: n rows, b rows of a block, D embed dim.
"""

# ruff: noqa: S608 -- what goes into SQL text are own names and numbers

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow

from clipkit.errors import DataError
from clipkit.eval.embedding_folder import open_embeddings
from data_tools.draws import draw, share
from data_tools.embeddings import table_of
from data_tools.filter.pool import check_keys, check_names, count


def clip_scores(root: Path) -> pyarrow.Table:
    """Columns shard, row, key, clip_score of every sample that has a caption, fp32 from fp64 sums.

    The features are read in blocks.

    Raises:
        DataError: The folder is damaged, has no captions, or features that are no numbers.
    """
    folder = open_embeddings(root)
    if "text" not in folder.sides():
        raise DataError(f"{root}: its samples have no captions, so no CLIP score; embed others")
    scores = np.empty(len(folder), dtype=np.float32)
    for (first, images), (_, texts) in zip(folder.blocks("image"), folder.blocks("text")):
        scores[first : first + len(images)] = np.einsum(
            "bd,bd->b", images, texts, dtype=np.float64, casting="same_kind"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"{root}: holds NaN or infinity; embed with weights that are whole")
    table = table_of(folder).append_column("clip_score", pyarrow.array(scores))
    return table.filter(pyarrow.array(folder.has_caption))


def keep_scored(
    connection: duckdb.DuckDBPyConnection,
    scores: pyarrow.Table,
    where: str,
    *,
    fraction: float | None,
    threshold: float | None,
    seed: int,
) -> dict[str, int | float]:
    """Thin the table `kept` out by score.

    With a fraction exactly `share(fraction, n)` of the n samples that have a score stay, the best
    ones; of samples tied at the last score those that a hash of seed and key draws. With a
    threshold all that reach it stay. Samples without a score go.

    Args:
        connection: Has the table `kept`.
        scores: As `clip_scores` gives them.
        where: Name of their folder, for messages.
        fraction, threshold: Just one of them.
        seed: Decides ties.

    Returns:
        Counts, and the lowest score that stayed.

    Raises:
        DataError: The scores are of other samples.
    """
    connection.register("scores", scores)
    check_names(connection, "scores", where)
    check_keys(connection, "kept", "scores", f"the tables and {where}")
    connection.execute(
        "CREATE TABLE scored AS SELECT kept.*, clip_score FROM kept JOIN scores USING (shard, row)"
    )
    before, scored = (count(connection, table) for table in ("kept", "scored"))
    if fraction is not None:
        tie = draw(seed, "tie", "key")
        rule = f"ORDER BY clip_score DESC, {tie}, shard, row LIMIT {share(fraction, scored)}"
    else:
        rule = f"WHERE clip_score >= {threshold!r}::FLOAT"
    connection.execute(f"CREATE OR REPLACE TABLE kept AS SELECT * FROM scored {rule}")
    lowest = connection.execute("SELECT min(clip_score) FROM kept").fetchall()[0][0]
    connection.execute("ALTER TABLE kept DROP COLUMN clip_score; DROP TABLE scored")
    facts: dict[str, int | float] = {"without_score": before - scored, "scored": scored}
    if lowest is not None:
        facts["lowest_score"] = lowest
    return facts
