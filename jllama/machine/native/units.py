"""The core and the parts as they are compiled: each by a thread of its own, once in a process."""

import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path

from jllama.errors import JllamaError
from jllama.machine import devices
from jllama.machine.native import packaged
from jllama.machine.native.compiling import CORE, compiled
from jllama.machine.native.cores import cores

_BEGINNING = threading.Lock()
_SLOTS = threading.Semaphore(cores())  # that many compilers at the same time
_UNITS: dict[str, Future[Path]] = {}


def begun(unit: str) -> Future[Path]:
    """The library of a unit, which a thread compiles if it was not; no process waits for that at its end."""
    with _BEGINNING:
        if unit not in _UNITS:
            _UNITS[unit] = Future()
            words: tuple[str, Future[Path]] = (unit, _UNITS[unit])
            threading.Thread(target=_find, args=words, name=f"jllama {unit}", daemon=True).start()
        return _UNITS[unit]


def _find(unit: str, found: Future[Path]) -> None:
    try:
        with _SLOTS:
            found.set_result(compiled(units=(unit,)))
    except BaseException as error:  # for who waits
        found.set_exception(error)


def expect(dtype: str, device: str) -> None:
    """Begins what each model needs that runs in a dtype on a CPU, where no wheel has it.

    Args:
      dtype: of the cache. What fails is told when it is asked for.
      device: as of `devices.configure`.
    """
    if not devices.is_likely_cpu(device):
        return

    with contextlib.suppress(JllamaError):
        if packaged.library() is None:
            for unit in (CORE, f"attention_{dtype}"):
                begun(unit)
