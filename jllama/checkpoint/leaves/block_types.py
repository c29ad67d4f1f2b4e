"""GGUF's block types, taken apart: values of 8 or 4 bits, scales and offsets, no number rounded.

The blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jllama.layers.qtensor import LEVELS
from jllama.layers.records import UNIT

BLOCK = 32


class Pieces(NamedTuple):
    """The arrays of a `QTensor` for some rows, in the layout "rows"."""

    values: np.ndarray  # int8 [R, C] or uint8 [R, C / 2]
    scales: np.ndarray  # float16, float32 or int8 [R, C / g]
    offsets: np.ndarray | None = None
    scale_units: np.ndarray | None = None  # float16 [R, C / 256]
    offset_units: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Form:
    """How a weight is stored: see `QTensor`."""

    bits: int
    group: int
    offsets: bool
    scales: str  # float16, float32, or int8 for two levels

    def outline(self, columns: int) -> dict[str, tuple[int, np.dtype]]:
        """The length of a row of each array that a `QTensor` of this form has, and its dtype."""
        values = (columns * self.bits // 8, np.dtype(np.int8 if self.bits == 8 else np.uint8))
        scales, unit = (columns // self.group, np.dtype(self.scales)), (columns // UNIT, np.dtype(np.float16))
        made = {"values": values, "scales": scales}
        made |= {"offsets": scales} if self.offsets else {}
        if self.scales == "int8":
            made |= {"scale_units": unit} | ({"offset_units": unit} if self.offsets else {})
        return made


@dataclasses.dataclass(frozen=True)
class BlockType:
    """A type of GGUF: the form that holds its numbers, and what takes blocks `[R, blocks, bytes]` apart."""

    form: Form
    take_apart: Callable[[np.ndarray], Pieces]


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def _field(blocks: np.ndarray, at: int, kind: str) -> np.ndarray:
    """What begins at a byte of each block as one item, a view `[R, blocks]`: NumPy copies items several times
    as fast as slices of a few bytes.
    """
    item = np.dtype({"names": ["it"], "formats": [kind], "offsets": [at], "itemsize": blocks.shape[-1]})
    return blocks.view(item)["it"][:, :, 0]


def _halves(blocks: np.ndarray, *places: int) -> list[np.ndarray]:
    """The float16 numbers `[R, blocks]` that begin at these bytes."""
    return [_field(blocks, at, "<f2") for at in places]


def _packed(blocks: np.ndarray, at: int) -> np.ndarray:
    """The bytes of each block from this one on, uint8 `[R, n]`."""
    return np.ascontiguousarray(_field(blocks, at, f"V{blocks.shape[-1] - at}")).view(np.uint8)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 `[..., n]` as `[..., 2 n]`: the low halves, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Four bytes as 32 numbers, 0 or 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def _q8_0(blocks: np.ndarray) -> Pieces:
    return Pieces(_packed(blocks, 2).view(np.int8), *_halves(blocks, 0))


def _q4_0(blocks: np.ndarray) -> Pieces:
    return Pieces(_packed(blocks, 2), *_halves(blocks, 0))


def _q4_1(blocks: np.ndarray) -> Pieces:
    return Pieces(_packed(blocks, 4), *_halves(blocks, 0, 2))


def _q5_0(blocks: np.ndarray) -> Pieces:
    values = (_nibbles(blocks[:, :, 6:]) | _fifth_bits(blocks[:, :, 2:6])).view(np.int8) - np.int8(16)
    return Pieces(_rows(values), *_halves(blocks, 0))


def _q5_1(blocks: np.ndarray) -> Pieces:
    values = (_nibbles(blocks[:, :, 8:]) | _fifth_bits(blocks[:, :, 4:8])).view(np.int8)
    return Pieces(_rows(values), *_halves(blocks, 0, 2))


def _iq4_nl(blocks: np.ndarray) -> Pieces:
    values = np.array(LEVELS, np.int8)[_nibbles(blocks[:, :, 2:])]
    return Pieces(_rows(values), *_halves(blocks, 0))


def _k_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima, 6 bits each, of the 8 groups of a Q4_K or Q5_K block: int8 `[R, C / 32]`."""
    low, middle, high = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate((low & 63, high & 15 | low >> 6 << 4), axis=-1)
    minima = np.concatenate((middle & 63, high >> 4 | middle >> 6 << 4), axis=-1)
    return _rows(scales.view(np.int8)), _rows(minima.view(np.int8))


