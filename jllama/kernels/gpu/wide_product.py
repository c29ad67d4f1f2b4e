"""A weight times the activations of many tokens (`wide_product.cu`): few bits are expanded on their way."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import ACTIVATIONS, PANEL, PLAIN, Arrangement
from jllama.kernels.gpu.layout import Format, rounded
from jllama.kernels.gpu.plan import weight_format
from jllama.kernels.gpu.product import weight_parts
from jllama.layers.qtensor import QTensor

MAX_TOKENS = 128  # more were not measured
MAX_SLICES = 8
MAX_STAGES = 16


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    TOKENS: int
    ROWS: int
    COLUMNS: int
    BITS: int
    GROUP: int  # 0: none, or one scale a row
    SCALE_BYTES: int
    OFFSETS: int
    GATED: int
    OUT_BITS: int  # of the weights that gated results meet
    BIAS: int
    ACTIVATION: int
    FP16: int
    WM: int = 1  # warpgroups with rows of their own
    WK: int = 1  # warpgroups that share columns
    SLICES: int = 1  # of the columns, whose sums are results of their own
    W_STAGES: int = 4
    X_STAGES: int = 4

    @property
    def padded(self) -> int:
        """Tokens, to a multiple of 8."""
        return rounded(self.TOKENS, 8)

    @property
    def shared(self) -> int:
        """Bytes of shared memory, the same sum as in wide_product.cu."""
        slot = 1024 + 256 * (1 + self.OFFSETS) * bool(self.GROUP)
        groups = self.WM * self.WK
        rings = self.X_STAGES * self.padded * 128 + 4 * groups * self.W_STAGES * slot
        sums = self.padded * 256 * groups if self.WK > 1 else 0
        return rings + sums + 16 * self.X_STAGES

    @property
    def threads(self) -> int:
        return 128 * self.WM * self.WK + 32

    @property
    def tiles(self) -> int:
        """Of rows."""
        rows, each = (self.ROWS // 2, 32) if self.GATED else (self.ROWS, 64)
        return -(-rows // (each * self.WM))

    @property
    def result(self) -> tuple[int, ...]:
        if self.GATED:
            return Arrangement(self.OUT_BITS, self.padded).shape(self.TOKENS, self.ROWS // 2)
        return self.SLICES, self.TOKENS, self.ROWS


def arrangement(weight: Array | QTensor, tokens: int) -> Arrangement:
    """How activations lie that meet this weight: `PLAIN` where the kernel, or the GPU, can't multiply so.

    Of 16 bits cuBLAS's products are as fast, and other forms of scales are not known.
    """
    columns = weight.shape[-1]
    if launch.capability()[0] != 9 or columns % PANEL:
        return PLAIN
    f = weight_format(weight)
    known = f.refusal is None and not f.record and (f.bits, f.group) in ((8, 0), (4, 32))
    if not known or (f.bits == 4 and columns % (2 * PANEL)):
        return PLAIN
    return Arrangement(f.bits, rounded(tokens, 8))


def arranged(x: Array, to: Arrangement) -> Array:
    """Activations `[B, C]` as the kernel reads them."""
    if not to.bits:
        return x
    (B, C), bits, room = x.shape, to.bits, to.room
    # For each step of 16 columns a lane has two pairs, beside those for the next step.
    cut, order = {
        8: ((4, 4, 2, 2), (1, 3, 4, 0, 2, 5)),  # lane, step, pair, column
        4: ((4, 2, 4, 2, 2), (1, 3, 4, 5, 0, 2, 6)),  # lane, half, step, pair, column
    }[bits]
    x = jnp.pad(x, ((0, room - B), (0, 0))).reshape(room, -1, *cut)
    return x.transpose(order).reshape(to.shape(B, C))


def wide_product(
    weight: Array | QTensor,
    x: Array,
    tokens: int,
    *,
    bias: Array | None = None,
    gated: str | None = None,
    out: Arrangement = PLAIN,
    most: int = MAX_SLICES,
) -> Array:
    """`linear` of activations that are arranged as `arrangement` says, which is not `PLAIN`.

    Args:
      weight: `[*out, C]`; with `gated` `[2, F, C]`.
      x: what `arranged` gives.
      tokens: B, how many of the places in `x` are filled; at most `MAX_TOKENS`.
      bias: `[*out]`.
      gated: a name of `ACTIVATIONS`: the result is `activation(gate) * up`, `[B, F]` or as `out` says.
      most: slices at most.

    Returns:
      float32 `[slices, B, R]`, whose sum is meant; with `gated` in the run dtype.
    """
    with jax.named_scope("wide_product"):
        values, scales, offsets = weight_parts(weight)
        columns = weight.shape[-1]
        how: Any = dict(BIAS=int(bias is not None), FP16=int(x.dtype == jnp.float16))
        if gated is not None:
            how |= dict(GATED=1, OUT_BITS=out.bits, ACTIVATION=ACTIVATIONS.index(gated))
        shape = make_shape(tokens, len(values), columns, weight_format(weight), most, **how)
        (y,) = launch.call(
            wide_source(shape),
            "jllama_wide_product",
            [x, x if bias is None else bias, values, scales, offsets],
            [jax.ShapeDtypeStruct(shape.result, jnp.float32 if gated is None else x.dtype)],
            grid=shape.tiles * shape.SLICES,
            threads=shape.threads,
            shared=shape.shared,
        )
        return y


def make_shape(B: int, rows: int, columns: int, f: Format, most: int = MAX_SLICES, **more: Any) -> Shape:
    """How the work is cut, as measured: a multiprocessor's two blocks, or two groups in one, hide the
    conversion of one behind the products of the other.
    """
    plain: Any = dict(GATED=0, OUT_BITS=0, BIAS=0, ACTIVATION=0, FP16=0) | more
    shape = Shape(
        TOKENS=B,
        ROWS=rows,
        COLUMNS=columns,
        BITS=f.bits,
        GROUP=f.group,
        SCALE_BYTES=f.scale_bytes,
        OFFSETS=int(f.offsets),
        **plain,
    )
    multiprocessors, room = launch.blocks_at_once(), launch.shared_memory()
    if shape.GATED:
        return _filled(shape, (room - 1024) // 2)
    if shape.tiles > multiprocessors:
        return _filled(dataclasses.replace(shape, WM=2), room)
    slices = max(1, min(most, multiprocessors // shape.tiles))
    return _filled(dataclasses.replace(shape, WK=2, SLICES=slices), room)


def _filled(shape: Shape, room: int) -> Shape:
    """As much on its way as there is room for."""
    for _ in range(MAX_STAGES):
        for ring in ("X_STAGES", "W_STAGES"):
            deeper = dataclasses.replace(shape, **{ring: getattr(shape, ring) + 1})
            shape = deeper if deeper.shared <= room and getattr(deeper, ring) <= MAX_STAGES else shape
    return shape


@functools.lru_cache(maxsize=64)
def wide_source(shape: Shape) -> str:
    sizes = dataclasses.asdict(shape) | dict(N=shape.padded)
    defines = launch.define(sizes)
    return (
        launch.assemble(defines, "primitives.cu")
        + instruction(shape.padded)
        + launch.assemble("", "wide_product.cu")
    )


def instruction(N: int) -> str:
    """d [64][N] += a [64][16], in registers, times b [N][16] by rows: its operands are named one by one."""
    names = ", ".join(f"%{i}" for i in range(N // 2))
    sums = ", ".join(f'"+f"(d[{i}])' for i in range(N // 2))
    a0, a1, a2, a3, b = (f"%{N // 2 + i}" for i in range(5))
    return f"""
#ifndef EMULATED
__device__ __forceinline__ void wgmma_by_rows(float (&d)[{N // 2}], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {{
  asm volatile("{{ .reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n{N}k16.f32." MMA_TYPES
               " {{{names}}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, p, 1, 1, 0; }}"
               : {sums} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}}
#endif
"""
