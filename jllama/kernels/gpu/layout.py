"""Where things lie in the shared memory of a block of the decode kernel: every sum is written here alone."""

import dataclasses

from jllama.layers.records import UNIT

ROW_BYTES = 1024  # of a weight row per ring slot
KNOWN = {(16, 0), (8, 0), (8, 16), (8, 32), (8, 64), (4, 32), (4, 64), (4, 128)}  # bits and group of a format
TABLE_LAYER, TABLE_PER_LAYER = 16, 16  # the pointer table of layout.cu


def rounded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


@dataclasses.dataclass(frozen=True)
class Format:
    """How a weight is stored: bits, group (0: one scale a row), bytes of a scale, whether with offsets."""

    bits: int
    group: int
    scale_bytes: int
    offsets: bool = False
    record: int = 0  # bytes that hold the scales and offsets of 256 weights, `layers.records`; 0: arrays do

    @property
    def refusal(self) -> str | None:
        """Why no kernel multiplies with such weights, however long their rows; None if they do."""
        if (self.bits, self.group) not in KNOWN:
            return f"the kernel does not know weights of {self.bits} bits in groups of {self.group}"
        if self.scale_bytes == 1:
            return "the kernel does not know scales of two levels, but in records"
        if self.bits == 8 and not self.group and (self.offsets or self.scale_bytes != 4):
            return "8-bit weights whose rows have offsets, or float16 scales"
        return None

    @property
    def unit(self) -> int:
        """Bytes of a row that the kernel takes at a time: four groups' where there are groups."""
        return self.group * self.bits // 2 if self.group else 64

    @property
    def lists(self) -> int:
        """Arrays beside the values that a group's scale and offset come from."""
        return 0 if not self.group else 2 if self.offsets and not self.record else 1

    def row_scales(self, columns: int) -> int:
        """Bytes of scales, or of records, per `columns` weights."""
        if self.record:
            return columns // UNIT * self.record
        return columns // self.group * self.scale_bytes if self.group else 0


@dataclasses.dataclass(frozen=True)
class Activations:
    """How the activations lie that meet rows of so many weights: 16-bit floats, or limbs of 8 bits."""

    format: Format
    columns: int
    floats: bool = False  # whatever the weights' bits

    @property
    def stride(self) -> int:
        """Bytes between limbs."""
        return rounded(self.columns, 128) + 64

    @property
    def size(self) -> int:
        """Two limbs and 8 bytes a group of weights, or three limbs."""
        if self.format.bits == 16:
            return 2 * self.columns
        if self.floats:
            return rounded(2 * self.columns, 128)
        if self.format.group:
            return 2 * self.stride + self.columns // self.format.group * 8
        return 3 * self.stride

    @property
    def text(self) -> int:
        """Bytes between texts, which a load finds on different banks."""
        return rounded(self.size, 128) + (32 if self.format.group and not self.floats else 64)

    def of(self, texts: int) -> int:
        """Bytes of so many texts."""
        return self.size if texts == 1 else texts * self.text


