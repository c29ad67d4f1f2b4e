"""Quantised weights from the layout that files have to the one that the kernels read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jllama.kernels.cpu import build
from jllama.layers.qtensor import LEVELS, SPAN, TILE, QTensor

HALF = SPAN // 2  # the smallest group
CHUNK = 1 << 16  # words that are packed at a time, in the cache
_LEVEL_OF = np.full(256, 255, np.uint8)  # of each byte, its place among the levels
_LEVEL_OF[np.array(LEVELS, np.int8).view(np.uint8)] = np.arange(len(LEVELS))
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
    values, bits = np.asarray(w.values), w.bits
    if w.bits == 4 and w.group != SPAN:
        values = _pair_within_blocks(values, w.group)
    words = _interleave(values.view(np.uint32))
    if w.bits == 8 and w.shape[-1] % SPAN == 0:
        words, bits = _narrowed(values, words)
    leaves: Any = {name: _interleaved(getattr(w, name)) for name in SCALES}
    kind = values.dtype if bits == w.bits else np.uint8
    leaves["values"] = words.view(kind).reshape(*words.shape, 4)
    levels = w.bits == 8 and bits == 4
    return dataclasses.replace(w, **jax.device_put(leaves), bits=bits, levels=levels, layout="tiles")


def known_group(w: QTensor) -> bool:
    """Whether the kernels know its groups: multiples of 32, and 16 but for 4 bit."""
    return w.group % SPAN == 0 or (w.bits != 4 and w.group == HALF)


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


def _narrowed(values: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, int]:
    """Interleaved words of int8 `[R, C]` in fewer bits, if that many hold them, and in how many.

    Numbers from -32 to 31, of GGUF's types of 5 and 6 bits, take 6; IQ4_NL's levels take 4. The first row of
    others is seldom either.
    """
    if all(part.min() >= -32 and part.max() < 32 for part in (values[:1], values)):
        return _by_tiles(_six_bits, words, 6), 6
    if looks_up() and all(_LEVEL_OF[part.view(np.uint8)].max() < 16 for part in (values[:1], values)):
        return _by_tiles(_places, words, 4), 4
    return words, 8


def in_tiles(params) -> bool:
    """Whether some leaf is in the layout "tiles"."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return any(isinstance(leaf, QTensor) and leaf.layout == "tiles" for leaf in leaves)


def looks_up() -> bool:
    """Whether the processor looks 16 bytes up in one instruction: without, levels are faster in 8 bits."""
    library = build.load()
    return not isinstance(library, str) and bool(library.jllama_looks_up())


def _by_tiles(pack: Callable[[np.ndarray], np.ndarray], words: np.ndarray, size: int) -> np.ndarray:
    """`pack` of uint32 `[tiles, C / 4, 16]`, which makes `size` words of eight, a few tiles at a time."""
    blocks = words.reshape(len(words), -1, 8, TILE)
    out = aligned((len(blocks), blocks.shape[1], size, TILE), words.dtype)
    step = max(1, CHUNK // words[0].size)
    for start in range(0, len(out), step):
        out[start : start + step] = pack(blocks[start : start + step])
    return out.reshape(len(out), -1, TILE)


def _six_bits(words: np.ndarray) -> np.ndarray:
    moved = (words & 0x3F3F3F3F) ^ 0x20202020  # 32 is added
    quads = (moved >> 4 & 0x03030303).reshape(*words.shape[:2], 2, 4, TILE)
    high = quads[..., 0, :] | quads[..., 1, :] << 2 | quads[..., 2, :] << 4 | quads[..., 3, :] << 6
    return np.concatenate((_halves(moved & 0x0F0F0F0F), high), axis=2)


def _places(words: np.ndarray) -> np.ndarray:
    return _halves(_LEVEL_OF[words.view(np.uint8)].view(np.uint32))


def _halves(nibbles: np.ndarray) -> np.ndarray:
    return nibbles[:, :, :4] | nibbles[:, :, 4:] << 4


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a cache line, which XLA takes over without a copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
