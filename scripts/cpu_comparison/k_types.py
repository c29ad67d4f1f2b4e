"""Weights as Q4_K and Q6_K, rounded to nearest; llama.cpp's own tool searches better scales.

The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

import numpy as np

BLOCK = 256


def type_of(name: str, shape: tuple[int, ...], layers: int) -> str:
    """What llama.cpp's Q4_K_M takes for a matrix: more bits for heads, and for v and down of some layers."""
    parts = name.split(".")
    head = name in ("output.weight", "token_embd.weight")
    more = (
        parts[2] in ("attn_v", "ffn_down") and _important(int(parts[1]), layers)
        if parts[0] == "blk"
        else head
    )
    if shape[-1] % BLOCK:
        return "Q8_0" if more else "Q5_0"
    return "Q6_K" if more else "Q4_K"


def _important(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def q4_k(numbers: np.ndarray) -> np.ndarray:
    """float32 `[R, C]` as blocks, uint8 `[R, C / 256 * 144]`."""
    groups = numbers.reshape(-1, 8, 32)
    low = np.minimum(groups.min(-1), 0)
    step, least = _levels((groups.max(-1) - low) / 15, 63), _levels(-low, 63)
    (unit, scales), (minimum, minima) = step, least
    width, offset = unit * scales, minimum * minima
    values = np.rint((groups + offset[:, :, None]) / np.where(width > 0, width, 1)[:, :, None])
    values = np.clip(values, 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = (values[:, :, 0] | values[:, :, 1] << 4).reshape(len(groups), -1)
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first, middle = s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6
    last = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return np.concatenate((_bytes(unit), _bytes(minimum), first, middle, last, packed), 1).reshape(
        len(numbers), -1
    )


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
