"""Products of 17 to 32 tokens on several GPUs (`stream.cu`), and the sums of those (`take_norm.cu`)."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import literal, unless
from jllama.kernels.gpu.exchange import Peers
from jllama.kernels.gpu.peers import places
from jllama.layers.qtensor import QTensor

MAX_TOKENS, MAX_TILES = 32, 8
CLUSTER, WARPS, STAGES = 2, 8, 3
DEEP = 5  # stages of a product that sends nothing; more on their way keep sums from being sent
SHORT, MANY = 2048, 16  # columns that a block takes alone, by so many warps: no cluster has to add up
NORM_SIZE = 512  # threads of a block
BUSY = 0.9  # of the multiprocessors, at least: other sizes are left to cuBLAS


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    TOKENS: int
    ROWS: int
    COLUMNS: int
    MT: int  # tiles of 16 rows of a block
    GPUS: int = 1  # to which the sums are sent; 1: to none
    BIAS: int = 0
    FP16: int = 0
    CL: int = CLUSTER  # blocks of a cluster, which share the columns
    WARPS: int = WARPS
    STAGES: int = STAGES  # how many times a warp asks ahead

    @property
    def padded(self) -> int:
        """Tokens, to a multiple of 8."""
        return -(-self.TOKENS // 8) * 8

    @property
    def blocks(self) -> int:
        return self.ROWS // (16 * self.MT) * self.CL

    @property
    def shared(self) -> int:
        """Bytes of shared memory; the same sum as in stream.cu."""
        ring = self.WARPS * self.STAGES * (self.MT * 1024 + self.padded * 64)
        return ring + (self.padded * 16 * self.MT * 4 if self.CL > 1 else 0)


def make_shape(tokens: int, rows: int, columns: int, **more: int) -> Shape | None:
    """All rows at once on nearly all multiprocessors; None where that is not to be had."""
    if tokens > MAX_TOKENS or rows % 16:
        return None
    tiles = [tiles for tiles in range(1, MAX_TILES + 1) if rows // 16 % tiles == 0]
    ways = _ways(columns, sends=more.get("GPUS", 1) > 1)
    cuts = [Shape(tokens, rows, columns, number, **more, **way) for way in ways for number in tiles]
    return next(filter(_fits, cuts), None)


def _ways(columns: int, sends: bool) -> list[dict[str, int]]:
    """How a block may go about it, the best first."""
    alone = [dict(CL=1, WARPS=MANY)] if sends and columns == SHORT else []
    deep = [] if sends else [dict(STAGES=DEEP)]
    return [*alone, *deep, {}]


def _fits(cut: Shape) -> bool:
    at_once = launch.blocks_at_once()
    busy = BUSY * at_once <= cut.blocks <= at_once
    return busy and cut.shared <= launch.shared_memory() and cut.COLUMNS % (32 * cut.WARPS * cut.CL) == 0


def streamed(
    weight: Array | QTensor, x: Array, *, bias: Array | None = None, peers: Peers | None = None
) -> list[Array] | None:
    """`linear` of few rows of activations; None: this weight is left to others.

    Args:
      weight: `[*out, C]`.
      x: `[B, C]` in the run dtype.
      bias: `[*out]`; not with `peers`.
      peers: GPUs that are sent the result too.

    Returns:
      `[B, R]`, rounded once; with `peers` also which turn of theirs this is, uint32 `[1]`, for `taken_norm`.
    """
    if isinstance(weight, QTensor):
        return None
    rows, gpus = math.prod(weight.shape[:-1]), 1 if peers is None else peers.count
    how = dict(GPUS=gpus, BIAS=int(bias is not None), FP16=int(x.dtype == jnp.float16))
    shape = make_shape(len(x), rows, x.shape[1], **how)
    if shape is None:
        return None
    results = [jax.ShapeDtypeStruct((len(x), rows), x.dtype), jax.ShapeDtypeStruct((1,), jnp.uint32)]
    with jax.named_scope("stream"):
        fleet = (weight, weight) if peers is None else (peers.addresses, peers.rank())
        return list(
            launch.call(
                stream_source(shape),
                "jllama_stream",
                [*fleet, x, weight, weight if bias is None else bias],
                results[: 1 if peers is None else 2],
                grid=shape.blocks,
                threads=32 * shape.WARPS,
                shared=shape.shared,
            )
        )


@functools.lru_cache(maxsize=64)
def stream_source(shape: Shape) -> str:
    sizes = dataclasses.asdict(shape) | dict(PADDED=shape.padded, CLUSTER=shape.CL)
    sizes |= places(shape.GPUS) if shape.GPUS > 1 else {}
    boxes = ("mailboxes.cu",) if shape.GPUS > 1 else ()
    return launch.assemble(launch.define(sizes), "primitives.cu", *boxes, "stream.cu")


@dataclasses.dataclass(frozen=True)
class NormShape:
    """What the source of `take_norm.cu` depends on."""

    GPUS: int
    D: int
    EPS: str
    NORM_OFFSET: str = "0"
    BIAS: int = 0
    RESIDUAL_SCALE: str = "1"
    FP16: int = 0


def taken_norm(
    peers: Peers,
    x: Array,
    turn: Array,
    residual: Array,
    weight: Array,
    *,
    eps: float,
    offset: float = 0.0,
    bias: Array | None = None,
    by: float = 1.0,
) -> tuple[Array, Array]:
    """`exchange.exchanged_norm` of what `streamed` gave, `x` `[B, D]` and `turn`, and sent to the others."""
    shape = NormShape(
        peers.count,
        x.shape[1],
        literal(eps),
        NORM_OFFSET=unless(offset, 0),
        BIAS=int(bias is not None),
        RESIDUAL_SCALE=unless(by, 1),
        FP16=int(residual.dtype == jnp.float16),
    )
    with jax.named_scope("take_norm"):
        out, normed = launch.call(
            norm_source(shape),
            "jllama_take_norm",
            [peers.addresses, peers.rank(), turn, x, residual, weight, weight if bias is None else bias],
            [jax.ShapeDtypeStruct(residual.shape, residual.dtype)] * 2,
            grid=len(x),
            threads=NORM_SIZE,
            shared=4 * NORM_SIZE // 32,
        )
        return out, normed


@functools.lru_cache(maxsize=64)
def norm_source(shape: NormShape) -> str:
    sizes = dataclasses.asdict(shape) | places(shape.GPUS)
    sizes |= dict(EACH=-(-shape.D // (8 * NORM_SIZE)), BLOCK_SIZE=NORM_SIZE)
    return launch.assemble(launch.define(sizes), "primitives.cu", "mailboxes.cu", "take_norm.cu")
