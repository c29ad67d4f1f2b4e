"""Hand-written twins of the whole model, chosen per platform; `model.forward` is their oracle.

A twin that cannot run a call says why (`why_not`), and `forward` runs plain XLA instead.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama import model
from jllama.config import ModelConfig
from jllama.kernels import cpu, gpu
from jllama.layers.attention import Attend
from jllama.layers.cache import KVCache
from jllama.layers.quantized import QTensor
from jllama.layers.rope import rope_tables
from jllama.model import Params

# From this many tokens a call on, XLA's own product beats the kernels on weights that are not quantised.
MANY_TOKENS = 8


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    *,
    n_valid: Array,
    context: Array | None = None,
    last_only: bool = True,
    platform: str,
) -> tuple[Array, KVCache]:
    """`model.forward`, by the platform's fused kernel where there is one for it.

    Args:
      platform: `cpu` or `gpu`, where the parameters lie; anything else runs plain XLA.

    Returns:
      float32 logits `[B, T, V]` (`[B, 1, V]` with `last_only`) and the cache with the new tokens.
    """
    if why_not(config, params, tokens, cache, platform) is not None:
        options: Any = dict(n_valid=n_valid, context=context, last_only=last_only)
        return _by_xla(config, params, tokens, cache, platform, options)
    context = cache.length + n_valid if context is None else context
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    rope = rope_tables(config.rope, config.head_dim, positions, context)
    if platform == "gpu":
        logits, cache = gpu.decode_step(config, params, tokens, cache, rope)
    else:
        logits, cache = cpu.forward(config, params, tokens, cache, rope, n_valid, last_only=last_only)
    return logits, cache.advance(n_valid)


def why_not(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, platform: str
) -> str | None:
    """In one line why no kernel runs this whole call, or None if one does."""
    if os.environ.get("JLLAMA_KERNELS", "1") == "0":
        return "JLLAMA_KERNELS=0"
    if platform == "gpu":
        return gpu.decode_supported(config, params, cache, tokens)
    if platform != "cpu":
        return f"no kernels for {platform}"
    quantized = any(isinstance(leaf, QTensor) for leaf in _weights(params))
    if not quantized and tokens.size >= MANY_TOKENS:
        return "XLA's product is faster on many tokens"
    return cpu.forward_supported(config, params, cache)


def _by_xla(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, platform: str, options: Any
) -> tuple[Array, KVCache]:
    """`model.forward`; on a GPU with cuDNN's attention for prompts that nothing precedes.

    One branch around the whole model: on a GPU each branch costs a round trip to the host.
    """

    def run(attend_fn: Attend | None) -> tuple[Array, KVCache]:
        return model.forward(config, params, tokens, cache, attend_fn=attend_fn, **options)

    T = tokens.shape[1]
    if platform != "gpu" or gpu.prefill_supported(config.head_dim, cache.keys[0].dtype, T) is not None:
        return run(None)
    fresh = jnp.all(cache.length == 0) & (T <= cache.max_len)
    return jax.lax.cond(fresh, lambda: run(gpu.prefill_attend), lambda: run(None))


def _weights(params: Params) -> list[Array | QTensor]:
    return jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
