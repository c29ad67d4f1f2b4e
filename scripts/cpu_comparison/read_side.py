"""The machine's side of `compare_cpu.py`: `python -m cpu_comparison.read_side FILE THREADS`.

A step reads every weight but the embedding's once; this reads as many bytes, and does nothing else.
"""

import ctypes
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cpu_comparison.side import answer
from jllama.checkpoint.formats.gguf import read_gguf_header


def weight_bytes(path: Path) -> int:
    """Of a step: without a table of embeddings that is no head too."""
    sizes = {stored.name: stored.nbytes for stored in read_gguf_header(path).tensors}
    table = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    return sum(sizes.values()) - table


class Memory:
    """Bytes in one run for each thread, which each has written itself."""

    def __init__(self, total: int, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.size = total // threads
        self.pieces = list(self.pool.map(lambda size: np.full(size, 1, np.uint8), [self.size] * threads))
        self.find = ctypes.CDLL(None).memchr  # looks at every byte, for one that is not there
        self.find.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        self.find.restype = ctypes.c_void_p

    def read(self) -> None:
        """All of it, by all threads at the same time; ctypes lets them run."""
        list(self.pool.map(lambda piece: self.find(piece.ctypes.data, 2, self.size), self.pieces))

    def seconds(self, rows: int, count: int) -> float:
        """Of one reading; how many rows read together changes nothing."""
        started = time.perf_counter()
        for _ in range(count):
            self.read()
        return (time.perf_counter() - started) / count


def main() -> None:
    """Answers about steps; a prompt is no read."""
    memory = Memory(weight_bytes(Path(sys.argv[1])), int(sys.argv[2]))
    answer(memory.seconds, lambda count: 0.0)


if __name__ == "__main__":
    main()
