"""From Hugging Face's tensors to `Params` without the checkpoint reader, and small shared conveniences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jllama.config import ModelConfig
from jllama.layers.attention import Attention
from jllama.layers.cache import KVCache
from jllama.layers.mlp import MLP
from jllama.layers.qtensor import dequantize
from jllama.model import Block, Params, forward
from tests.support import quick_compiling
from tests.support.checkpoint_generator import random_tensors

# As XLA compiles for users: for tests about what it makes of a program, or how precise that is.
AS_FOR_USERS = quick_compiling.as_for_users()
# One program, where each of its steps would be one.
whole = jax.jit(dequantize)
_forward = jax.jit(forward, static_argnums=0)
_forward_for_users = jax.jit(forward, static_argnums=0, compiler_options=AS_FOR_USERS)


def random_params(config: ModelConfig, seed: int = 0, dtype="float32") -> Params:
    """Random weights for a configuration."""
    return params_from(config, random_tensors(dataclasses.asdict(config), seed), dtype)


def params_from(config: ModelConfig, tensors: dict[str, np.ndarray], dtype="float32") -> Params:
    """The parameters that Hugging Face's tensors make."""

    def get(name: str):
        return None if name not in tensors else jnp.asarray(tensors[name], dtype)

    layers = tuple(
        _block(config, tensors, f"model.layers.{i}.", dtype) for i in range(config.num_hidden_layers)
    )
    return Params(
        embed_tokens=get("model.embed_tokens.weight"),
        layers=layers,
        norm=get("model.norm.weight"),
        lm_head=get("lm_head.weight"),
    )


def _block(config: ModelConfig, tensors: dict[str, np.ndarray], at: str, dtype) -> Block:
    def array(value):
        return None if value is None else jnp.asarray(value, dtype)

    def get(name: str):
        return tensors.get(at + name)

    return Block(
        attn_norm=array(get("input_layernorm.weight")),
        attention=Attention(
            qkv_proj=array(_interleave(config, [get(f"self_attn.{x}_proj.weight") for x in "qkv"])),
            o_proj=array(get("self_attn.o_proj.weight")),
            qkv_bias=array(_interleave(config, [get(f"self_attn.{x}_proj.bias") for x in "qkv"])),
            o_bias=array(get("self_attn.o_proj.bias")),
        ),
        ffn_norm=array(get("post_attention_layernorm.weight")),
        mlp=MLP(
            gate_up_proj=array(_stack([get("mlp.gate_proj.weight"), get("mlp.up_proj.weight")])),
            down_proj=array(get("mlp.down_proj.weight")),
            gate_up_bias=array(_stack([get("mlp.gate_proj.bias"), get("mlp.up_proj.bias")])),
            down_bias=array(get("mlp.down_proj.bias")),
        ),
    )


def _interleave(config: ModelConfig, qkv: list[np.ndarray | None]) -> np.ndarray | None:
    if qkv[0] is None:
        return None
    K, H = config.num_key_value_heads, config.head_dim
    return np.concatenate([part.reshape(K, -1, H, *part.shape[1:]) for part in qkv], axis=1)


def _stack(parts: list[np.ndarray | None]) -> np.ndarray | None:
    return None if parts[0] is None else np.stack(parts)


def full_logits(
    config: ModelConfig, params: Params, tokens, dtype="float32", max_len=None, as_for_users=False
) -> np.ndarray:
    """Logits `[B, T, V]` of one call on an empty cache. Always float32."""
    tokens = jnp.asarray(tokens, jnp.int32)
    batch, length = tokens.shape
    cache = KVCache.empty(config, batch=batch, max_len=max_len or length, dtype=dtype)
    run = _forward_for_users if as_for_users else _forward
    return np.asarray(run(config, params, tokens, cache)[0])
