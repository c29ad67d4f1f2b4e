"""Ctrl-C and SIGTERM at any moment: an exception where that is safe, or else a quiet end."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Any, NoReturn

from jllama.machine.native import compiling

EXIT_CODE, TERMINATED = 130, 143
_raised: list[int] = []  # signals that became exceptions


class Terminated(SystemExit):
    """SIGTERM came: unlike a `sys.exit` in what a user wrote, nobody takes it for a mistake."""


def catch() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt and SIGTERM a `Terminated`, wherever that is safe."""
    signal.signal(signal.SIGINT, _raise_or_leave)
    signal.signal(signal.SIGALRM, _raise_or_leave)
    signal.signal(signal.SIGTERM, _raise_or_leave)
    sys.unraisablehook = _again


def check() -> None:
    """Between two steps of what a signal ends: raises again what C code swallowed, as JAX's does now and then
    while it traces.

    Raises:
      KeyboardInterrupt, Terminated: a signal came, and here we still are.
    """
    if _raised:
        _raise(_raised[-1])


def leave(code: int) -> NoReturn:
    """Ends the process at once: Python takes itself down piece by piece, and a JAX cut off crashes there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.flush()
    _exit(code)


def end(code: int) -> NoReturn:
    """Ends the process as `sys.exit` does, but leaves its memory to the system: Python would take down module
    after module, and XLA program after program, for a quarter of a second.

    Threads are waited for, and what was registered for the end is done. A profiler or a debugger, which wants
    to hear of it, sees an ordinary end.
    """
    if sys.gettrace() is not None or sys.getprofile() is not None:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    os._exit(code)


def _exit(code: int) -> NoReturn:
    compiling.end()
    os._exit(code)


def _raise_or_leave(number: int, frame: FrameType | None) -> None:
    """Raises, but not inside an import: NumPy's and JAX's C code turn that into an ImportError or a crash."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _exit(TERMINATED if number == signal.SIGTERM else EXIT_CODE)
        frame = frame.f_back
    _raised.append(number)
    # Between `open` and the `with` that would close it a file is nobody's: who ended us is not told of it.
    warnings.simplefilter("ignore", ResourceWarning)
    _raise(number)


def _raise(number: int) -> NoReturn:
    if number == signal.SIGTERM:
        raise Terminated(TERMINATED)
    raise KeyboardInterrupt


def _again(unraisable: Any) -> None:
    """What a destructor or a callback of the collector raises gets lost there: Ctrl-C comes once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    elif issubclass(unraisable.exc_type, SystemExit):
        _exit(TERMINATED)
    else:
        sys.__unraisablehook__(unraisable)
