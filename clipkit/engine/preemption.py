"""SIGTERM and SIGUSR1 set a flag; the step spreads it, so all ranks save and stop after the same step."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Whether this process was asked to stop. Installed by the trainer for its duration."""

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in self._SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the embedding program handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
