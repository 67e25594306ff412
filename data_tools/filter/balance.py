"""MetaCLIP's balancing: captions on common subjects are thinned out, rare ones all stay.

Xu et al. 2023, https://arxiv.org/abs/2309.16671. An entry (a subject's name) matches a caption that
holds it; it is drawn with probability min(1, t / captions it matches), apart for each caption. A
sample stays if any of its entries is drawn, and goes if it has none.

An entry matches whole words: both sides are lower-cased and cut into runs of letters, marks and
digits, and the entry's words must follow each other in the caption ("hot dog" is in "A hot-dog!",
"cat" is not in "category"). Scripts that put no space between words match whole runs only.
"""

# ruff: noqa: S608 -- what goes into SQL text are own names and numbers

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow

from clipkit.errors import DataError
from data_tools.draws import draw

_WORDS = r"regexp_extract_all(lower(nfc_normalize({})), '[\p{{L}}\p{{M}}\p{{N}}]+')"


def read_entries(path: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    try:
        entries = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not any(entries):
        raise DataError(f"{path}: holds no entry; write one a line")
    return entries


def keep_balanced(
    connection: duckdb.DuckDBPyConnection, entries: list[str], *, t: int, seed: int
) -> pyarrow.Table:
    """Thin the table `kept` (shard, row, key, caption) out by the entries its captions hold.

    A draw is a hash of seed, entry, key and caption; the caption tells samples apart whose shards
    use the same keys.

    Args:
        connection: Has the table.
        entries: Any text; those that fold to the same words count as one.
        t: Captions of an entry up to which all stay.
        seed: Of the draws.

    Returns:
        Columns entry, count, probability, kept of every entry that matches, most common first.
    """
    _match(connection, entries)
    drawn = draw(seed, "balance", "entry", "key", "caption")
    connection.execute(
        f"CREATE TABLE counts AS SELECT number, count(*) AS n, least(1, {t} / count(*))"
        " AS probability FROM matches GROUP BY number;"
        f"CREATE TABLE lucky AS SELECT DISTINCT id FROM matches JOIN counts USING (number)"
        f" JOIN entries USING (number) JOIN kept ON kept.rowid = id"
        f" WHERE {drawn} < probability"
    )
    table = connection.sql(
        "SELECT entry, any_value(n) AS count, any_value(probability) AS probability,"
        " count(lucky.id) AS kept FROM matches JOIN counts USING (number) JOIN entries"
        " USING (number) LEFT JOIN lucky USING (id) GROUP BY entry ORDER BY count DESC, entry"
    ).to_arrow_table()
    connection.execute(
        "CREATE TABLE stays AS SELECT kept.* FROM kept JOIN lucky ON kept.rowid = id;"
        "DROP TABLE kept; ALTER TABLE stays RENAME TO kept;"
        "DROP TABLE matches; DROP TABLE counts; DROP TABLE lucky; DROP TABLE entries"
    )
    return table


def _match(connection: duckdb.DuckDBPyConnection, entries: list[str]) -> None:
    """Tables entries (number, entry, length) and matches (id of a row of `kept`, number).

    All runs of as many words as some entry has are looked up in a hash table of the entries: the
    work grows with captions x lengths, not with captions x entries.
    """
    connection.register("lines", pyarrow.table({"line": pyarrow.array(entries, pyarrow.string())}))
    connection.execute(
        "CREATE TABLE entries AS SELECT row_number() OVER (ORDER BY entry) AS number, entry, length"
        " FROM (SELECT DISTINCT array_to_string(words, ' ') AS entry, len(words) AS length"
        f" FROM (SELECT {_WORDS.format('line')} AS words FROM lines) WHERE length > 0);"
        "CREATE TABLE matches (id BIGINT, number BIGINT)"
    )
    lengths = connection.execute("SELECT DISTINCT length FROM entries ORDER BY 1").fetchall()
    for (length,) in lengths:
        connection.execute(
            f"INSERT INTO matches SELECT DISTINCT id, number FROM (SELECT id,"
            f" array_to_string(words[i : i + {length} - 1], ' ') AS entry FROM (SELECT id, words,"
            f" unnest(range(1, len(words) - {length} + 2)) AS i FROM (SELECT rowid AS id,"
            f" {_WORDS.format('caption')} AS words FROM kept))) JOIN entries USING (entry)"
        )
