"""Tables in logs keep their columns."""

from clipkit.cli.console import table_console


def test_a_log_gets_room_and_columns_is_obeyed(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_console().width == 160
    monkeypatch.setenv("COLUMNS", "90")
    assert table_console().width == 90
