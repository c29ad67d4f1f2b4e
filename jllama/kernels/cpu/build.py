"""Loads the compiled C++: a wheel's (`packaged`), or what is compiled when it is first needed (`units`)."""

import ctypes
import functools
import os
import threading
from collections.abc import Sequence

import jax

from jllama.errors import JllamaError
from jllama.machine.native import packaged
from jllama.machine.native.compiling import CORE, PARTS, symbol
from jllama.machine.native.cores import cores
from jllama.machine.native.units import begun

MOST_THREADS = 256
TARGETS = ("jllama_forward", "jllama_product", "jllama_zeros", "jllama_copy_row")
GAIN = "the CPU runs through XLA alone, which is several times slower"
_ALONE = threading.RLock()
_THERE, _WANTED = set[str](), set[str]()  # parts that are in the library, and those that are to be
_BROKEN: dict[str, str] = {}  # parts that can't be, and why


def load(parts: Sequence[str] = ()) -> ctypes.CDLL | str:
    """The library with its FFI targets registered, or in one line why there is none. From any thread.

    Args:
      parts: those of `compiling.PARTS` that will be called. They are compiled meanwhile, and `settle` waits.

    Raises:
      JllamaError: `$JLLAMA_THREADS` or `$JLLAMA_ISA` can't be followed.
    """
    lacking = _begin(parts)
    with _ALONE:
        library = _loaded()
        reasons = (_BROKEN[part] for part in lacking if part in _BROKEN)
        _WANTED.update(set(lacking) - _THERE - set(_BROKEN))
        return next(reasons, library)


def reason(parts: Sequence[str] = (), *, waits: bool = True) -> str | None:
    """`load`'s reason why there are no kernels with these parts, or None.

    Args:
      parts: as of `load`.
      waits: False: None while the core is being compiled, too. Who relied on that asks again.
    """
    if not waits and packaged.library() is None:
        _begin(parts)
        if not begun(CORE).done():
            return None
    library = load(parts)
    return library if isinstance(library, str) else None


def _begin(parts: Sequence[str]) -> list[str]:
    """Those that are not in the library; they are compiled if need be, and the core."""
    lacking = [part for part in parts if part not in _THERE]
    if packaged.library() is None:
        for unit in (CORE, *lacking):
            begun(unit)
    return lacking


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


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    threads(), packaged.suited()
    try:
        library = ctypes.CDLL(str(packaged.library() or begun(CORE).result()))
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
        _connect(library, ctypes.CDLL(str(begun(part).result())), part)
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
