"""The table shows every metric and its interval."""

from clipkit.eval.base import EvalResult
from clipkit.eval.table import results_table


def test_rows() -> None:
    result = EvalResult("t", "digits", {"acc1": 0.5, "n": 7}, {"acc1": (0.25, 0.75)})
    table = results_table([result])
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells == [["digits", "digits"], ["acc1", "n"], ["0.5000", "7"], ["0.2500 .. 0.7500", ""]]
