"""When something that happens every n steps happens."""

from clipkit.engine.run import due


def test_due() -> None:
    assert [s for s in range(1, 7) if due(3, s)] == [3, 6]
    assert not due(0, 5)
