"""Attention of one new token for each of many sequences: the twin of `layers.attention.attend` with T = 1."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from jllama.kernels.gpu import launch
from jllama.layers.attention import rotated_heads
from jllama.layers.cache import KVCache

WARPS, BLOCKS_PER_MULTIPROCESSOR = 8, 4


def attention_supported(heads_per_key: int, head_dim: int, dtype) -> str | None:
    """Why the kernel can't run this attention; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"the kernel does not know {jnp.dtype(dtype)}"
    if head_dim % 32 or head_dim > 128:
        return f"the kernel does not know head_dim {head_dim} (32, 64, 96 or 128)"
    if heads_per_key > 16:
        return "more than 16 query heads per key head"
    return launch.unavailable()


def decode_attend(
    qkv: Array,
    cache: KVCache,
    layer: int,
    rope: tuple[Array, Array],
    window: int | None,
    only: Array | None,
) -> tuple[Array, KVCache]:
    """`layers.attention.append_and_attend` for T = 1; asks `attention_supported` first."""
    queries, keys, values = rotated_heads(qkv, rope)
    cache = cache.append(layer, keys, values)
    return attend_cached(queries, *cache.read(layer), cache.length, window), cache


def attend_cached(q: Array, k: Array, v: Array, start: Array, window: int | None) -> Array:
    """`layers.attention.attend` for T = 1. Reads only what is filled.

    Args:
      q: `[B, 1, K, G, H]`, the queries at positions `start`.
      k: `[B, K, S, H]`, the new tokens' keys included.
      v: `[B, K, S, H]`.
      start: int32 `[B]`.
      window: how many positions a token sees, itself included; None for all.

    Returns:
      `[B, 1, K, G, H]` in the dtype of `q`.
    """
    with jax.named_scope("decode_attend"):
        B, _, K, G, H = q.shape
        blocks = splits(B * K, k.shape[2])
        results = [
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B * K * blocks, G * (H + 2)), jnp.float32),
        ]
        mixed, _ = launch.call(
            attention_source(B, K, G, H, k.shape[2], blocks, window or 0, q.dtype == jnp.float16),
            "jllama_attention",
            [q, k, v, start],
            results,
            grid=B * K * blocks,
            threads=WARPS * 32,
            shared=shared_bytes(G, H),
        )
        return mixed


def shared_bytes(G: int, H: int) -> int:
    """What a block keeps in shared memory; the same sum as in attention.cu."""
    return WARPS * (G * H * 4 + 128) + 16


def splits(heads: int, length: int) -> int:
    """How many blocks share one of `heads` caches of `length` positions: enough to fill the GPU."""
    wanted = -(-BLOCKS_PER_MULTIPROCESSOR * launch.blocks_at_once() // heads)
    return max(1, min(wanted, length // (2 * 16 * WARPS), 32))


@functools.lru_cache(maxsize=32)
def attention_source(B: int, K: int, G: int, H: int, S: int, P: int, window: int, fp16: bool) -> str:
    sizes = dict(B=B, K=K, G=G, H=H, S=S, P=P, WINDOW=window, FP16=int(fp16))
    defines = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
    return launch.assemble(defines, "primitives.cu", "attention.cu")
