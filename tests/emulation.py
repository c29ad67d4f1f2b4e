"""Runs a CUDA kernel of this project on a CPU, through `emulated_cuda.h` and the machine's C++ compiler."""

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
_SHARED_BEGINS = "// What the kernels share"  # the first line of primitives.cu, behind the sizes


def aligned(array) -> np.ndarray:
    """A copy that begins where a device allocation would: at a multiple of 256 bytes."""
    array = np.asarray(array)
    room = np.empty(array.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Emulated:
    """A kernel, compiled for the CPU; calling it runs it once."""

    def __init__(
        self, directory: Path, source: str, name: str, count: int, *, grid: int, threads: int, shared: int
    ) -> None:
        sizes, rest = source.split(_SHARED_BEGINS, 1)
        arguments = ", ".join(f"Any{{a[{i}]}}" for i in range(count))
        text = (
            f'{sizes}\n#include "{HERE}/emulated_cuda.h"\n//{rest}\n'
            f'extern "C" void run(void** a) {{ run_kernel({grid}, {threads}, {shared}, '
            f"[=] {{ {name}({arguments}); }}); }}\n"
        )
        path = directory / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
        path.write_text(text, encoding="utf-8")
        flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"]
        subprocess.run([COMPILER, *flags, "-o", path.with_suffix(".so"), path], check=True)
        self._library = ctypes.CDLL(str(path.with_suffix(".so")))

    def __call__(self, arrays: Sequence[np.ndarray | None]) -> None:
        pointers = [0 if array is None else array.ctypes.data for array in arrays]
        self._library.run((ctypes.c_void_p * len(pointers))(*pointers))
