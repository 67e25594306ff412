"""What no input may bring about: an error that is not the user's, a hang, a write outside."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from clipkit.data.bad_samples import BadSample
from clipkit.errors import ClipkitError

CPU_S, WAIT_S, CRASH_S = 5, 60, 120  # of one case: computing, waiting, and hanging in C code
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2,
          "os.symlink": 2, "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip
_NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
_allowed: Path | None = None  # writes outside are an error while a case runs


class Hang(BaseException):
    """A case took too long; no `except Exception` swallows it."""


class Escape(BaseException):
    """A case wrote outside its folder, or started a process."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in _NEVER:
        raise Escape(f"{event}: {arguments}")
    paths: tuple[Any, ...] = ()
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & _WRITES
        paths = (path,) if writes else ()
    elif event in _PATHS and not any(isinstance(a, int) and a > 2 for a in arguments[-1:]):
        paths = arguments[: _PATHS[event]]  # relative to an open folder: its rmtree was watched
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)) and os.fspath(path) not in ("/dev/null",):
            real = Path(os.path.realpath(os.fsdecode(path)))
            if _allowed not in (real, *real.parents):
                raise Escape(f"{event}: {path!r}")


sys.addaudithook(_watch)


def _too_long(number: int, frame: object) -> None:
    raise Hang(f"more than {CPU_S} s of computing, or {WAIT_S} s of waiting")


@contextmanager
def bounds(folder: Path) -> Iterator[None]:
    """One case: an error of the user or success, within seconds, and writing in `folder` only."""
    global _allowed
    before = {n: signal.signal(n, _too_long) for n in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAIT_S)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    faulthandler.dump_traceback_later(CRASH_S, exit=True, file=sys.__stderr__)
    _allowed = folder.resolve()
    tempfile.tempdir = str(_allowed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ClipkitError, BadSample) as error:
        assert str(error) and len(str(error)) < 4000, "one line that names the thing"
        if isinstance(error, ClipkitError):
            assert "\n" not in str(error), str(error)
    finally:
        _allowed = tempfile.tempdir = None
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def cases(count: int) -> Callable[[Any], Any]:
    """Settings of a fuzz test: so many examples, the same each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


def some_or_many(some: int, many: int) -> pytest.MarkDecorator:
    """The argument `count`: few by default, many when slow."""
    values = [pytest.param(some, id="some"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", values)


def folder_of_its_own(root: Path) -> Path:
    """A new folder for one case."""
    return Path(tempfile.mkdtemp(dir=root))
