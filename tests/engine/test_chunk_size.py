"""The largest chunk, from a made-up memory."""

from __future__ import annotations

import pytest

from clipkit.engine import trainer
from clipkit.engine.chunk_size import largest_chunk
from tests.tiny_model import tiny_batch


@pytest.mark.parametrize(
    ("rows", "room", "wanted"),
    [
        (1024, 10**9, 1024),  # all fit
        (1024, 100 * 1300 + 7000, 100),  # cut at 100: 11 chunks of 94
        (1024, 1, 1),  # none fit: one at a time, and the GPU will say so
        (5, 1, 5),  # too few to measure twice
    ],
)
def test_fits_and_is_even(rows: int, room: int, wanted: int) -> None:
    def graph_bytes(n: int) -> int:
        return 5000 + 1000 * n

    chunk = largest_chunk(rows, graph_bytes, room)
    assert chunk <= wanted
    assert chunk > wanted * 0.9 or chunk == 1
    count = -(-rows // chunk)
    assert chunk * count - rows < count, "equal chunks, the last at most `count` short"


def test_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class _Run:
        strategy = world = None

        class train_step:  # noqa: N801
            chunk_size: object = "auto"

        class log:  # noqa: N801
            say = staticmethod(said.append)

    calls = iter([7])
    monkeypatch.setattr(trainer, "measured_chunk", lambda *_: next(calls))
    for _ in range(2):
        trainer.settle_chunk_size(_Run, tiny_batch(16))  # type: ignore[arg-type]
    assert _Run.train_step.chunk_size == 7
    assert said == ["train.chunk_size=auto: 7 of 16 samples fit"]
