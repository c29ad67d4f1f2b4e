"""CUDA C++ source -> machine code (NVRTC, which comes with `jax[cuda12]` and `jax[cuda13]`) -> XLA.

XLA launches the kernel itself, through its custom call `__gpu$xla.gpu.ptx`: no extension module to build,
and the call works inside `jit`, `while_loop` and with donated buffers.
"""

import contextlib
import ctypes
import functools
import glob
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import Array

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir
from jllama.machine.native import kept

MEMORY_CLOCK, BUS_WIDTH = 36, 37  # CU_DEVICE_ATTRIBUTE_...: kHz, bits
MINIMUM = (8, 0)  # compute capability
ARCHS = ("8.0", "8.6", "8.9")  # that `$JLLAMA_GPU_ARCH` may name: their code runs on every later GPU
MINIMUM_JAX = (0, 11, 0)  # the first with this custom call as it is used here, as far as we have tried


@functools.cache
def device() -> jax.Device | None:
    """The first NVIDIA GPU, if JAX has one."""
    if jax.default_backend() != "gpu":
        return None
    found = jax.devices()[0]
    return found if "NVIDIA" in found.device_kind.upper() else None


@functools.cache
def capability() -> tuple[int, int]:
    """What kernels are compiled for: the GPU's compute capability, or an earlier one that `$JLLAMA_GPU_ARCH`
    names, with its code and its shared memory; (0, 0) without an NVIDIA GPU.

    Raises:
      JllamaError: the variable names none that this GPU can follow.
    """
    gpu = device()
    if gpu is None:
        return 0, 0
    own, asked = _numbers(gpu.compute_capability), os.environ.get("JLLAMA_GPU_ARCH", "")
    if not asked:
        return own
    known = [arch for arch in ARCHS if _numbers(arch) <= own]
    if asked not in known:
        raise JllamaError(
            f"JLLAMA_GPU_ARCH={asked!r} is no compute capability whose code this GPU runs; use "
            + (", ".join(known) or "none")
        )
    return _numbers(asked)


def _numbers(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


@functools.cache
def refusal() -> str | None:
    """Why no kernel can be launched here; None if one can."""
    if device() is None:
        return "there is no NVIDIA GPU"
    if capability() < MINIMUM:
        return f"the GPU has compute capability {'.'.join(map(str, capability()))}; the kernels need 8.0"
    if jax.__version_info__ < MINIMUM_JAX:
        return f"jax {jax.__version__} is older than {'.'.join(map(str, MINIMUM_JAX))}"
    return None if _nvrtc() else "libnvrtc is missing; install jax[cuda13] (or jax[cuda12])"


def blocks_at_once() -> int:
    """How many multiprocessors there are: a persistent kernel has one block on each."""
    gpu = device()
    return int(gpu.core_count) if gpu else 0


@functools.cache
def memory_rate() -> float:
    """Bytes a second that can go over the memory's bus, from its clock and width; 0 without an NVIDIA GPU."""
    gpu = device()
    if gpu is None:
        return 0.0
    driver, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(number), gpu.local_hardware_id)
    kilohertz, bits = (_attribute(driver, number, which) for which in (MEMORY_CLOCK, BUS_WIDTH))
    return 2 * kilohertz * 1000 * bits / 8  # twice a clock


def _attribute(driver: ctypes.CDLL, number: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, number)
    return value.value


def engine() -> bool:
    """There is a copy engine, and blocks form clusters: since compute capability 9.0."""
    return capability()[0] != 8


def shared_memory() -> int:
    """The most bytes of shared memory that a block may ask for."""
    small = 101376
    if capability()[0] == 8:
        return 166912 if capability() in ((8, 0), (8, 7)) else small
    return 232448 if capability()[0] in (9, 10) else small


def define(sizes: Mapping[str, object]) -> str:
    """A source's constants, for `assemble`."""
    return "".join(f"#define {name} {value}\n" for name, value in sizes.items())


def assemble(defines: str, *files: str) -> str:
    """CUDA C++ of files beside this one, one after another, behind `defines`."""
    here = Path(__file__).parent
    return defines + "".join((here / name).read_text(encoding="utf-8") for name in files)


def call(
    source: str,
    name: str,
    operands: Sequence[Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: int | tuple[int, int, int],
    threads: int,
    shared: int = 0,
    aliases: Mapping[int, int] | None = None,
) -> Sequence[Array]:
    """Runs kernel `name` of `source`: its parameters are pointers, those of `operands`, then of `results`.

    Args:
      source: CUDA C++, self-contained.
      name: an `extern "C"` kernel.
      operands: any arrays; the kernel sees them row-major.
      results: their shapes and dtypes.
      grid: blocks.
      threads: per block.
      shared: bytes of dynamic shared memory.
      aliases: operand -> the result that is the same memory, updated in place.
    """
    grid_x, grid_y, grid_z = (grid, 1, 1) if isinstance(grid, int) else grid
    kernel = jax.ffi.ffi_call(
        "__gpu$xla.gpu.ptx", list(results), input_output_aliases=dict(aliases or {}), vmap_method="sequential"
    )
    return kernel(
        *operands,
        name=name,
        kernel_type="ptx",
        kernel_data=compiled(source),
        grid_x=np.int32(grid_x),
        grid_y=np.int32(grid_y),
        grid_z=np.int32(grid_z),
        block_x=np.int32(threads),
        block_y=np.int32(1),
        block_z=np.int32(1),
        shared_mem_bytes=np.int32(shared),
    )


@functools.cache
def compiled(source: str) -> str:
    """PTX of `source` for this machine's GPU, kept in the user's cache directory."""
    major, minor = capability()
    options = (
        f"--gpu-architecture=compute_{major}{minor}{'a' if major >= 9 else ''}",
        "--std=c++17",
        "--device-as-default-execution-space",
    )
    key = hashlib.sha256("\0".join((source, *options, str(_nvrtc_version()))).encode()).hexdigest()
    path = cache_dir("kernels", writable=False) / f"{key}.ptx"
    if path.exists():
        kept.touch(path)
        return path.read_text("utf-8")
    code = _compile(source, options)
    # Whole or not at all, whoever else writes it. Where there is no room, the next start compiles again.
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(prefix=kept.SCRATCH, dir=path.parent) as scratch,
    ):
        fresh = Path(scratch, path.name)
        fresh.write_text(code, "utf-8")
        os.replace(fresh, path)
    return code


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        found = glob.glob(f"{root}/*/lib/libnvrtc.so.1[0-9]")
        names = sorted(found, reverse=True) + names
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _nvrtc_version() -> tuple[int, int]:
    library, major, minor = _nvrtc(), ctypes.c_int(), ctypes.c_int()
    if library is not None:
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _compile(source: str, options: Sequence[str]) -> str:
    library = _nvrtc()
    if library is None:
        raise RuntimeError("libnvrtc is missing; install jax[cuda13] (or jax[cuda12])")
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"jllama.cu", 0, None, None)
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), flags):
            raise RuntimeError(f"NVRTC: {_fetch(library, program, 'ProgramLog').decode()}")
        return _fetch(library, program, "PTX").rstrip(b"\0").decode()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    if getattr(library, f"nvrtcGet{what}")(program, buffer):
        raise RuntimeError(f"NVRTC: no {what}")
    return buffer.raw
