import pytest

from tests.data_tools.in_process import use_serial


@pytest.fixture(autouse=True)
def _serial(monkeypatch: pytest.MonkeyPatch) -> None:
    use_serial(monkeypatch)
