"""The SQL condition of --where: one expression over the columns, checked before it is evaluated."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

import duckdb

from clipkit.errors import DataError

# what these give is as large as a number says, not as the sample is
_UNBOUNDED = {
    "repeat", "lpad", "rpad", "format", "printf", "bar", "bitstring", "range", "generate_series",
    "list_resize", "array_resize", "equi_width_bins",
}  # fmt: skip


def condition(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Expression:
    """`text` as a condition on the view `samples`.

    duckdb's own parser reads it, so it can be nothing but one expression; that it can read no file
    is the connection's matter (`pool.open_pool`).

    Raises:
        DataError: No single expression, no condition, an unknown column (names all, and close
            ones), a query inside, or a function that gives something else each time
            or values of any size.
    """
    try:
        parsed = duckdb.SQLExpression(text)
        _refuse(connection, text)
        samples = connection.table("samples")
        kind = str(samples.filter(parsed).project(parsed).types[0])
    except duckdb.Error as error:
        raise explained(connection, text, error) from None
    if kind != "BOOLEAN":
        raise DataError(
            f"--where '{text}': is {kind}, no condition; compare it, as in 'width > 64'"
        )
    return parsed


def explained(connection: duckdb.DuckDBPyConnection, text: str, error: duckdb.Error) -> DataError:
    """duckdb's complaint as one line."""
    reason = str(error).split("\n")[0]
    found = re.search(r'Referenced column "(.*?)" not found', reason)
    if found:
        columns = connection.table("samples").columns
        close = difflib.get_close_matches(found[1].lower(), columns, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        reason = f"there is no column '{found[1]}'; {hint}columns: {', '.join(columns)}"
    return DataError(f"--where '{text}': {reason}")


def _refuse(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse what is more than a condition on a sample's own columns."""
    query = f"SELECT (\n{text}\n)"
    tree = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0]
    expression = json.loads(tree)["statements"][0]["node"]["select_list"]
    classes, functions = set[str](), set[str]()
    _collect(expression, classes, functions)
    if "SUBQUERY" in classes:
        raise DataError(f"--where '{text}': holds a query; give one condition over the columns")
    unsteady = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    if found := functions & _UNBOUNDED:
        raise DataError(
            f"--where '{text}': {min(found)}() may make values of any size; compare the columns "
            f"themselves"
        )
    if found := functions & {str(name).lower() for (name,) in unsteady}:
        raise DataError(
            f"--where '{text}': {min(found)}() does not depend on the sample alone; "
            f"--random draws by a seed"
        )


def _collect(node: Any, classes: set[str], functions: set[str]) -> None:
    """Classes of all expressions in the tree, and names of its functions."""
    if isinstance(node, dict):
        classes.add(str(node.get("class")))
        functions.add(str(node.get("function_name")).lower())
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _collect(child, classes, functions)
