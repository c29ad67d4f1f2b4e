"""Many new tokens of each sequence, between the projections: one kernel appends, one attends (`chunk.cu`)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import Constants, constants, rotary_refusal
from jllama.layers.attention import attend, one_token, rotated_heads
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule

MAX_STAGES, MAX_SPLITS = 4, 16
APPEND_THREADS = 256


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernels' source depends on: a key of the cache of compiled kernels."""

    B: int
    TOKENS: int
    K: int
    G: int
    H: int
    S: int
    CONSUMERS: int  # warpgroups that multiply, 64 rows each
    STAGES: int  # tiles of keys, and of values, in shared memory
    P: int  # blocks that share rows
    WINDOW: int  # 0: none
    FP16: int
    ROTARY: int
    SCALE: str
    CAP: str

    @property
    def keys(self) -> int:
        """Cached positions of a tile, as in chunk.cu."""
        return 64 if self.H > 128 else 128

    @property
    def shared(self) -> int:
        """Bytes of shared memory, the same sum as in chunk.cu."""
        panels = -(-self.H // 64) * 128
        return panels * (64 * self.CONSUMERS + 2 * self.STAGES * self.keys) + 4 * self.STAGES * 8 + 16

    @property
    def threads(self) -> int:
        return 128 * (self.CONSUMERS + 1)

    @property
    def blocks(self) -> int:
        return self.P * self.B * self.K * -(-self.TOKENS * self.G // (64 * self.CONSUMERS))

    @property
    def results(self) -> list[tuple[int, ...]]:
        """Shapes of what the kernel writes: mixed values, what blocks share."""
        mixed = (self.B, self.TOKENS, self.K, self.G, self.H)
        lines = -(-self.H // 64) * 8 + 1
        shares = (self.blocks, lines, 128 * self.CONSUMERS, 4)
        return [mixed, shares] if self.P > 1 else [mixed]


def chunk_refusal(head_dim: int, dtype, rotary: Sequence[int] = ()) -> str | None:
    """Why the kernels can't run this attention, `rotary` elements of whose heads turn; None if they can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the kernel does not know {jnp.dtype(dtype)}"
    if head_dim % 16 or head_dim > 256:
        return f"the kernel does not know head_dim {head_dim} (multiples of 16 up to 256)"
    major = launch.capability()[0]
    other = (
        None
        if major == 9
        else f"the GPU has compute capability {major}; the kernel's products are those of 9"
    )
    return rotary_refusal(rotary) or launch.refusal() or other


def chunk_attend(
    qkv: Array,
    cache: LayerCache,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule,
    only: Array | None = None,
    *,
    fresh: bool = False,
) -> tuple[Array, LayerCache]:
    """`layers.attention.append_and_attend` of any number of tokens; asks `chunk_refusal` first.

    It reads only what is filled, and updates the cache in place where XLA may (the caller donates it).
    With `fresh` the cache is empty, which only speed depends on.
    """
    with jax.named_scope("chunk_attend"):
        B, T, K, G, H = (*qkv.shape[:3], qkv.shape[3] - 2, qkv.shape[4])
        more = constants(scores, rope)
        shape = make_shape(B, T, K, G, H, cache.max_len, scores.window, qkv.dtype, fresh, more)
        angles = rope or (cache.length, cache.length)  # nobody reads them where nothing turns
        operands = [qkv, *angles, cache.length, cache.places]
        keys, values = launch.call(
            chunk_source(shape),
            "jllama_append",
            [*operands, cache.keys, cache.values],
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (cache.keys, cache.values)],
            **append_launch(shape),
            aliases={5: 0, 6: 1},
        )
        appended = dataclasses.replace(cache, keys=keys, values=values)
        if only is not None:  # one query a row
            own = rope and (one_token(rope[0], only), one_token(rope[1], only))
            queries, _, _ = rotated_heads(one_token(qkv, only), own)
            return attend(queries, *appended.own(), cache.length + only, scores), appended
        mixed, *_ = launch.call(
            chunk_source(shape),
            "jllama_chunk",
            [*operands, keys, values],
            [
                jax.ShapeDtypeStruct(s, d)
                for s, d in zip(shape.results, (qkv.dtype, jnp.float32), strict=False)
            ],
            grid=shape.blocks,
            threads=shape.threads,
            shared=shape.shared,
        )
        return mixed, appended


def append_launch(shape: Shape) -> dict[str, int]:
    """A thread for each 16 columns of a new key."""
    pieces = shape.B * shape.TOKENS * shape.K * (shape.H // 16)
    return dict(grid=-(-pieces // APPEND_THREADS), threads=APPEND_THREADS)


first_chunk_attend = functools.partial(
    chunk_attend, fresh=True
)  # one object: a program for each would differ


def make_shape(
    B: int,
    T: int,
    K: int,
    G: int,
    H: int,
    S: int,
    window: int | None,
    dtype,
    fresh: bool = False,
    source: Constants | None = None,
) -> Shape:
    """Narrow heads leave registers for a third group of rows; as many stages as fit; no idle blocks."""
    more = (int(dtype == jnp.float16), *dataclasses.astuple(source or Constants.of(H)))
    shape = Shape(B, T, K, G, H, S, 3 if H <= 64 else 2, MAX_STAGES, 1, window or 0, *more)
    while shape.shared > launch.shared_memory():
        shape = dataclasses.replace(shape, STAGES=shape.STAGES - 1)
    in_sight = min(S, T if fresh else S, window + T if window else S)
    splits = min(launch.blocks_at_once() // shape.blocks, in_sight // (2 * shape.keys), MAX_SPLITS)
    return dataclasses.replace(shape, P=max(1, splits))


@functools.lru_cache(maxsize=64)
def chunk_source(shape: Shape) -> str:
    defines = launch.define(dataclasses.asdict(shape))
    return launch.assemble(defines, "primitives.cu", "chunk.cu")
