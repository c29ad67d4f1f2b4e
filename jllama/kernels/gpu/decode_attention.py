"""One new token for each of many sequences, between the projections: rotate, append, attend in one kernel."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import PLAIN, Arrangement, Constants, constants, rotary_refusal
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule

# (qkv [B, 1, K, G + 2, H], cache, rope, scores) -> (mixed values of B rows, cache): as `decode_attend`.
RowsAttend = Callable[..., tuple[Array, LayerCache]]

# How the work is cut: see `Shape`. A block that has a multiprocessor for itself wants more warps.
WARPS_ALONE, WARPS, MAX_RESIDENT, MIN_STAGES, MAX_STAGES, MAX_SPLITS = 8, 4, 4, 3, 8, 32
WIDE, WIDE_RESIDENT = 128, 2  # heads beyond take twice the registers and shared memory
ON_THEIR_WAY = 1 << 17  # bytes of a block that has a multiprocessor for itself, at most: more were slower
ROWS = 16  # positions of a tile, as in attention.cu


@dataclasses.dataclass(frozen=True)
class Shape:
    """Everything that the kernel's source depends on: a key of the cache of compiled kernels."""

    B: int
    K: int
    G: int
    H: int
    S: int
    P: int  # blocks that share a head's cache
    WARPS: int
    STAGES: int  # tiles that each warp keeps in flight
    RESIDENT: int  # blocks at once on a multiprocessor
    WINDOW: int  # 0: none
    FP16: int
    ROTARY: int
    SCALE: str
    CAP: str
    ENGINE: int = 1  # the copy engine streams
    ARRANGED: int = 0  # as `Arrangement` has it
    ROOM: int = 0
    SLICES: int = 0  # of the product q·k·v, in float32; 0: it is one, of the run dtype

    @property
    def shared(self) -> int:
        """Bytes of shared memory, the same sum as in attention.cu."""
        ring = self.STAGES * (_tile(self.H) + 8)
        return self.WARPS * (ring + 128) + (self.G + 2) * self.H * 2 + 16


def attention_refusal(heads_per_key: int, head_dim: int, dtype, rotary: Sequence[int] = ()) -> str | None:
    """Why the kernel can't run this attention, `rotary` elements of whose heads turn; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the kernel does not know {jnp.dtype(dtype)}"
    if head_dim % 32 or head_dim > 256:
        return f"the kernel does not know head_dim {head_dim} (multiples of 32 up to 256)"
    if heads_per_key > 16:
        return "more than 16 query heads per key head"
    return rotary_refusal(rotary) or launch.refusal()


def decode_attend(
    qkv: Array,
    cache: LayerCache,
    rope: tuple[Array, Array] | None,
    scores: ScoreRule,
    only: Array | None = None,
    *,
    arrangement: Arrangement = PLAIN,
) -> tuple[Array, LayerCache]:
    """`layers.attention.append_and_attend` for T = 1; asks `attention_refusal` first.

    It reads only what is filled, and updates the cache in place where XLA may (the caller donates it).
    With an `arrangement` the mixed values come as it says, not as `[B, T, K, G, H]`. `qkv` may be several
    float32 arrays, `[slices, B, T, K, G + 2, H]`, whose sum is meant.
    """
    with jax.named_scope("decode_attend"):
        dtype, slices = cache.keys.dtype, len(qkv) if qkv.ndim == 6 else 0
        B, T, K, G, H = (*qkv.shape[-5:-2], qkv.shape[-2] - 2, qkv.shape[-1])
        shape = make_shape(B, K, G, H, cache.max_len, scores.window, dtype, constants(scores, rope))
        shape = dataclasses.replace(shape, ARRANGED=arrangement.bits, ROOM=arrangement.room, SLICES=slices)
        angles = rope or (cache.length, cache.length)  # nobody reads them where nothing turns
        mixed_shape = arrangement.shape(B, K * G * H) if arrangement.bits else (B, T, K, G, H)
        results = [
            jax.ShapeDtypeStruct(mixed_shape, dtype),
            jax.ShapeDtypeStruct(cache.keys.shape, cache.keys.dtype),
            jax.ShapeDtypeStruct(cache.values.shape, cache.values.dtype),
        ]
        if shape.P > 1:
            results += [jax.ShapeDtypeStruct((B * K * shape.P, G * (H + 2)), jnp.float32)]
        mixed, keys, values, *_ = launch.call(
            attention_source(shape),
            "jllama_attention",
            [qkv, *angles, cache.length, cache.places, cache.keys, cache.values],
            results,
            grid=B * K * shape.P,
            threads=shape.WARPS * 32,
            shared=shape.shared,
            aliases={5: 1, 6: 2},
        )
        return mixed, dataclasses.replace(cache, keys=keys, values=values)


def make_shape(
    B: int, K: int, G: int, H: int, S: int, window: int | None, dtype, source: Constants | None = None
) -> Shape:
    """Heads fill the GPU first; only if they leave most of it idle several blocks share one."""
    heads, multiprocessors = B * K, launch.blocks_at_once()
    alone, most = (WARPS, WIDE_RESIDENT) if H > WIDE else (WARPS_ALONE, MAX_RESIDENT)
    splits = max(1, min(multiprocessors // heads, S // (2 * ROWS * alone), MAX_SPLITS))
    resident = min(most, -(-heads * splits // multiprocessors))
    more = (*dataclasses.astuple(source or Constants.of(H)), int(launch.engine()))

    def cut(resident: int) -> Shape:
        warps, fp16 = alone if resident == 1 else WARPS, int(dtype == jnp.float16)
        plain = Shape(B, K, G, H, S, splits, warps, 0, resident, window or 0, fp16, *more)
        room = (launch.shared_memory() + 1024) // resident - 1024 - plain.shared
        return dataclasses.replace(plain, STAGES=min(MAX_STAGES, room // (warps * (_tile(H) + 8))))

    while resident > 1 and cut(resident).STAGES < MIN_STAGES:
        resident -= 1
    if cut(resident).STAGES < MIN_STAGES:  # little memory: fewer warps, which ask further ahead
        alone = WARPS
    shape = cut(resident)
    if shape.RESIDENT > 1 or H > WIDE:
        return shape
    return dataclasses.replace(shape, STAGES=min(shape.STAGES, ON_THEIR_WAY // (shape.WARPS * _tile(H))))


def _tile(H: int) -> int:
    return 2 * ROWS * H * 2


@functools.lru_cache(maxsize=32)
def attention_source(shape: Shape) -> str:
    defines = launch.define(dataclasses.asdict(shape))
    return launch.assemble(defines, "primitives.cu", "attention.cu")