def _k_groups(packed: np.ndarray) -> np.ndarray:
    """The nibbles of 128 bytes as `[R, blocks, 8, 32]`: 32 bytes hold two groups, the first in low halves."""
    return _nibbles(packed.reshape(*packed.shape[:2], 4, 32)).reshape(*packed.shape[:2], 8, 32)


def _q4_k(blocks: np.ndarray) -> Pieces:
    groups = _k_groups(blocks[:, :, 16:])
    values = groups[..., :16] | groups[..., 16:] << 4
    return _two_levels(values, blocks)


def _q5_k(blocks: np.ndarray) -> Pieces:
    fifth = blocks[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    values = _k_groups(blocks[:, :, 48:]) | fifth << 4
    return _two_levels(values.view(np.int8), blocks)


def _two_levels(values: np.ndarray, blocks: np.ndarray) -> Pieces:
    unit, minimum = _halves(blocks, 0, 2)
    return Pieces(_rows(values), *_k_scales(blocks[:, :, 4:16]), unit, -minimum)


def _q6_k(blocks: np.ndarray) -> Pieces:
    shape = blocks.shape[:2]
    low = _nibbles(blocks[:, :, :128].reshape(*shape, 2, 64)).reshape(*shape, 2, 4, 32)
    high = blocks[:, :, 128:192].reshape(*shape, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    values = (low | high << 4).view(np.int8) - np.int8(32)
    scales = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8)
    return Pieces(_rows(values), _rows(scales), None, *_halves(blocks, 208))


_EIGHT = Form(8, BLOCK, offsets=False, scales="float16")
TYPES = {
    "Q8_0": BlockType(_EIGHT, _q8_0),
    "Q4_0": BlockType(Form(4, BLOCK, offsets=False, scales="float16"), _q4_0),
    "Q4_1": BlockType(Form(4, BLOCK, offsets=True, scales="float16"), _q4_1),
    "Q5_0": BlockType(_EIGHT, _q5_0),
    "Q5_1": BlockType(Form(8, BLOCK, offsets=True, scales="float16"), _q5_1),
    "IQ4_NL": BlockType(_EIGHT, _iq4_nl),
    "Q4_K": BlockType(Form(4, BLOCK, offsets=True, scales="int8"), _q4_k),
    "Q5_K": BlockType(Form(8, BLOCK, offsets=True, scales="int8"), _q5_k),
    "Q6_K": BlockType(Form(8, BLOCK // 2, offsets=False, scales="int8"), _q6_k),
}


def bits_in_tiles(kinds: set[str], levels: bool) -> int:
    """Of a weight whose tensors have these types, as the CPU kernels keep it; see `QTensor`.

    `levels`: it keeps the places of IQ4_NL's levels.
    """
    if levels or common_form({TYPES[kind].form for kind in kinds}).bits == 4:
        return 4
    return 8 if kinds & {"Q8_0", "IQ4_NL"} else 6


def common_form(forms: set[Form]) -> Form:
    """The narrowest form that holds all of these exactly."""
    if len(forms) == 1:
        return next(iter(forms))
    scales = {form.scales for form in forms}
    bits = max(form.bits for form in forms)
    # float16 would not hold every -8 * scale.
    kept = len(scales) == 1 and bits == 8
    return Form(
        bits,
        min(form.group for form in forms),
        any(form.offsets for form in forms),
        scales.pop() if kept else "float32",
    )


def widened(pieces: Pieces, own: Form, form: Form) -> Pieces:
    """The same numbers in a form that holds them: one of `common_form`'s."""
    if own == form:
        return pieces
    levels = pieces if own.scales == form.scales else _one_level(pieces)
    values, scales, offsets, *units = levels
    if own.bits < form.bits:
        values = _rows(_nibbles(values.reshape(len(values), -1, BLOCK // 2))).view(np.int8)
        values = values if own.offsets else values - np.int8(8)
    if form.offsets and not own.offsets:
        offsets = scales * np.asarray(-8 if form.bits == 4 else 0, scales.dtype)
        units[1] = units[0]
    repeat = own.group // form.group
    wider = None if offsets is None else offsets.repeat(repeat, axis=1)
    return Pieces(values, scales.repeat(repeat, axis=1), wider, *units)


def _one_level(pieces: Pieces) -> Pieces:
    """With scales and offsets in float32."""
    p = pieces
    offsets = None if p.offsets is None else _times(p.offsets, p.offset_units)
    return Pieces(p.values, _times(p.scales, p.scale_units), offsets)


def _times(numbers: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    wide = numbers.astype(np.float32)
    return (
        wide if units is None else wide * units.astype(np.float32).repeat(wide.shape[1] // units.shape[1], 1)
    )
