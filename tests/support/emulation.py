"""Runs a CUDA kernel of this project on a CPU, through `emulated_cuda.cc` and the machine's C++ compiler."""

import atexit
import dataclasses
import functools
import hashlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER, SIZES, RUNNER = (
    Path(__file__).resolve().parent / name
    for name in ("emulated_cuda.h", "emulated_sizes.h", "emulated_cuda.cc")
)
COMPILER = shutil.which("g++")
SECONDS = 500  # no kernel here takes a tenth of that
_SHARED_BEGINS = "// What the kernels share"  # the first line of primitives.cu, behind the sizes
_JUMPS = ["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]  # between stacks
_FLAGS = ["-Og", "-std=c++20", "-w", "-fno-exceptions", *_JUMPS]
_MEMORY = 0x600000000000  # the address of a kernel's arrays, all behind one another
_PAGE = 4096  # arrays begin where a device allocation would: at a multiple of 256 bytes


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a source, how many arrays it takes, and how it is launched."""

    name: str
    count: int
    _: dataclasses.KW_ONLY
    grid: int
    threads: int
    shared: int
    gpus: int = 1  # on each of which it is launched, all at once

    @property
    def launch(self) -> str:
        """In C++."""
        arguments = ", ".join(f"Any{{emulated_arrays[{i}]}}" for i in range(self.count))
        return f"run_kernel({self.grid}, {self.threads}, {self.shared}, [] {{ {self.name}({arguments}); }});"


Pointers = Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]  # an array, whose addresses it holds


class Emulated:
    """A kernel, compiled for the CPU; calling it runs it once, in a process of its own."""

    def __init__(self, directory: Path, source: str, name: str, count: int, **launch: int) -> None:
        """`launch`: see `Kernel`."""
        kernel = Kernel(name, count, **launch)
        self._begin(_compiled(directory, source, [kernel]), kernel, 0)

    @classmethod
    def several(cls, directory: Path, source: str, kernels: Sequence[Kernel]) -> "list[Emulated]":
        """Kernels of one source, compiled together."""
        program = _compiled(directory, source, kernels)
        found = [cls.__new__(cls) for _ in kernels]
        for which, (made, kernel) in enumerate(zip(found, kernels, strict=True)):
            made._begin(program, kernel, which)
        return found

    def _begin(self, program: Path, kernel: Kernel, which: int) -> None:
        self._program, self._name, self._which, self._gpus = program, kernel.name, which, kernel.gpus
        self._calls = int(program.name, 16)  # what runs once alone runs in either order, by its source

    def __call__(self, arrays: Sequence[np.ndarray | None], pointers: Pointers = ()) -> None:
        """Runs the kernel on arrays, which it changes in place; one that is there twice is one to it too.

        Args:
          arrays: the kernel's arguments; of several GPUs, each one's behind those of the one before.
          pointers: arrays among them that are filled with the addresses of others, whether those are
            arguments themselves or not.

        Raises:
          AssertionError: the kernel crashed, or does not end.
        """
        targets = [target for _, these in pointers for target in these]
        different = {id(array): array for array in (*arrays, *targets) if array is not None}
        offsets, end = {}, 0
        for key, array in different.items():
            offsets[key] = end
            end += -(-array.nbytes // _PAGE) * _PAGE
        for array, these in pointers:
            addresses = [_MEMORY + offsets[id(target)] for target in these]
            _bytes(array)[...] = np.array(addresses, np.int64).view(np.uint8)
        file = self._program.with_suffix(f".memory{self._which}")
        memory = np.memmap(file, np.uint8, "w+", shape=(end,))
        parts = {key: memory[offsets[key] :][: array.nbytes] for key, array in different.items()}
        for key, array in different.items():
            parts[key][...] = _bytes(array)
        self._calls += 1  # the seed: copies land in another order each time, and threads run in the other one
        places = [str(-1 if array is None else offsets[id(array)]) for array in arrays]
        how = (self._which, self._gpus, file, _MEMORY, self._calls % 2**31)
        self._run([str(self._program), *map(str, how), *places])
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


def _compiled(directory: Path, source: str, kernels: Sequence[Kernel]) -> Path:
    """A program whose first argument says which kernel runs."""
    sizes, rest = source.split(_SHARED_BEGINS, 1)
    cases = " ".join(f"case {at}: {kernel.launch} break;" for at, kernel in enumerate(kernels))
    text = (
        f'{sizes}\nnamespace {{\n#include "{SIZES.name}"\n//{rest}\nvoid** emulated_arrays;\n}}\n'
        "void launch(int which, void** arrays) "
        f"{{ emulated_arrays = arrays; switch (which) {{ {cases} }} }}\n"
    )
    program = directory / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = program.with_suffix(".cpp")
    path.write_text(text, encoding="utf-8")
    header, runner = _compiled_once()
    headers = ["-include", header, f"-I{HEADER.parent}"]
    subprocess.run([COMPILER, *_FLAGS, *headers, "-o", program, path, runner], check=True)
    return program


@functools.cache
def _compiled_once() -> tuple[Path, Path]:
    """The header, precompiled beside itself, and what runs kernels."""
    directory = Path(tempfile.mkdtemp(prefix="jllama-emulated-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    header, runner = directory / HEADER.name, directory / "runner.o"
    shutil.copy(HEADER, header)
    subprocess.run([COMPILER, *_FLAGS, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)
    subprocess.run([COMPILER, *_FLAGS, "-O2", "-c", RUNNER, "-o", runner], check=True)
    return header, runner


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