@dataclasses.dataclass(frozen=True)
class Tile:
    """How 8 or 16 rows' slices lie in a slot of the ring: rows, their scales, then as much of offsets."""

    format: Format
    columns: int
    row_bytes: int  # of each row per slot, roughly
    groups: int  # of warps, each of which takes every `groups`-th slot
    texts: int = 1  # that are decoded together

    @property
    def row(self) -> int:
        """Bytes of a row of weights."""
        return self.columns * self.format.bits // 8

    @property
    def rows(self) -> int:
        """8, or 16 where they are short."""
        return 16 if self.format.bits < 16 or 2 * self.row <= self.row_bytes else 8

    @property
    def units(self) -> int:
        """Units of 64 bytes per slice; groups of warps share a row's slices evenly."""
        pieces = -(-self.row // self.row_bytes)
        if self.format.group and pieces > 1:
            pieces = rounded(pieces, self.groups)
        units = -(-rounded(self.row, 64) // 64 // pieces)
        return rounded(units, 4) if self.format.group else units

    @property
    def stride(self) -> int:
        """Bytes between rows; what is added keeps the rows of a load on different banks."""
        by_words = self.texts > 1 and self.format.group  # 4 bytes a lane, not 16
        return rounded(self._slice, 128) + (64 if self.format.unit == 64 and not by_words else 16)

    @property
    def scale_stride(self) -> int:
        """Bytes between the scales of two rows."""
        scales = self.format.row_scales(self.columns)
        return scales if self.second else self.format.row_scales(self._slice * 8 // self.format.bits) + 16

    @property
    def second(self) -> int:
        """Where the up rows' scales begin if all rows' scales are copied in one piece; 0: a piece a row."""
        scales = self.format.row_scales(self.columns)
        return (self.rows // 2 * scales + 47) // 16 * 16 if scales % 16 else 0

    @property
    def slices(self) -> int:
        """How many slots a row's bytes are spread over."""
        return -(-self.row // self._slice)

    def slots(self, rows: int) -> int:
        """How many slots of the ring a weight of so many rows takes."""
        return -(-rows // self.rows) * self.slices

    @property
    def size(self) -> int:
        """Bytes of a slot that it takes."""
        data = self.rows * self.stride
        if not self.format.group:
            return data
        scales = 2 * self.second if self.second else self.rows * self.scale_stride
        return data + self.format.lists * scales

    @property
    def _slice(self) -> int:
        return min(self.row, self.units * 64)


def attention_map(H: int, G: int, chunk: int, warps: int) -> tuple[dict[str, int], int]:
    """Offsets from OFF_X while a block attends, and the bytes taken.

    Args:
      H: the width of a head.
      G: query heads per key head.
      chunk: cached tokens that a block attends to at a time.
      warps: that compute.
    """
    tokens = 16 if chunk > 8 * warps else 8  # that a warp scores at a time
    row, heads = H * 2 + 16, 16 if G > 8 else 8
    sizes = dict(A_Q=16 * row, A_KV=H * 4, A_S=2 * heads * (chunk + 8) * 4)  # scores, used in turn
    places, total = _places(sizes)
    return dict(QS=row, TW=tokens, AW=chunk // tokens) | places, total


def block_map(
    slots: int,
    slot: int,
    x: int,
    kept: int,
    H: int,
    L: int,
    warps: int,
    per_layer: int = TABLE_PER_LAYER,
    kinds: int = 1,
    post: bool = False,
    texts: int = 1,
) -> tuple[dict[str, int], int]:
    """Where each part of a block's shared memory begins, and the bytes taken.

    Args:
      slots: of the ring.
      slot: bytes of each.
      x: the most that activations, attention or the joining of splits take.
      kept: numbers of the residual stream.
      H: the width of a head.
      L: layers.
      warps: that compute.
      per_layer: pointers of a layer.
      kinds: of layers.
      post: norms lie behind attention and feed-forward layer.
      texts: that are decoded together.
    """
    part = 512 * warps // (2 if texts > 4 else 1) + (16 if texts > 1 else 0)  # the last: on different banks
    return _places(
        dict(
            OFF_RING=slots * slot,
            OFF_X=rounded(x, 128),
            OFF_PART=texts * part,
            OFF_RES=rounded(kept * 2, 16),
            OFF_ROPE=kinds * H * 4,
            OFF_RED=warps * 4,
            OFF_MAX=warps * 4 + max(16, texts * 4),  # the whole vectors' scales lie behind the warps'
            OFF_BAR=2 * slots * 8,
            OFF_TABLE=(TABLE_LAYER + L * per_layer) * 8,
            OFF_PAST=kinds * 64,
            OFF_POST=warps * 4 if post else 0,
        )
    )


def _places(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """One after the other: where each begins, and where the last one ends."""
    places, at = {}, 0
    for name, size in sizes.items():
        places[name], at = at, at + size
    return places, at
