"""Process-wide JAX settings. `configure` comes first: before a program's first array."""

import contextlib
import ctypes
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir

DEVICES = ("auto", "cpu", "gpu")
DTYPES = ("float32", "bfloat16", "float16")
ARENA_MAX = -8  # glibc's M_ARENA_MAX


def configure(device: str = "auto") -> None:
    """Chooses the device and sets what JAX reads only once: call it before the first array.

    GPU memory is taken as it is needed instead of whole at start-up, unless the user's environment says
    otherwise. Compiled programs are kept in the user's cache directory: a second start compiles nothing.

    Args:
      device: `auto` (a GPU if JAX sees one), `cpu` or `gpu`.

    Raises:
      JllamaError: the device is unknown or not there, or the cache directory can't be made or is open to
        others.
    """
    if device not in DEVICES:
        raise JllamaError(f"device {device!r} is unknown; use {', '.join(DEVICES)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    if device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[device])
    if not jax.config.values["jax_compilation_cache_dir"]:
        _keep_programs()
    _check_device(device)
    _PROCESS.keeps_programs = _keeps_programs()


def is_likely_cpu(device: str) -> bool:
    """Whether programs and our kernels will run on the CPU, as far as can be told without jax."""
    chosen = device if device != "auto" else os.environ.get("JAX_PLATFORMS") or device
    driven = chosen == "auto" and Path("/proc/driver/nvidia").exists()
    return kernels_wanted() and chosen in ("auto", "cpu") and not driven


def kernels_wanted() -> bool:
    """Whether hand-written kernels may run: `$JLLAMA_KERNELS` is not 0.

    Raises:
      JllamaError: it is something else than 0, 1 or nothing.
    """
    asked = os.environ.get("JLLAMA_KERNELS", "")
    if asked not in ("", "0", "1"):
        raise JllamaError(f"JLLAMA_KERNELS={asked!r} is neither 0 (everything by XLA) nor 1 (as without it)")
    return asked != "0"


class _Process:
    began: float | None = None
    keeps_programs = False


_PROCESS = _Process()


def own_process() -> None:
    """A command of ours began: nothing else in this process changes what JAX compiles."""
    _PROCESS.began = time.time()
    _share_memory()


def _share_memory() -> None:
    """All threads take memory from one heap. glibc gives each one, and what one of XLA's threads has freed
    others don't take: up to 20 MB in a start, 50 in one that compiles.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL(None).mallopt(ARENA_MAX, 1)


def process_began() -> float:
    """When it did; 0 if the process is somebody else's."""
    return _PROCESS.began or 0.0


def keeps_programs() -> bool:
    """Whether programs have keys of our own (`jllama.kernels.programs`): on one CPU, in a process of ours,
    where JAX keeps its own in our cache directory.
    """
    return _PROCESS.keeps_programs


def _keeps_programs() -> bool:
    import jax

    if _PROCESS.began is None or not jax.config.values["jax_enable_compilation_cache"]:
        return False
    ours = jax.config.values["jax_compilation_cache_dir"] == str(cache_dir("xla", writable=False))
    return ours and [device.platform for device in jax.devices()] == ["cpu"]


def _keep_programs() -> None:
    """Compiled programs are read from the user's cache directory, and written where that is possible."""
    import jax

    directory = cache_dir("xla", writable=False)
    if not directory.is_dir():
        return
    writable = os.access(directory, os.W_OK | os.X_OK)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if writable else math.inf)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not writable:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA writes them by itself


def drop_damaged_programs(warning: str) -> None:
    """Removes from our cache what JAX warns of: it would neither read nor replace a half-written program.

    Args:
      warning: any text that `warnings.warn` was given.
    """
    import jax

    found = re.match(r"Error (?:reading|writing) persistent compilation cache entry for '(\w+)'", warning)
    ours = cache_dir("xla", writable=False)
    if found and jax.config.values["jax_compilation_cache_dir"] == str(ours):
        for path in ours.glob(f"{found[1]}-*"):
            with contextlib.suppress(OSError):  # a read-only cache stays as it is
                path.unlink()


def _check_device(device: str) -> None:
    import jax

    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # the latter where no GPU build is installed
        found = str(error)
    if device == "gpu" and found != "gpu":
        raise JllamaError(
            "--device=gpu: JAX sees no NVIDIA GPU. Install its GPU build (pip install -e '.[cuda12]'), "
            "see that nvidia-smi lists the GPU, or use --device=cpu"
        )
    if device == "cpu" and found != "cpu":
        raise JllamaError("--device=cpu came too late: jax was already running on another device")


def platform() -> str:
    """`cpu` or `gpu`: where JAX puts arrays."""
    import jax

    return jax.devices()[0].platform


def describe_device(arrays: Any) -> str:
    """What holds a tree of JAX's arrays, for banners: `cpu` or the GPU's name; `2 × cpu` where two do."""
    import jax

    held = jax.tree.leaves(arrays)[0].devices()  # those of other processes, too
    device = next(iter(held))
    name = device.device_kind if device.platform == "gpu" else device.platform
    return name if len(held) == 1 else f"{len(held)} × {name}"
