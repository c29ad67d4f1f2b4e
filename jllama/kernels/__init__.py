"""Hand-written twins of hot operations, chosen per platform; the plain-JAX model is their oracle."""

from jax import Array

from jllama.config import ModelConfig
from jllama.layers.cache import KVCache
from jllama.model import Params, forward


def decode_forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    *,
    n_valid: Array,
    platform: str,
) -> tuple[Array, KVCache]:
    """`forward` of one token a row, by the platform's fused kernel where it can."""
    return forward(config, params, tokens, cache, n_valid=n_valid)
