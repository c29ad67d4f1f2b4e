"""Compiles `kernels.cc` once for this machine, keeps the library in the cache directory and loads it."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from jllama.errors import JllamaError
from jllama.paths import cache_dir

SOURCE = Path(__file__).with_name("kernels.cc")
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-shared", "-fPIC", "-pthread", "-fno-math-errno")
GCC_FLAGS = ("-fvect-cost-model=dynamic",)  # clang does so by itself and refuses the flag
COMPILERS = ("c++", "g++", "clang++")
TARGETS = ("jllama_forward", "jllama_product")
GAIN = "the CPU runs through XLA alone, which is two to five times slower on quantised weights"


@functools.cache
def load() -> ctypes.CDLL | str:
    """The library with its FFI targets registered, or in one line why there is none."""
    if os.environ.get("JLLAMA_CPU_KERNELS", "1") == "0":
        return f"JLLAMA_CPU_KERNELS=0: {GAIN}"
    try:
        library = ctypes.CDLL(str(compiled()))
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
    """`$JLLAMA_THREADS`, else the cores that this process may use."""
    chosen = os.environ.get("JLLAMA_THREADS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return min(int(chosen), 256)
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def compiled(machine: tuple[str, ...] | None = None) -> Path:
    """The library's path, compiled first if this source has not been for this machine.

    `$CXX` chooses the compiler, `$JLLAMA_CXXFLAGS` adds flags.

    Args:
      machine: the compiler's flags for the instruction set; those of this machine when None.

    Raises:
      JllamaError: no compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise JllamaError("no C++ compiler; install g++")
    machine = machine if machine is not None else native_flags()
    more = os.environ.get("JLLAMA_CXXFLAGS", "").split()
    flags = (*FLAGS, *machine, *more, f"-I{jax.ffi.include_dir()}")
    key = hashlib.sha256("\0".join((compiler, *flags, jax.__version__, _cpu())).encode() + _sources())
    library = cache_dir("kernels") / f"cpu-{key.hexdigest()[:24]}.so"
    if not library.exists():
        _compile(compiler, flags, library)
    return library


def _sources() -> bytes:
    return b"".join(path.read_bytes() for path in [*sorted(SOURCE.parent.glob("*.h")), SOURCE])


def native_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    """Into a file of its own, renamed when it is whole: two processes may do this at once."""
    handle, scratch = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(handle)
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20).stdout
        flags = flags if "clang" in version else (*flags, *GCC_FLAGS)
        done = subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", scratch], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise JllamaError(f"{compiler} failed: {first.strip()}")
        os.chmod(scratch, 0o700)
        os.replace(scratch, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JllamaError(f"{compiler} failed: {error}") from None
    finally:
        Path(scratch).unlink(missing_ok=True)


def _cpu() -> str:
    """What tells this processor's instruction set from another's: the cache may lie on a shared disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
