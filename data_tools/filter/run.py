"""All stages of one filter run, and what it writes."""

# ruff: noqa: S608 -- what goes into SQL text are own names and numbers

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
from rich.console import Console

from clipkit.errors import ConfigError, DataError
from clipkit.eval.embedding_folder import open_embeddings
from data_tools.draws import draw, share
from data_tools.filter.balance import keep_balanced, read_entries
from data_tools.filter.expression import condition, explained
from data_tools.filter.pool import count, open_pool
from data_tools.filter.scores import clip_scores, keep_scored
from data_tools.summary import write_summary
from data_tools.tables import write_keep, write_table


@dataclass(frozen=True)
class Rules:
    """What stays; None: no such rule.

    Attributes:
        where: SQL condition over the columns of the tables.
        emb: Embeddings folder, for CLIP scores.
        top_fraction: Share of the scored samples that stays.
        min_score: Score that stays.
        balance: File of entries, one a line.
        t: Captions of an entry up to which all stay.
        random: Share that stays, drawn by a hash of seed and key.
        seed: Of ties, balancing and --random.
    """

    where: str | None = None
    emb: Path | None = None
    top_fraction: float | None = None
    min_score: float | None = None
    balance: Path | None = None
    t: int = 20_000
    random: float | None = None
    seed: int = 0

    def check(self) -> None:
        """See that the rules fit each other.

        Raises:
            ConfigError: They do not.
        """
        scored = (self.top_fraction is not None) + (self.min_score is not None)
        if self.emb is not None and scored != 1:
            raise ConfigError("--emb: give just one of --top-fraction and --min-score")
        if self.emb is None and scored:
            raise ConfigError("--top-fraction, --min-score: need --emb, a folder of embeddings")
        for name, value in (("--top-fraction", self.top_fraction), ("--random", self.random)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name} {value}: is a share above 0 and at most 1")
        if self.t < 1:
            raise ConfigError(f"--t {self.t}: is a number of captions, at least 1")
        if not any(rule is not None for rule in (self.where, self.emb, self.balance, self.random)):
            raise ConfigError("give at least one of --where, --emb, --balance and --random")


def filter_tables(
    tables: Sequence[Path],
    out: Path,
    rules: Rules,
    *,
    limit: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write OUT/keep.parquet, summary.json, and of the stages scores.parquet, balance.parquet.

    Those of an earlier run with other stages are removed.

    The same tables and rules give the same bytes.

    Args:
        tables: See `pool.open_pool`.
        out: Folder.
        rules: What stays.
        limit: Only the first so many samples.
        dry_run: Check all, count the samples, write nothing.

    Returns:
        The summary; "counts" has the samples behind each stage.

    Raises:
        ConfigError: The rules do not fit each other.
        DataError: A table, an expression or a folder is not as it must be.
    """
    rules.check()
    spill = out / ".spill"
    try:
        with open_pool(tables, spill, limit) as connection:
            return _run(connection, tables, out, rules, dry_run)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _run(
    connection: duckdb.DuckDBPyConnection,
    tables: Sequence[Path],
    out: Path,
    rules: Rules,
    dry_run: bool,
) -> dict[str, Any]:
    console = Console(stderr=True)
    entries = read_entries(rules.balance) if rules.balance else []
    if rules.emb is not None:
        open_embeddings(rules.emb)  # what is not there is said before the tables are read
    with console.status("reading the tables"):
        _select(connection, rules)
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(rules).items()}
    facts: dict[str, Any] = {
        "arguments": {"tables": [str(path) for path in tables], **arguments},
        "counts": {"samples": count(connection, "samples")},
    }
    counts = facts["counts"]
    if rules.where is not None:
        counts["where"] = count(connection, "kept")
    if dry_run:
        return facts
    written: dict[str, pyarrow.Table] = {}
    if rules.emb is not None:
        with console.status("scoring"):
            written["scores"] = clip_scores(rules.emb)
            facts["score"] = keep_scored(
                connection, written["scores"], str(rules.emb), fraction=rules.top_fraction,
                threshold=rules.min_score, seed=rules.seed,
            )  # fmt: skip
        counts["score"] = count(connection, "kept")
    if rules.balance is not None:
        with console.status("balancing"):
            table = keep_balanced(connection, entries, t=rules.t, seed=rules.seed)
            written["balance"] = table
        facts["balance"] = {"entries": len(entries), "matching_entries": len(table)}
        counts["balance"] = count(connection, "kept")
    if rules.random is not None:
        _draw(connection, rules.random, rules.seed)
        counts["random"] = count(connection, "kept")
    counts["kept"] = count(connection, "kept")
    _forget(out, tables, written)
    for name, columns in written.items():
        write_table(out / f"{name}.parquet", dict(zip(columns.column_names, columns.columns)))
    kept = connection.sql("SELECT shard, row, key FROM kept ORDER BY shard, row")
    rows: pyarrow.Table = kept.to_arrow_table()
    write_keep(out / "keep.parquet", rows["shard"], rows["row"], rows["key"], "filter")
    write_summary(out, "filter", facts)
    return facts


def _forget(out: Path, tables: Sequence[Path], written: Collection[str]) -> None:
    """Remove what an earlier run left in `out` and this one does not write; inputs stay."""
    inputs = {path.resolve() for path in tables}
    for name in ("scores", "balance"):
        path = (out / f"{name}.parquet").resolve()
        if name not in written and not inputs & {path, path.parent}:
            path.unlink(missing_ok=True)


def _select(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Make the table `kept`: names of the samples, with captions where a later stage reads them."""
    samples = connection.table("samples")
    if rules.balance is not None and "caption" not in samples.columns:
        raise DataError("--balance: no table has a column 'caption'; clipkit-data stats writes one")
    columns = "shard, row::BIGINT AS row, key" + (", caption" if rules.balance else "")
    if rules.where is None:
        samples.project(columns).create("kept")
        return
    try:
        samples.filter(condition(connection, rules.where)).project(columns).create("kept")
    except duckdb.Error as error:  # a value that cannot be cast shows only now
        raise explained(connection, rules.where, error) from None


def _draw(connection: duckdb.DuckDBPyConnection, fraction: float, seed: int) -> None:
    number = share(fraction, count(connection, "kept"))
    connection.execute(
        f"CREATE OR REPLACE TABLE kept AS SELECT * FROM kept"
        f" ORDER BY {draw(seed, 'random', 'key')}, shard, row LIMIT {number}"
    )
