"""Compiles the C++ once for this machine, keeps the library in the cache directory and loads it.

A wheel may bring libraries (`packaged`); where one of them suits, nothing is compiled.
"""

import ctypes
import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import jax

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, locked
from jllama.kernels import kept
from jllama.kernels.cpu import packaged

SOURCES = tuple(sorted(packaged.HERE.glob("*.cc")))  # compiled at the same time
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-fPIC", "-pthread", "-fno-math-errno")
GCC_FLAGS = ("-fvect-cost-model=dynamic",)  # clang does so by itself and refuses the flag
COMPILERS = ("c++", "g++", "clang++")
MOST_THREADS = 256
PATIENCE = 600  # seconds: a busy machine compiles for minutes
TARGETS = ("jllama_forward", "jllama_product", "jllama_zeros", "jllama_copy_row")
_ALONE = threading.Lock()
GAIN = "the CPU runs through XLA alone, which is several times slower"


def load() -> ctypes.CDLL | str:
    """The library with its FFI targets registered, or in one line why there is none. From any thread.

    Raises:
      JllamaError: `$JLLAMA_THREADS` or `$JLLAMA_ISA` can't be followed.
    """
    with _ALONE:
        return _loaded()


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    threads(), packaged.suited()
    try:
        library = ctypes.CDLL(str(packaged.library() or compiled()))
    except (JllamaError, OSError) as error:
        return f"no CPU kernels ({error}): {GAIN}"
    register(library)
    return library


def register(library: ctypes.CDLL, suffix: str = "") -> None:
    """Makes the library's functions known to XLA; tests give each instruction set a suffix of its own."""
    library.jllama_threads(threads())
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
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def describe() -> str:
    """What the kernels run with: `avx512_bf16, 2 threads`."""
    best, count = packaged.suited()[:1], threads()
    return ", ".join([*(variant.isa for variant in best), f"{count} thread{'s' * (count != 1)}"])


def compiled(machine: tuple[str, ...] | None = None) -> Path:
    """The library's path, compiled first if this source has not been for this machine.

    `$CXX` chooses the compiler, `$JLLAMA_CXXFLAGS` adds flags.

    Args:
      machine: the compiler's flags for the instruction set; those of this machine when None.

    Raises:
      JllamaError: no compiler, or it fails.
    """
    compiler = _compiler()
    machine = machine if machine is not None else native_flags()
    flags = (*FLAGS, *machine, *_more_flags())
    told = (*compiler, *flags, jax.__version__, packaged.processor())
    key = hashlib.sha256("\0".join(told).encode() + packaged.source())
    name = f"cpu-{key.hexdigest()[:24]}"
    return _kept(name) or _compiled_alone(compiler, flags, name)


def packages(directory: Path, names: Sequence[str] = ()) -> list[Path]:
    """Compiles the variants of `packaged` into a directory, for a wheel.

    Args:
      directory: where they go.
      names: which of them; all when there are none.

    Raises:
      JllamaError: no such variant, no compiler, or it fails.
    """
    found = packaged.variants()
    for name in names:
        if name not in (known := [variant.name for variant in found]):
            raise JllamaError(f"no instruction set {name!r}; there are {', '.join(known)}")
    found = tuple(variant for variant in found if not names or variant.name in names)
    for variant in found:
        flags = (*FLAGS, *variant.flags, *_more_flags())
        _compile(_compiler(), flags, variant.name, directory).rename(directory / variant.file)
    return [directory / variant.file for variant in found]


def _more_flags() -> tuple[str, ...]:
    return (*os.environ.get("JLLAMA_CXXFLAGS", "").split(), f"-I{jax.ffi.include_dir()}")


def _compiler() -> list[str]:
    """`$CXX`, which may be several words ("ccache g++"), else the first compiler there is."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise JllamaError(f"CXX={os.environ['CXX']} is no command: {error}") from None
    found = chosen or [path for path in map(shutil.which, COMPILERS) if path][:1]
    if not found:
        raise JllamaError("no C++ compiler; install g++")
    return found


def _kept(name: str) -> Path | None:
    """The library, if it was compiled before and is as it was: a damaged one would end the process."""
    for library in cache_dir("kernels", writable=False).glob(f"{name}-*.so"):
        if library.stem == f"{name}-{_digest(library)}":
            kept.touch(library)
            return library
    return None


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:24]


def native_flags() -> tuple[str, ...]:
    """The compiler's for this machine, or for the instruction set that `$JLLAMA_ISA` names."""
    if os.environ.get("JLLAMA_ISA"):
        return packaged.suited()[0].flags
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _compiled_alone(compiler: list[str], flags: tuple[str, ...], name: str) -> Path:
    """One process compiles; those that waited for it find the library."""
    with locked("kernels") as alone:
        if found := _kept(name):
            return found
        directory = cache_dir("kernels")
        if alone:
            kept.sweep(directory, useless=directory.glob(f"{name}-*.so"))
        return _compile(compiler, flags, name, directory)


def _compile(compiler: list[str], flags: tuple[str, ...], name: str, directory: Path) -> Path:
    """In a directory of its own, renamed when it is whole."""
    try:
        with tempfile.TemporaryDirectory(prefix=kept.SCRATCH, dir=directory) as scratch:
            version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
            flags = flags if "clang" in version.stdout else (*flags, *GCC_FLAGS)
            objects = [Path(scratch, path.stem + ".o") for path in SOURCES]
            pairs = zip(SOURCES, objects, strict=True)
            _run_all([[*compiler, *flags, "-c", str(path), "-o", str(out)] for path, out in pairs])
            whole = Path(scratch, "whole.so")
            _run_all([[*compiler, *flags, "-shared", *map(str, objects), "-o", str(whole)]])
            library = directory / f"{name}-{_digest(whole)}.so"
            _put(whole, library)
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JllamaError(f"cannot write to {directory}: {error.strerror}; free some space") from None
        raise JllamaError(f"{shlex.join(compiler)} failed: {error}") from None
    return library


def _put(whole: Path, library: Path) -> None:
    """On the disk before it has its name."""
    os.chmod(whole, 0o700)
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(whole, library)


def _run_all(commands: list[list[str]]) -> None:
    """At the same time; the first error of the first that fails is raised."""
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        for process in running:
            message = process.communicate(timeout=PATIENCE)[1]
            if process.returncode:
                first = next((line for line in message.splitlines() if "error" in line), message[:200])
                raise subprocess.SubprocessError(first.strip() or process.returncode)
    finally:
        for process in running:
            process.kill()  # does nothing to one that has ended
            with process:  # closes its pipe, waits
                pass
