"""A signal sets a flag; the old handlers come back."""

import os
import signal

from clipkit.engine.preemption import StopSignal


def test_sigterm_and_sigusr1_are_noted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with StopSignal() as stop:
            assert not stop.received
            os.kill(os.getpid(), number)
            assert stop.received
    assert signal.getsignal(signal.SIGTERM) is before
