"""A signal sets a flag; the step spreads it, so all ranks save and stop after the same step."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

# What signal.signal gives and takes; None: installed by C code.
_Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignal:
    """Whether this process was asked to stop. Installed by the trainer for its duration."""

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> StopSignal:
        for number in self._SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the embedding program handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:  # Ctrl-C twice: at once
            raise KeyboardInterrupt
        self.received = True
