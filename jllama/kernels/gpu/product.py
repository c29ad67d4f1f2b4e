"""A weight times the activations of few tokens, the norm before it and what follows it (`product.cu`)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import ACTIVATIONS, unless
from jllama.kernels.gpu.layout import Format
from jllama.kernels.gpu.plan import weight_format
from jllama.layers import records
from jllama.layers.qtensor import QTensor

# Of quantised weights, of plain ones: cuBLAS is as fast with 16 and faster with more.
MAX_TOKENS, MAX_PLAIN = 32, 16
X_BYTES = 122880  # of activations in shared memory, at most, where several blocks can share the columns
MAX_STAGES, MIN_STAGES = 12, 4
SUMS = 64  # that a thread can keep in registers
NOTHING, RESIDUAL, GATED = 0, 1, 2  # what follows the product


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    TOKENS: int
    ROWS: int
    COLUMNS: int
    MT: int  # tiles of 16 rows that a block takes at a time
    CL: int  # blocks of a cluster, which share the columns
    CLUSTERS: int
    WARPS: int
    STAGES: int  # how many times a warp asks ahead
    BITS: int
    GROUP: int  # 0: none, or one scale a row
    SCALE_BYTES: int
    OFFSETS: int
    RECORD: int  # bytes of 256 weights' scales and offsets; 0: they lie in arrays of their own
    NORM: int
    EPS: str
    AFTER: int
    WIDE: int
    FP16: int
    BIAS: int = 0
    NORM_OFFSET: str = "0"
    RESIDUAL_SCALE: str = "1"
    ACTIVATION: int = 0

    @property
    def padded(self) -> int:
        """Tokens, to a multiple of 8."""
        return -(-self.TOKENS // 8) * 8

    @property
    def x_bytes(self) -> int:
        """Of a block's activations; the same sums as in product.cu, as in what follows."""
        most = -(-(self.COLUMNS * self.BITS // 512) // self.CL) * 1024 // self.BITS
        return self.padded * (-(-most // 128) * 128 + {16: 64, 8: 16, 4: 32}[self.BITS])

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        lists = self.RECORD // 16 if self.RECORD else (1 + self.OFFSETS) * bool(self.GROUP)
        slot = 1024 + 256 * lists
        sums = self.MT * self.padded * 64
        squares = 4 * max(self.WARPS, self.padded)
        return self.x_bytes + self.WARPS * (sums + self.STAGES * slot) + squares


def product_refusal(f: Format, rows: int, columns: int, tokens: int = MAX_TOKENS) -> str | None:
    """Why the kernel can't multiply so many tokens with such a weight; None if it can."""
    if f.refusal is not None:
        return f.refusal
    if columns % records.UNIT if f.record else columns * f.bits % 512 or f.row_scales(columns) % 4:
        return f"rows of {columns} weights of {f.bits} bits"
    shape = make_shape(tokens, rows, columns, f, NOTHING)
    fits = shape.x_bytes <= X_BYTES and shape.shared <= launch.shared_memory()
    return None if fits else f"rows of {columns} weights are too long for the shared memory"


def product(
    weight: Array | QTensor,
    x: Array,
    *,
    norm: Array | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    bias: Array | None = None,
    residual: Array | None = None,
    by: float = 1.0,
    gated: str | None = None,
    wide: bool = False,
) -> Array:
    """`linear` of few rows of activations, and what surrounds it; asks `product_refusal` first.

    Args:
      weight: `[*out, C]`; with `gated` `[2, F, C]`.
      x: `[B, C]` in the run dtype, B at most `MAX_TOKENS`.
      norm: `[C]`: `rms_norm(norm, x, eps, offset)` takes the place of x.
      bias: `[*out]`.
      residual: `[B, R]`, added to the result, which is multiplied with `by` before.
      gated: a name of `ACTIVATIONS`: the result is `activation(gate) * up`, `[B, F]`.
      wide: the result is float32.

    Returns:
      `[B, R]`, rounded once.
    """
    with jax.named_scope("product"):
        values, scales, offsets = weight_parts(weight)
        after = GATED if gated is not None else NOTHING if residual is None else RESIDUAL
        rows = values.size // x.shape[-1] if values is weight else values.shape[0]
        how = family(bias is not None, offset, by, gated) | dict(wide=wide, fp16=x.dtype == jnp.float16)
        sizes = (len(x), rows, x.shape[-1], weight_format(weight))
        shape = make_shape(*sizes, after, eps=None if norm is None else eps, **how)
        optional = (values if a is None else a for a in (norm, residual, bias))
        operands = [x, *optional, values, scales, offsets]
        (y,) = launch.call(
            product_source(shape),
            "jllama_product",
            operands,
            [jax.ShapeDtypeStruct(result_shape(shape), jnp.float32 if wide else x.dtype)],
            grid=shape.CL * shape.CLUSTERS,
            threads=32 * shape.WARPS,
            shared=shape.shared,
        )
        return y


def family(bias: bool, offset: float, by: float, activation: str | None) -> dict[str, Any]:
    """The fields of `Shape` that not every family sets."""
    return dict(
        BIAS=int(bias),
        NORM_OFFSET=unless(offset, 0),
        RESIDUAL_SCALE=unless(by, 1),
        ACTIVATION=ACTIVATIONS.index(activation or ACTIVATIONS[0]),
    )


def result_shape(shape: Shape) -> tuple[int, int]:
    return shape.TOKENS, shape.ROWS // 2 if shape.AFTER == GATED else shape.ROWS


def weight_parts(weight: Array | QTensor) -> tuple[Array, Array, Array]:
    """Values, scales and offsets; the values stand for what there is not."""
    if not isinstance(weight, QTensor):
        return weight, weight, weight
    return weight.values, weight.scales, weight.values if weight.offsets is None else weight.offsets


def make_shape(
    B: int,
    rows: int,
    columns: int,
    f: Format,
    after: int,
    *,
    eps: float | None = None,
    wide: bool = False,
    fp16: bool = False,
    **more: Any,
) -> Shape:
    """As few blocks share the columns as have room for the activations; as much in flight as then fits."""
    plain = Shape(
        TOKENS=B,
        ROWS=rows,
        COLUMNS=columns,
        MT=1,
        CL=1,
        CLUSTERS=1,
        WARPS=16,
        STAGES=MIN_STAGES,
        BITS=f.bits,
        GROUP=f.group,
        SCALE_BYTES=f.scale_bytes,
        OFFSETS=int(f.offsets),
        RECORD=f.record,
        NORM=int(eps is not None),
        EPS=f"{eps or 0.0:.9e}f",
        AFTER=after,
        WIDE=int(wide),
        FP16=int(fp16),
        **more,
    )
    room = launch.shared_memory()
    shares = (1, 2, 4, 8) if launch.engine() else (1,)
    cuts = [_cut(plain, warps, share) for share in shares for warps in (16, 8)[B > 16 :]]
    shape = next((cut for cut in cuts if cut.x_bytes <= X_BYTES and cut.shared <= room), cuts[-1])
    while shape.STAGES < MAX_STAGES:
        deeper = dataclasses.replace(shape, STAGES=shape.STAGES + 1)
        if deeper.shared > room:
            break
        shape = deeper
    return shape


def _cut(shape: Shape, warps: int, share: int) -> Shape:
    """Rows in equal parts for all clusters of `share` blocks, each in as few steps as registers allow."""
    # Groups of multiprocessors are of different sizes: larger clusters leave some of them over.
    at_once = max(1, launch.blocks_at_once() * (8 if share > 2 else 10) // (10 * share))
    tiles = -(-shape.ROWS // 16)
    each = -(-tiles // at_once)
    steps = -(-each * (shape.padded // 8) * 4 // SUMS)
    taken = -(-each // steps)
    clusters = min(at_once, -(-tiles // taken))
    return dataclasses.replace(shape, MT=taken, CL=share, CLUSTERS=clusters, WARPS=warps)


@functools.lru_cache(maxsize=64)
def product_source(shape: Shape) -> str:
    sizes = dataclasses.asdict(shape) | {"PADDED": shape.padded, "CLUSTER": shape.CL}
    defines = launch.define(sizes)
    return launch.assemble(defines, "primitives.cu", "product.cu")
