"""--where is one condition over the columns, and whatever else it is, is said in one line."""

from pathlib import Path

import pytest

from clipkit.errors import DataError
from data_tools.filter.expression import condition
from tests.data_tools.filter.pools import pool_of


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("width > 2", [3, 4]),
        ("width>=1 and width<3 -- a comment", [1, 2]),
        ("caption like '%d%' or key = 'k0'", [0, 3]),
        ("regexp_matches(caption, '^[ab]$')", [0, 1]),
        ("WIDTH between 1 and 2", [1, 2]),
        ("width / 0 is null or caption is null", []),
    ],
)
def test_conditions_select(tmp_path: Path, text: str, numbers: list[int]) -> None:
    connection = pool_of(tmp_path, ["a", "b", "c", "d", "e"])
    found = connection.table("samples").filter(condition(connection, text)).project("width")
    assert sorted(n for (n,) in found.fetchall()) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht > 2", "no column 'widht'; did you mean 'width'\\? columns: shard, row, key, width"),
        ("x > 2", "no column 'x'; columns"),
        ("width", "is BIGINT, no condition"),
        ("width > 2, true", "single expression"),
        ("true; drop table kept", "more than one statement"),
        ("true) or (true", "syntax error"),
        ("width >", "syntax error"),
        ("", "'':"),
        ("(select count(*) from read_text('/etc/passwd')) > 0", "holds a query"),
        ("exists (from kept)", "holds a query"),
        ("key in (select key from kept)", "holds a query"),
        ("random() < 0.5", r"random\(\) does not depend"),
        ("upper(key) = 'K' and RANDOM() < 0.5", r"random\(\) does not depend"),
        ("now() > timestamp '2020-01-01'", r"now\(\)"),
        ("len(repeat('a', 3000000000)) > 1", r"repeat\(\) may make values of any size"),
        ("len(LPAD(key, 3000000000, 'x')) > 1", r"lpad\(\) may make"),
        ("len(range(3000000000)) > 1", r"range\(\) may make"),
        ("count(*) > 1", "aggregates"),
        ("row_number() over () > 1", "window"),
        ("key > 5", "VARCHAR"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    connection = pool_of(tmp_path, ["a", "b"])
    with pytest.raises(DataError, match=message) as error:
        condition(connection, text)
    assert "\n" not in str(error.value) and "--where" in str(error.value)
    assert connection.execute("SELECT count(*) FROM kept").fetchone() == (2,)
