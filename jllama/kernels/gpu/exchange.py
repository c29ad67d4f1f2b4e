"""Sums over GPUs by words in each other's memory (`exchange.cu`): of batches, between their products."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import PLAIN, Arrangement, literal, unless
from jllama.kernels.gpu.peers import MAX_BLOCKS, MAX_ROW, MAX_SUMS, MAX_VOCABULARY, places
from jllama.layers.shards import Shards

BLOCK_SIZE, PULL_SIZE, NORM_SIZE = 256, 512, 512  # threads of a block
PULLS = True  # two GPUs, 16-bit numbers: instead of XLA's all-reduce, 61 us and not 80 for 2,048 x 4,096
MOST_BLOCKS = 128  # no more than there are multiprocessors: all of them run at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers(Shards):
    """GPUs that reach each other's memory: sums of few numbers go as words, others as XLA has it."""

    addresses: Array  # int32 [count, 2]: of the mailboxes, as `mailboxes` gives them

    def rank(self) -> Array:
        """int32 `[1]`: which of them this GPU is."""
        return jax.lax.axis_index(self.axis).astype(jnp.int32)[None]

    def parts_dtype(self, dtype: Any, count: int) -> Any:
        """See `Shards.parts_dtype`: what is too much for words goes in the run dtype, half as many bytes."""
        return jnp.float32 if fits(count) or jnp.dtype(dtype).itemsize > 2 else dtype

    def total(self, part: Array) -> Array:
        """See `Shards.total`."""
        if part.dtype == jnp.float32 and fits(part.size):
            return exchanged(self, part)
        pulls = PULLS and self.count == 2 and part.dtype.itemsize == 2 and part.size % 8 == 0
        return pulled(self, part) if pulls else super().total(part)


def gpus_of(shards: Shards | None) -> int:
    """How many GPUs a kernel shares its work with, its own included."""
    return shards.count if isinstance(shards, Peers) else 1


