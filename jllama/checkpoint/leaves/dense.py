"""Turns the tensors of a leaf into one array of the run dtype."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from jllama.checkpoint.formats.stored import Checkpoint, Reader, Stored
from jllama.checkpoint.layout import Leaf, Part
from jllama.errors import JllamaError
from jllama.machine.progress import ByteBar

CHUNK = 1 << 18  # numbers converted at a time: a chunk stays in the processor's cache
ALIGNMENT = 64  # bytes; JAX uses a host array aligned like this as it is on a CPU
MAX_THREADS = 8

# The integer types of a number's bits, and the bits of infinity; NaNs lie above it.
_INFINITY: dict[str, tuple[type, type, int]] = {
    "float32": (np.int32, np.uint32, 0x7F800000),
    "float16": (np.int16, np.uint16, 0x7C00),
    "bfloat16": (np.int16, np.uint16, 0x7F80),
}


class DenseConverter:
    """Reads a leaf's tensors in chunks straight into the array that the device takes.

    So loading needs the parameters themselves and a few chunks, on a CPU; one or two more leaves elsewhere.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: Reader,
        dtype: np.dtype,
        bar: ByteBar,
        counted: np.dtype | None = None,
    ) -> None:
        """`counted`: what the bar takes the numbers for; `dtype` when None."""
        self._checkpoint, self._reader, self._bar = checkpoint, reader, bar
        self._dtype, self._counted = dtype, counted or dtype
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
        self._before: jax.Array | None = None

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, leaf: Leaf, where: Any = None) -> jax.Array:
        """The leaf on a device or, in parts, on several: `where` is one of `jax.device_put`'s.

        Raises:
          JllamaError: a number that is not finite, or a file that can't be read.
        """
        host = aligned_empty(leaf.shape, self._dtype)
        for part in leaf.parts:
            self._fill(host[part.place], part, leaf.shape)
        # JAX may use this very memory on a CPU.
        host.flags.writeable = False
        if self._before is not None:
            # Lets the transfer overlap with the next leaf's reading, yet keeps few leaves on the host.
            self._before.block_until_ready()
        self._before = jax.device_put(host, where)
        return self._before

    def _fill(self, target: np.ndarray, part: Part, leaf_shape: tuple[int, ...]) -> None:
        stored = self._checkpoint.tensors[part.name]
        chunks = list(_chunks(target, part.width))
        shift = self._checkpoint.norm_shift if part.is_norm else 0.0
        convert = partial(self._convert, stored, part, shift)
        if len(chunks) == 1:
            convert(*chunks[0])
        else:
            for _ in self._pool.map(lambda chunk: convert(*chunk), chunks):
                pass
        if part.rotary and self._checkpoint.rotary_interleaved:
            deinterleave(target, leaf_shape[2], part.width)

    def _convert(self, stored: Stored, part: Part, shift: float, row: int, out: np.ndarray) -> None:
        """Reads and converts rows `out` from one of those that are taken on, each number less `shift`."""
        encoding = stored.encoding
        first = (part.rows[0] if part.rows else 0) + row, part.columns[0] if part.columns else 0
        if encoding.plain == out.dtype and not shift:
            self._reader.read_rows(stored, *first, out.view(np.uint8))
            numbers = out
        else:
            raw = np.empty((len(out), out.shape[1] // encoding.block * encoding.size), np.uint8)
            self._reader.read_rows(stored, *first, raw)
            with np.errstate(all="ignore"):
                numbers = encoding.numbers(raw)
                numbers = numbers.astype(np.float32) - np.float32(shift) if shift else numbers
                np.copyto(out, numbers, casting="unsafe")
        if not all_finite(out):
            raise JllamaError(not_finite(stored, numbers, self._dtype))
        self._bar.advance(out.size * self._counted.itemsize)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Like `np.empty`, starting at a multiple of `ALIGNMENT` bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def all_finite(numbers: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity, by bit patterns: ten times as fast as `np.isfinite`."""
    signed, unsigned, infinity = _INFINITY[numbers.dtype.name]
    sign_bit = 1 << (8 * numbers.itemsize - 1)
    highest, lowest = numbers.view(signed).max(initial=0), numbers.view(unsigned).max(initial=0)
    return bool(highest < infinity and lowest < infinity + sign_bit)


def _chunks(target: np.ndarray, columns: int) -> Iterator[tuple[int, np.ndarray]]:
    """Contiguous pieces `[rows, columns]` of `target` of about `CHUNK` numbers; the first row of each."""
    start = 0
    for run in runs_of(target):
        rows = run.reshape(-1, columns)
        step = max(1, CHUNK // columns)
        for row in range(0, len(rows), step):
            piece = rows[row : row + step]
            yield start, piece
            start += len(piece)


def runs_of(target: np.ndarray) -> Iterator[np.ndarray]:
    """The contiguous parts of an array, in order."""
    if target.flags.c_contiguous:
        yield target
    else:
        for part in target:
            yield from runs_of(part)


def deinterleave(target: np.ndarray, head_dim: int, columns: int) -> None:
    """Row pairs (2i, 2i + 1) of each head become the pairs (i, i + H/2) that `apply_rope` turns."""
    for run in runs_of(target):
        for head in run.reshape(-1, head_dim, columns):
            head[...] = np.concatenate((head[0::2], head[1::2]))


def not_finite(stored: Stored, numbers: np.ndarray, dtype: np.dtype) -> str:
    """What is said of a tensor with such numbers, which were to become `dtype`."""
    at = f"{stored.name} in {stored.path}"
    if np.isfinite(numbers).all():
        wider = "float32" if dtype.name == "bfloat16" else "bfloat16"
        return f"{at} holds numbers too large for {dtype.name}; use {wider}"
    return f"{at} holds numbers that are NaN or infinite; download it again"
