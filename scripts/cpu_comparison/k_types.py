"""Weights as Q4_K, Q5_K, Q6_K and IQ4_NL, rounded to nearest; llama.cpp's own tool searches better scales.

The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

import numpy as np

from jllama.layers import qtensor

BLOCK = 256
LEVELS = np.array(qtensor.LEVELS, np.float32)


def type_of(kind: str, name: str, shape: tuple[int, ...], layers: int) -> str:
    """What llama.cpp's Q4_K_M, Q5_K_M and Q6_K take for a matrix.

    The first two: more bits for heads, and for v and down of some layers.
    """
    parts = name.split(".")
    more = kind == "Q6_K" or (
        parts[2] in ("attn_v", "ffn_down") and _important(int(parts[1]), layers)
        if parts[0] == "blk"
        else name in ("output.weight", "token_embd.weight")
    )
    best, otherwise = (
        ("Q6_K", "Q8_0") if more else {"Q4_K_M": ("Q4_K", "Q5_0"), "Q5_K_M": ("Q5_K", "Q5_1")}[kind]
    )
    return otherwise if shape[-1] % BLOCK else best


def _important(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def q4_k(numbers: np.ndarray) -> np.ndarray:
    """float32 `[R, C]` as blocks, uint8 `[R, C / 256 * 144]`."""
    scales, values = _with_offsets(numbers, 15)
    return np.concatenate((scales, _nibbles(values)), 1).reshape(len(numbers), -1)


def q5_k(numbers: np.ndarray) -> np.ndarray:
    """float32 `[R, C]` as blocks, uint8 `[R, C / 256 * 176]`."""
    scales, values = _with_offsets(numbers, 31)
    fifth = (values >> 4 << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    return np.concatenate((scales, fifth, _nibbles(values & 15)), 1).reshape(len(numbers), -1)


def _with_offsets(numbers: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets of 256 weights as they lie in a block, and the weights, uint8 `[blocks, 8, 32]`."""
    groups = numbers.reshape(-1, 8, 32)
    low = np.minimum(groups.min(-1), 0)
    step, least = _levels((groups.max(-1) - low) / most, 63), _levels(-low, 63)
    (unit, scales), (minimum, minima) = step, least
    width, offset = unit * scales, minimum * minima
    values = np.rint((groups + offset[:, :, None]) / np.where(width > 0, width, 1)[:, :, None])
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first, middle = s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    last = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    packed = np.concatenate((_bytes(unit), _bytes(minimum), first, middle, last), 1)
    return packed, np.clip(values, 0, most).astype(np.uint8)


def _nibbles(values: np.ndarray) -> np.ndarray:
    pairs = values.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(pairs), -1)


def iq4_nl(numbers: np.ndarray) -> np.ndarray:
    """float32 `[R, C]` as blocks, uint8 `[R, C / 32 * 18]`."""
    groups = numbers.reshape(-1, 32)
    unit = (np.abs(groups).max(-1, keepdims=True) / -LEVELS[0]).astype(np.float16)
    width = unit.astype(np.float32)
    values = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, groups / np.where(width > 0, width, 1))
    packed = (values[:, :16] | values[:, 16:] << 4).astype(np.uint8)
    return np.concatenate((_bytes(unit), packed), 1).reshape(len(numbers), -1)


def q6_k(numbers: np.ndarray) -> np.ndarray:
    """float32 `[R, C]` as blocks, uint8 `[R, C / 256 * 210]`."""
    groups = numbers.reshape(-1, 16, 16)
    unit, scales = _levels(np.abs(groups).max(-1) / 31, 127)
    width = unit * scales
    values = np.rint(groups / np.where(width > 0, width, 1)[:, :, None])
    values = (np.clip(values, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = values[:, :, :2] & 15 | (values[:, :, 2:] & 15) << 4
    high = (values >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]).sum(2, dtype=np.uint8)
    flat = [part.reshape(len(groups), -1) for part in (low, high, scales.astype(np.int8).view(np.uint8))]
    return np.concatenate((*flat, _bytes(unit)), 1).reshape(len(numbers), -1)


def _levels(wanted: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """`[blocks, groups]` as a float16 unit for each block times whole numbers up to `most`."""
    unit = (wanted.max(-1, keepdims=True) / most).astype(np.float16).astype(np.float32)
    return unit, np.clip(np.ceil(wanted / np.where(unit > 0, unit, 1) - 0.01), 0, most)


def _bytes(unit: np.ndarray) -> np.ndarray:
    return unit.astype(np.float16).view(np.uint8)
