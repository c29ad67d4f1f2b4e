"""Libraries that a wheel brings: the C++ compiled for several instruction sets; a start takes the best.

A source tree has none. `hatch_build.py` makes them where `JLLAMA_WHEEL_KERNELS` says so.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import os
import platform
import re
from pathlib import Path

from jllama.errors import JllamaError

HERE = Path(__file__).resolve().parents[2] / "kernels" / "cpu"
BUILT = HERE / "built"


@dataclasses.dataclass(frozen=True)
class Variant:
    """An instruction set: its name, words of /proc/cpuinfo where it is there, the compiler's flags."""

    name: str
    needs: str
    flags: tuple[str, ...]

    @property
    def file(self) -> str:
        """Of this source and this version of XLA's interface, which refuses libraries of any other."""
        key = hashlib.sha256(source() + interface())
        return f"{self.name}-{key.hexdigest()[:24]}.so"

    @property
    def isa(self) -> str:
        """As `$JLLAMA_ISA` has it: the instruction set, whoever made the processor."""
        return self.name.removesuffix("_amd")


AVX2 = "avx2 fma f16c bmi2 movbe abm"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq avx512cd avx512_vnni"
V3, V4 = ("-march=x86-64-v3",), ("-march=x86-64-v4", "-mavx512vnni")
BF16 = (*V4, "-mavx512bf16")
AMD = ("-DJLLAMA_AMD",)
TILES = ("-mamx-tile", "-mamx-bf16")
# The best first.
VARIANTS = {
    "x86_64": (
        Variant("amx", f"{AVX512} avx512_bf16 amx_tile amx_bf16", (*BF16, *TILES)),
        Variant("avx512_bf16_amd", f"AuthenticAMD {AVX512} avx512_bf16", (*BF16, *AMD)),
        Variant("avx512_bf16", f"{AVX512} avx512_bf16", BF16),
        Variant("avx512", AVX512, V4),
        Variant("avx_vnni", f"{AVX2} avx_vnni", (*V3, "-mavxvnni")),
        Variant("avx2_amd", f"AuthenticAMD {AVX2}", (*V3, *AMD)),
        Variant("avx2", AVX2, V3),
    ),
    "aarch64": (
        Variant("neon_dotprod", "asimd asimddp", ("-march=armv8.2-a+dotprod",)),
        Variant("neon", "asimd", ("-march=armv8-a",)),
    ),
}


def library() -> Path | None:
    """What suits this processor and was compiled from this source.

    None where there is no such library, or the user has chosen a compiler or its flags.

    Raises:
      JllamaError: see `suited`.
    """
    if os.environ.get("CXX") or os.environ.get("JLLAMA_CXXFLAGS") or not BUILT.is_dir():
        return None
    return next((path for path in (BUILT / variant.file for variant in suited()) if path.is_file()), None)


def suited() -> list[Variant]:
    """Those that this processor can run, the best first; where `$JLLAMA_ISA` names one, that one alone.

    Raises:
      JllamaError: it names none of them.
    """
    has = set(processor().split())
    found = [variant for variant in variants() if has.issuperset(variant.needs.split())]
    asked = os.environ.get("JLLAMA_ISA", "")
    chosen = [variant for variant in found if asked in ("", variant.isa)]
    if asked and not chosen:
        known = ", ".join(dict.fromkeys(variant.isa for variant in found)) or "no name at all"
        raise JllamaError(f"JLLAMA_ISA={asked!r} is no instruction set of this processor; use {known}")
    return chosen


def variants() -> tuple[Variant, ...]:
    """Those for this kind of processor, the best first."""
    return VARIANTS.get(platform.machine(), ())


def source() -> bytes:
    """All of the C++."""
    return b"".join(path.read_bytes() for path in [*sorted(HERE.glob("*.h")), *sorted(HERE.glob("*.cc"))])


@functools.cache
def processor() -> str:
    """What tells this processor's instruction set from another's: lines of /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("flags", "Features", "model name", "CPU part", "vendor_id")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


@functools.cache
def headers() -> str:
    """The directory of XLA's, as `jax.ffi.include_dir` has it."""
    jaxlib = importlib.util.find_spec("jaxlib")
    assert jaxlib is not None
    return str(Path(str(jaxlib.origin)).parent / "include")


def interface() -> bytes:
    """The version of XLA's interface that libraries are compiled for."""
    header = Path(headers(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    return "".join(re.findall(r"#define XLA_FFI_API_M\w+ \d+", header)).encode()
