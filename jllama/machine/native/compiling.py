"""Compiles the C++ for this machine and keeps the libraries in the cache directory.

There is a core, and parts for one kind of weights or caches each. A model needs few of them, and the compiler
takes longer than all the rest of a first start.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir, locked
from jllama.machine.native import kept, packaged
from jllama.machine.native.cores import cores

FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-fPIC", "-pthread", "-fno-math-errno")
GCC_FLAGS = ("-fvect-cost-model=dynamic",)  # clang does so by itself and refuses the flag
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 600  # seconds: a busy machine compiles for minutes
CORE = "core"
_STARTING = threading.RLock()  # one that a signal's handler interrupts has it already
_RUNNING = set["subprocess.Popen[str]"]()
_ENDED: list[bool] = []
TYPES = {"float32": "float", "bfloat16": "bf16", "float16": "half"}
FORMS = ("eight_bits", "four_bits", "of_levels", "six_bits", "halves", "six_halves")
# In the order of their numbers in parts.h.
PARTS = (
    *(f"attention_{dtype}" for dtype in TYPES),
    *(f"dense_{dtype}" for dtype in TYPES),
    *FORMS,
)


def symbol(part: str) -> str:
    """The name of a part's function."""
    return f"jllama_{part}"


def _source(unit: str) -> tuple[str, ...]:
    """What the compiler is told of a unit: its file and what that is compiled for."""
    if unit == CORE:
        return (str(packaged.HERE / "kernels.cc"),)
    named = f"-DJLLAMA_PART={symbol(unit)}"
    if unit in FORMS:
        return str(packaged.HERE / "quantised.cc"), named, f"-DJLLAMA_FORM={unit.upper()}"
    file, dtype = unit.split("_")
    return str(packaged.HERE / f"{file}.cc"), named, f"-DJLLAMA_TYPE={TYPES[dtype]}"


def compiled(machine: tuple[str, ...] | None = None, units: Sequence[str] = (CORE, *PARTS)) -> Path:
    """The path of a library of these units, compiled first if this source has not been for this machine.

    `$CXX` chooses the compiler, `$JLLAMA_CXXFLAGS` adds flags.

    Args:
      machine: the compiler's flags for the instruction set; those of this machine when None.
      units: the core, parts.

    Raises:
      JllamaError: no compiler, or it fails.
    """
    compiler = _compiler()
    machine = machine if machine is not None else native_flags()
    flags = (*FLAGS, *machine, *_more_flags())
    told = (*compiler, *flags, *units, packaged.processor())
    key = hashlib.sha256("\0".join(told).encode() + packaged.source() + packaged.interface())
    name = f"cpu-{units[0] if len(units) == 1 else 'all'}-{key.hexdigest()[:24]}"
    return _kept(name) or _compiled_alone(compiler, flags, units, name)


def packages(directory: Path, names: Sequence[str] = ()) -> list[Path]:
    """Compiles the variants of `packaged` into a directory, for a wheel: all units in one library.

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
        library = _compile(_compiler(), flags, (CORE, *PARTS), variant.name, directory)
        library.rename(directory / variant.file)
    return [directory / variant.file for variant in found]


def _more_flags() -> tuple[str, ...]:
    return (*os.environ.get("JLLAMA_CXXFLAGS", "").split(), f"-I{packaged.headers()}")


def _compiler() -> tuple[str, ...]:
    """`$CXX`, which may be several words ("ccache g++"), else the first compiler there is."""
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise JllamaError(f"CXX={os.environ['CXX']} is no command: {error}") from None
    found = chosen or [path for path in map(shutil.which, COMPILERS) if path][:1]
    if not found:
        raise JllamaError("no C++ compiler; install g++")
    return tuple(found)


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


def _compiled_alone(
    compiler: tuple[str, ...], flags: tuple[str, ...], units: Sequence[str], name: str
) -> Path:
    """One process compiles; those that waited for it find the library."""
    with locked(f"kernels-{name.split('-')[1]}") as alone:
        if found := _kept(name):
            return found
        directory = cache_dir("kernels")
        kept.sweep(directory, useless=directory.glob(f"{name}-*.so") if alone else ())
        return _compile(compiler, flags, units, name, directory)


def _compile(
    compiler: tuple[str, ...], flags: tuple[str, ...], units: Sequence[str], name: str, directory: Path
) -> Path:
    """In a directory of its own, renamed when it is whole."""
    try:
        flags = flags if _is_clang(compiler) else (*flags, *GCC_FLAGS)
        with tempfile.TemporaryDirectory(prefix=kept.SCRATCH, dir=directory) as scratch:
            whole = Path(scratch, "whole.so")
            sources = [_source(unit) for unit in units]
            if len(units) > 1:
                objects = [str(Path(scratch, unit + ".o")) for unit in units]
                pairs = zip(sources, objects, strict=True)
                _run_all([[*compiler, *flags, "-c", *source, "-o", out] for source, out in pairs])
                sources = [(out,) for out in objects]
            words = [word for source in sources for word in source]
            _run_all([[*compiler, *flags, "-shared", *words, "-o", str(whole)]])
            library = directory / f"{name}-{_digest(whole)}.so"
            _put(whole, library)
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JllamaError(f"cannot write to {directory}: {error.strerror}; free some space") from None
        raise JllamaError(f"{shlex.join(compiler)} failed: {error}") from None
    return library


@functools.cache
def _is_clang(compiler: tuple[str, ...]) -> bool:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60)
    return "clang" in version.stdout


def _put(whole: Path, library: Path) -> None:
    """On the disk before it has its name."""
    os.chmod(whole, 0o700)
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(whole, library)


def _run_all(commands: list[list[str]]) -> None:
    """As many at the same time as there are cores; the first error of the first that fails is raised."""
    at_once = cores()
    for start in range(0, len(commands), at_once):
        _run_together(commands[start : start + at_once])


def _run_together(commands: list[list[str]]) -> None:
    running = [_started(command) for command in commands]
    try:
        for process in running:
            message = process.communicate(timeout=PATIENCE)[1]
            if process.returncode:
                first = next((line for line in message.splitlines() if "error" in line), message[:200])
                raise subprocess.SubprocessError(first.strip() or process.returncode)
    finally:
        for process in running:
            _kill(process)
            with process:  # closes its pipe, waits
                pass
            _RUNNING.discard(process)


def _started(command: list[str]) -> "subprocess.Popen[str]":
    """In a group of its own: g++ has others do its work, which would go on without it."""
    pipes: Any = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with _STARTING:
        if _ENDED:
            raise subprocess.SubprocessError("this process ends")
        _RUNNING.add(process := subprocess.Popen(command, process_group=0, **pipes))
    return process


def _kill(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


@atexit.register
def end() -> None:
    """This process ends: so do its compilers, and none begins any more. What they left is swept later."""
    with _STARTING:
        _ENDED.append(True)
    for process in [*_RUNNING]:
        _kill(process)
