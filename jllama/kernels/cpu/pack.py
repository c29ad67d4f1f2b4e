"""Quantised weights from the layout that files have to the one that the kernels read."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jllama.layers.qtensor import SPAN, TILE, QTensor

HALF = SPAN // 2  # the smallest group
SCALES = ("scales", "offsets", "scale_units", "offset_units")


def prepare(params):
    """`params` with every quantised leaf that the kernels can run in the layout "tiles".

    The old leaves are not touched: drop them to free their memory.
    """
    return jax.tree.map(
        lambda leaf: tiles(leaf) if isinstance(leaf, QTensor) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, QTensor),
    )


def tiles(w: QTensor) -> QTensor:
    """`w` in the layout "tiles"; as it is where the kernels don't know its groups."""
    if w.layout == "tiles" or not known_group(w):
        return w
    values = np.asarray(w.values)
    if w.bits == 4 and w.group != SPAN:
        values = _pair_within_blocks(values, w.group)
    words = _interleave(values.view(np.uint32))
    leaves: Any = {name: _interleaved(getattr(w, name)) for name in SCALES}
    leaves["values"] = words.view(values.dtype).reshape(*words.shape, 4)
    return dataclasses.replace(w, **jax.device_put(leaves), layout="tiles")


def known_group(w: QTensor) -> bool:
    """Whether the kernels know its groups: multiples of 32, and 16 for 8 bit."""
    return w.group % SPAN == 0 or (w.bits == 8 and w.group == HALF)


def _interleaved(leaf: jax.Array | None) -> np.ndarray | None:
    return None if leaf is None else _interleave(np.asarray(leaf))


def _interleave(rows: np.ndarray) -> np.ndarray:
    """`[R, n]` as `[R / 16, n, 16]`, with rows of zeros behind the last."""
    full = -(-rows.shape[0] // TILE)
    out = aligned((full, rows.shape[1], TILE), rows.dtype)
    whole = rows.shape[0] // TILE
    out[:whole] = rows[: whole * TILE].reshape(whole, TILE, rows.shape[1]).swapaxes(1, 2)
    if whole < full:
        out[whole] = 0
        out[whole, :, : rows.shape[0] % TILE] = rows[whole * TILE :].T
    return out


def _pair_within_blocks(values: np.ndarray, group: int) -> np.ndarray:
    """4-bit halves paired within each 32 elements instead of within each group."""
    rows = values.shape[0]
    packed = values.reshape(rows, -1, group // 2)
    flat = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, 2, SPAN // 2)
    return np.ascontiguousarray(flat[:, :, 0] | flat[:, :, 1] << 4).reshape(rows, -1)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a cache line, which XLA takes over without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
