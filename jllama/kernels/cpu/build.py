"""Loads the compiled C++: a wheel's (`packaged`), or what `compiling` compiles when it is first needed."""

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import jax

from jllama.errors import JllamaError
from jllama.machine.native import packaged
from jllama.machine.native.compiling import CORE, PARTS, compiled, cores, symbol

MOST_THREADS = 256
TARGETS = ("jllama_forward", "jllama_product", "jllama_zeros", "jllama_copy_row")
GAIN = "the CPU runs through XLA alone, which is several times slower"
_ALONE, _BEGINNING = threading.RLock(), threading.Lock()
_SLOTS = threading.Semaphore(cores())  # that many compilers at the same time
_UNITS: dict[str, Future[Path]] = {}
_THERE, _WANTED = set[str](), set[str]()  # parts that are in the library, and those that are to be
_BROKEN: dict[str, str] = {}  # parts that can't be, and why


def load(parts: Sequence[str] = ()) -> ctypes.CDLL | str:
    """The library with its FFI targets registered, or in one line why there is none. From any thread.

    Args:
      parts: those of `compiling.PARTS` that will be called. They are compiled meanwhile, and `settle` waits.

    Raises:
      JllamaError: `$JLLAMA_THREADS` or `$JLLAMA_ISA` can't be followed.
    """
    lacking = [part for part in parts if part not in _THERE]
    if packaged.library() is None:
        for unit in (CORE, *lacking):
            _begun(unit)
    with _ALONE:
        library = _loaded()
        reasons = (_BROKEN[part] for part in lacking if part in _BROKEN)
        _WANTED.update(set(lacking) - _THERE - set(_BROKEN))
        return next(reasons, library)


def settle() -> None:
    """Waits for the parts that are wanted: before a program is called.

    Raises:
      JllamaError: one can't be compiled or loaded though the core was.
    """
    while _WANTED:
        with _ALONE:
            wanted = [*_WANTED]
            _WANTED.clear()
            reasons = [*filter(None, map(_added, wanted))]
        if reasons:
            raise JllamaError(reasons[0])


def broken() -> bool:
    """Whether a part could not be compiled or loaded though the core was."""
    return bool(_BROKEN)


def _begun(unit: str) -> Future[Path]:
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


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    threads(), packaged.suited()
    try:
        library = ctypes.CDLL(str(packaged.library() or _begun(CORE).result()))
    except (JllamaError, OSError) as error:
        return f"no CPU kernels ({error}): {GAIN}"
    register(library)
    _THERE.update(part for part in PARTS if hasattr(library, symbol(part)))  # all, or none
    library.jllama_load_part(_load_part)
    return library


def _added(part: str) -> str | None:
    """Puts a part into the library; why it can't."""
    library = _loaded()
    if isinstance(library, str) or part in _THERE:
        return None
    try:
        _connect(library, ctypes.CDLL(str(_begun(part).result())), part)
    except (JllamaError, OSError) as error:
        _BROKEN[part] = f"a part of the CPU kernels is lacking ({error}); JLLAMA_KERNELS=0 does without them"
        return _BROKEN[part]
    _THERE.add(part)
    return None


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _load_part(number: int) -> None:
    """For a program that an earlier process traced: in this one nobody asked for what it calls."""
    with _ALONE:
        _added(PARTS[number])


def _connect(library: ctypes.CDLL, part: ctypes.CDLL, name: str) -> None:
    library.jllama_part(PARTS.index(name), ctypes.cast(getattr(part, symbol(name)), ctypes.c_void_p))


def register(library: ctypes.CDLL, suffix: str = "") -> None:
    """Makes the library's functions known to XLA; tests give each instruction set a suffix of its own."""
    library.jllama_threads(threads())
    for part in PARTS:
        if hasattr(library, symbol(part)):
            _connect(library, library, part)
    for target in TARGETS:
        pointer = jax.ffi.pycapsule(getattr(library, target))
        jax.ffi.register_ffi_target(target + suffix, pointer, platform="cpu")


def threads() -> int:
    """`$JLLAMA_THREADS`, else the cores that this process may use.

    Raises:
      JllamaError: it is no number from 1 to `MOST_THREADS`.
    """
    if chosen := os.environ.get("JLLAMA_THREADS", ""):
        if not chosen.isascii() or not chosen.isdecimal() or not 0 < int(chosen[:9]) <= MOST_THREADS:
            raise JllamaError(f"JLLAMA_THREADS={chosen[:80]!r}: give a number from 1 to {MOST_THREADS}")
        return int(chosen)
    return cores()


def describe() -> str:
    """What the kernels run with: `avx512_bf16, 2 threads`."""
    best, count = packaged.suited()[:1], threads()
    return ", ".join([*(variant.isa for variant in best), f"{count} thread{'s' * (count != 1)}"])
