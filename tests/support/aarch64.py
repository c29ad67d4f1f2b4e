"""Runs the CPU kernels' NEON code on another processor: their calls go to a program that QEMU runs.

The program has no Python: `passed_calls.cc` reads a call's operands from a pipe, and writes its results
to another.
"""

import atexit
import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from jllama.files.paths import cache_dir, locked
from jllama.machine.native import compiling, packaged

HERE = Path(__file__).parent
PASSED = HERE / "passed_calls.cc"
ALL_PARTS = HERE / "all_parts.cc"  # each part by itself would read the same headers again
# For variants of `packaged.VARIANTS` one of QEMU's processors that has no more: other instructions end it.
PROCESSORS = {"neon_dotprod": "cortex-a76", "neon": "cortex-a53"}
_RUNNING: list[subprocess.Popen[bytes]] = []


def lacking() -> str | None:
    """Why NEON can't be emulated here, or None."""
    if platform.machine() != "x86_64":
        return "NEON by QEMU: on x86-64 alone; on an aarch64 machine the plain run is NEON's"
    if not (_emulator() and shutil.which("aarch64-linux-gnu-g++") and shutil.which("g++")):
        return "NEON by QEMU: apt-get install qemu-user g++-aarch64-linux-gnu, then pytest -m neon"
    return None


def connected(variant: str, optimised: str = "-O1", processor: str = "") -> ctypes.CDLL:
    """A library as the kernels' own, whose calls a new program under QEMU does.

    Args:
      variant: of `PROCESSORS`.
      optimised: the compiler's flag; with -O0 many calls take twice as long under QEMU.
      processor: instead of the variant's.
    """
    command = [_emulator(), "-cpu", processor or PROCESSORS[variant], _program(variant, optimised)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    _RUNNING.append(running)
    with tempfile.TemporaryDirectory() as place:  # of its own: one that is loaded already has its program
        library = ctypes.CDLL(shutil.copy(_passing(), place))
    library.jllama_connect(running.stdout.fileno(), running.stdin.fileno())
    return library


@atexit.register
def _end() -> None:
    for running in _RUNNING:
        with running:  # closes its pipes, waits
            running.kill()


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def _program(variant: str, optimised: str) -> Path:
    """The kernels with all their parts, linked for a machine without libraries."""
    flags = next(found.flags for found in packaged.VARIANTS["aarch64"] if found.name == variant)
    parts = "".join(f"P({compiling.symbol(part)})" for part in compiling.PARTS)
    sources = (PASSED, ALL_PARTS, packaged.HERE / "kernels.cc")
    options = (*flags, optimised, "-static", "-w", f"-DJLLAMA_PARTS(P)={parts}")
    return _built("aarch64-linux-gnu-g++", options, sources, f"{variant}{optimised}")


def _passing() -> Path:
    return _built("g++", ("-O1", "-shared"), (PASSED,), "passing")


@functools.cache
def _built(compiler: str, options: tuple[str, ...], sources: tuple[Path, ...], name: str) -> Path:
    """What a compiler makes of sources, kept among the kernels; one process of a run compiles."""
    flags = (
        *compiling.FLAGS,
        *compiling.GCC_FLAGS,
        *options,
        f"-I{packaged.HERE}",
        f"-I{packaged.headers()}",
    )
    told = "\0".join((compiler, *flags)).encode() + b"".join(map(Path.read_bytes, sources))
    key = hashlib.sha256(told + packaged.source() + packaged.interface()).hexdigest()[:24]
    whole = cache_dir("kernels") / f"tests-{name}-{key}"
    with locked(f"kernels-{whole.name}"):
        if not whole.exists():
            with tempfile.TemporaryDirectory(dir=whole.parent) as scratch:
                _compile(compiler, flags, sources, Path(scratch), whole)
    return whole


def _compile(compiler: str, flags: tuple[str, ...], sources: tuple[Path, ...], scratch: Path, whole: Path):
    objects = [scratch / f"{source.stem}.o" for source in sources]
    pairs = zip(sources, objects, strict=True)
    compiling._run_all([[compiler, *flags, "-c", str(source), "-o", str(out)] for source, out in pairs])
    made = scratch / whole.name
    compiling._run_all([[compiler, *flags, *map(str, objects), "-o", str(made)]])
    made.rename(whole)
