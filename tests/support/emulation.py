"""Runs a CUDA kernel of this project on a CPU, through `emulated_cuda.h` and the machine's C++ compiler."""

import hashlib
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
SECONDS = 500  # no kernel here takes a tenth of that
_SHARED_BEGINS = "// What the kernels share"  # the first line of primitives.cu, behind the sizes
_FLAGS = ["-O1", "-std=c++20", "-w", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]  # jumps between stacks
_PAGE = 4096  # arrays begin where a device allocation would: at a multiple of 256 bytes


class Emulated:
    """A kernel, compiled for the CPU; calling it runs it once, in a process of its own."""

    def __init__(
        self, directory: Path, source: str, name: str, count: int, *, grid: int, threads: int, shared: int
    ) -> None:
        sizes, rest = source.split(_SHARED_BEGINS, 1)
        arguments = ", ".join(f"Any{{a[{i}]}}" for i in range(count))
        text = (
            f'{sizes}\n#include "{HERE}/emulated_cuda.h"\n//{rest}\n'
            f"int main(int count, char** arguments) {{ return run_on_file(count, arguments, [](void** a) {{ "
            f"run_kernel({grid}, {threads}, {shared}, [=] {{ {name}({arguments}); }}); }}); }}\n"
        )
        self._name, self._calls = name, 0
        self._program = directory / hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self._program.with_suffix(".cpp")
        path.write_text(text, encoding="utf-8")
        subprocess.run([COMPILER, *_FLAGS, "-o", self._program, path], check=True)

    def __call__(self, arrays: Sequence[np.ndarray | None]) -> None:
        """Runs the kernel on arrays, which it changes in place; one that is there twice is one to it too.

        Raises:
          AssertionError: the kernel crashed, or does not end.
        """
        different = {id(array): array for array in arrays if array is not None}
        offsets, end = {}, 0
        for key, array in different.items():
            offsets[key] = end
            end += -(-array.nbytes // _PAGE) * _PAGE
        file = self._program.with_suffix(".memory")
        memory = np.memmap(file, np.uint8, "w+", shape=(end,))
        parts = {key: memory[offsets[key] :][: array.nbytes] for key, array in different.items()}
        for key, array in different.items():
            parts[key][...] = _bytes(array)
        self._calls += 1  # the seed: copies land in another order each time
        places = [str(-1 if array is None else offsets[id(array)]) for array in arrays]
        self._run([str(self._program), str(file), str(self._calls), *places])
        for key, array in different.items():
            _bytes(array)[...] = parts[key]

    def _run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._name} does not end") from None
        if done.returncode:
            how = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
            raise AssertionError(f"{self._name} ended with {how}: {done.stderr}")


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
