"""Keeps GGUF's 8- and 4-bit blocks as they are stored: a leaf becomes a `QTensor` of the same numbers."""

import math
from typing import Any

import jax
import numpy as np

from jllama.checkpoint.formats.stored import Checkpoint, Reader
from jllama.checkpoint.layout import Leaf, Part
from jllama.checkpoint.leaves.dense import _deinterleave, aligned_empty
from jllama.layers.qtensor import QTensor

BLOCK = 32
# Bits, and how many float16 numbers (scale, then offset) stand before a block's values.
KEPT = {"Q8_0": (8, 1), "Q4_0": (4, 1), "Q4_1": (4, 2)}


class QuantizedConverter:
    """Reads a leaf's blocks, without ever expanding them."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader) -> None:
        self._checkpoint, self._reader = checkpoint, reader

    def keeps(self, leaf: Leaf) -> bool:
        """Whether all tensors of the leaf are stored in the same quantised type."""
        return kind_of(leaf, self._checkpoint) is not None

    def __call__(self, leaf: Leaf) -> QTensor:
        """The leaf on the CPU, in the layout "rows".

        Raises:
          JllamaError: a file that can't be read.
        """
        encoding = self._checkpoint.tensors[leaf.parts[0].name].encoding
        row_bytes = leaf.shape[-1] // BLOCK * encoding.size
        raw = np.empty((*leaf.shape[:-1], row_bytes), np.uint8)
        for part in leaf.parts:
            self._fill(raw[part.place], part, leaf.shape, row_bytes)
        return from_blocks(raw.reshape(-1, leaf.shape[-1] // BLOCK, encoding.size), encoding.name, leaf.shape)

    def _fill(self, target: np.ndarray, part: Part, leaf_shape: tuple[int, ...], row_bytes: int) -> None:
        stored = self._checkpoint.tensors[part.name]
        if target.flags.c_contiguous:
            self._reader.read(stored, 0, target)
        else:
            rows = np.empty((part.shape[0], row_bytes), np.uint8)
            self._reader.read(stored, 0, rows)
            target[...] = rows.reshape(target.shape)
        if part.rotary and self._checkpoint.rotary_interleaved:
            _deinterleave(target, leaf_shape[2], row_bytes)


def kind_of(leaf: Leaf, checkpoint: Checkpoint) -> str | None:
    """The key of `KEPT` in which all tensors of the leaf are stored, or None."""
    kinds = {checkpoint.tensors[part.name].encoding.name for part in leaf.parts}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(KEPT) else None


def outline(leaf: Leaf, kind: str, layout: str) -> QTensor:
    """The quantised leaf without its numbers: format and groups; the shapes are those of "rows"."""
    bits, numbers = KEPT[kind]
    rows, columns = math.prod(leaf.shape[:-1]), leaf.shape[-1]
    values: Any = jax.ShapeDtypeStruct((rows, columns * bits // 8), np.int8 if bits == 8 else np.uint8)
    scales: Any = jax.ShapeDtypeStruct((rows, columns // BLOCK), np.float16)
    return QTensor(
        values=values,
        scales=scales,
        offsets=scales if numbers == 2 else None,
        shape=leaf.shape,
        bits=bits,
        layout=layout,
    )


def from_blocks(blocks: np.ndarray, kind: str, shape: tuple[int, ...]) -> QTensor:
    """GGUF blocks, uint8 `[R, C / 32, bytes]`, as a weight of `shape`."""
    bits, numbers = KEPT[kind]
    rows, groups, size = blocks.shape
    values = aligned_empty((rows, groups, size - 2 * numbers), np.dtype(np.int8 if bits == 8 else np.uint8))
    values[...] = blocks[:, :, 2 * numbers :].view(values.dtype)
    head = np.ascontiguousarray(blocks[:, :, : 2 * numbers]).view(np.float16)
    parts = [aligned_empty((rows, groups), np.dtype(np.float16)) for _ in range(numbers)]
    for index, part in enumerate(parts):
        part[...] = head[:, :, index]
    scales, *offsets = (jax.device_put(part) for part in parts)
    return QTensor(
        values=jax.device_put(values.reshape(rows, -1)),
        scales=scales,
        offsets=offsets[0] if offsets else None,
        shape=shape,
        bits=bits,
    )