def refused_shards(config: ModelConfig, shards: Shards | None) -> str | None:
    """Why no kernel works on a part of a model together with others; None if one does, or if it is whole."""
    if shards is None:
        return None
    if not isinstance(shards, Peers):
        return "the GPUs do not reach each other's memory"
    if config.hidden_size > MAX_ROW or config.vocab_size > MAX_VOCABULARY:
        return "rows or a vocabulary too long for the mailboxes"
    return None


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    gpus: int
    NUMBERS: int
    D: int  # of a row of the bias
    BIAS: int = 0
    RESIDUAL: int = 0
    RESIDUAL_SCALE: str = "1"
    WIDE: int = 1
    FP16: int = 0

    @property
    def blocks(self) -> int:
        return min(MOST_BLOCKS, -(-self.NUMBERS // (2 * BLOCK_SIZE)))

    @property
    def each(self) -> int:
        """Pairs of numbers per thread."""
        return -(-self.NUMBERS // (2 * BLOCK_SIZE * self.blocks))


def fits(count: int) -> bool:
    """Whether so many numbers go as words: an even number that the mailboxes have room for."""
    return count <= MAX_SUMS and count % 2 == 0


def exchanged(
    peers: Peers,
    x: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    by: float = 1.0,
) -> Array:
    """The sum of all GPUs' `x`, in one order and so with the same bits on each of them.

    Args:
      peers: the GPUs; each calls this, as often as the others and in the same order.
      x: float32 `[..., D]`, no more numbers than `fits`.
      bias: `[D]`, in 16 bits, added to the sum.
      residual: `[..., D]`, in 16 bits, added to the sum, which is multiplied with `by` before.

    Returns:
      in the dtype of `residual`, rounded once; float32 where there is none.
    """
    with jax.named_scope("exchange"):
        dtype = x.dtype if residual is None else residual.dtype
        shape = Shape(
            peers.count,
            x.size,
            x.shape[-1],
            BIAS=int(bias is not None),
            RESIDUAL=int(residual is not None),
            RESIDUAL_SCALE=unless(by, 1),
            WIDE=int(residual is None),
            FP16=int(jnp.float16 in (dtype, None if bias is None else bias.dtype)),
        )
        operands = [peers.addresses, peers.rank(), x, *(x if a is None else a for a in (residual, bias))]
        (total,) = launch.call(
            exchange_source(shape),
            "jllama_exchange",
            operands,
            [jax.ShapeDtypeStruct(x.shape, dtype)],
            grid=shape.blocks,
            threads=BLOCK_SIZE,
        )
        return total


@functools.lru_cache(maxsize=64)
def exchange_source(shape: Shape) -> str:
    sizes = dataclasses.asdict(shape) | places(shape.gpus)
    sizes |= dict(BLOCKS=shape.blocks, EACH=shape.each, BLOCK_SIZE=BLOCK_SIZE)
    del sizes["gpus"]
    defines = launch.define(sizes)
    return launch.assemble(defines, "primitives.cu", "mailboxes.cu", "exchange.cu")


def pulled(peers: Peers, x: Array) -> Array:
    """The sum of two GPUs' `x`, 16-bit floats, a multiple of 8: each reads the other's (`pull.cu`)."""
    with jax.named_scope("pull"):
        blocks = min(launch.blocks_at_once(), MAX_BLOCKS, -(-x.size // (8 * PULL_SIZE)))
        (total,) = launch.call(
            pull_source(x.size, blocks, x.dtype == jnp.float16),
            "jllama_pull",
            [peers.addresses, peers.rank(), x],
            [jax.ShapeDtypeStruct(x.shape, x.dtype)],
            grid=blocks,
            threads=PULL_SIZE,
            shared=16,
        )
        return total


@functools.lru_cache(maxsize=64)
def pull_source(count: int, blocks: int, fp16: bool) -> str:
    sizes = dict(NUMBERS=count, BLOCKS=blocks, BLOCK_SIZE=PULL_SIZE, FP16=int(fp16)) | places(2)
    defines = launch.define(sizes)
    return launch.assemble(defines, "primitives.cu", "pull.cu")


@dataclasses.dataclass(frozen=True)
class NormShape:
    """What the source of `exchange_norm.cu` depends on."""

    gpus: int
    ROWS: int
    D: int
    SLICES: int
    EPS: str
    NORM_OFFSET: str = "0"
    BIAS: int = 0
    RESIDUAL_SCALE: str = "1"
    FP16: int = 0
    ARRANGED: int = 0
    ROOM: int = 0


def exchanged_norm(
    peers: Peers | None,
    x: Array,
    residual: Array,
    weight: Array,
    *,
    eps: float,
    offset: float = 0.0,
    bias: Array | None = None,
    by: float = 1.0,
    arrangement: Arrangement = PLAIN,
) -> tuple[Array, Array]:
    """`exchanged` with a residual, and `rms_norm(weight, ..., eps, offset)` of what it gives, `[B, D]` both.

    Args:
      peers: the GPUs whose sums are added too; None: there are no others.
      x: float32 `[slices, B, D]`, which are added up; each GPU's sum is rounded to 16 bits before it is sent.
        No more than `fits`, D a multiple of 4.
      residual: `[B, D]` in 16 bits.
      weight: `[D]` in 16 bits.
      bias: `[D]` in 16 bits, added to the sum before it is multiplied with `by`.
      arrangement: of the norm.
    """
    with jax.named_scope("exchange_norm"):
        shape = NormShape(
            gpus_of(peers),
            len(residual),
            x.shape[2],
            len(x),
            literal(eps),
            NORM_OFFSET=unless(offset, 0),
            BIAS=int(bias is not None),
            RESIDUAL_SCALE=unless(by, 1),
            FP16=int(residual.dtype == jnp.float16),
            ARRANGED=arrangement.bits,
            ROOM=arrangement.room,
        )
        fleet = (weight, weight) if peers is None else (peers.addresses, peers.rank())
        operands = [*fleet, x, residual, weight, weight if bias is None else bias]
        return _normed(shape, operands, residual)


def _normed(shape: NormShape, operands: list[Array], like: Array) -> tuple[Array, Array]:
    """The sum, of the shape and dtype of `like`, and its norm."""
    to = Arrangement(shape.ARRANGED, shape.ROOM).shape(*like.shape)
    out, normed = launch.call(
        exchange_norm_source(shape),
        "jllama_exchange_norm",
        operands,
        [jax.ShapeDtypeStruct(s, like.dtype) for s in (like.shape, to)],
        grid=shape.ROWS,
        threads=NORM_SIZE,
        shared=4 * NORM_SIZE // 32,
    )
    return out, normed


@functools.lru_cache(maxsize=64)
def exchange_norm_source(shape: NormShape) -> str:
    sizes = dataclasses.asdict(shape) | (places(shape.gpus) if shape.gpus > 1 else dict(GPUS=1))
    sizes |= dict(EACH=-(-shape.D // (4 * NORM_SIZE)), BLOCK_SIZE=NORM_SIZE)
    del sizes["gpus"]
    defines = launch.define(sizes)
    boxes = ("mailboxes.cu",) if shape.gpus > 1 else ()
    return launch.assemble(defines, "primitives.cu", *boxes, "exchange_norm.cu")
