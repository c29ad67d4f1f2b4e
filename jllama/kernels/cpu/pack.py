"""Quantised weights from the layout that files have to the one that the kernels read."""

import dataclasses

import jax
import numpy as np

from jllama.layers.qtensor import SPAN, TILE, QTensor


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
    """`w` in the layout "tiles"; as it is where its groups are no multiple of 32."""
    if w.layout == "tiles" or w.group % SPAN:
        return w
    values = np.asarray(w.values)
    if w.bits == 4 and w.group != SPAN:
        values = _pair_within_blocks(values, w.group)
    words = _interleave(values.view(np.uint32))
    return dataclasses.replace(
        w,
        values=jax.device_put(words.view(values.dtype).reshape(*words.shape, 4)),
        scales=jax.device_put(_interleave(np.asarray(w.scales))),
        offsets=None if w.offsets is None else jax.device_put(_interleave(np.asarray(w.offsets))),
        layout="tiles",
    )


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
