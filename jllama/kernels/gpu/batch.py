"""One decoding step of a few sequences: four products a layer (`product.cu`) and the attention of a batch."""

import jax
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.decode_attention import attention_refusal, decode_attend
from jllama.kernels.gpu.plan import weight_format
from jllama.kernels.gpu.product import MAX_PLAIN, MAX_TOKENS, product, product_refusal
from jllama.kernels.refusals import LLAMA_FIELDS, refused_field, refused_leaf
from jllama.layers.cache import KVCache
from jllama.layers.kind import Scores
from jllama.layers.qtensor import QTensor
from jllama.model import Params, embed, readable


def batch_refusal(config: ModelConfig, params: Params, cache: KVCache, tokens: Array) -> str | None:
    """Why the kernels can't run this step; None if they can."""
    B, T = tokens.shape
    most = MAX_TOKENS if isinstance(_weights(params)[0], QTensor) else MAX_PLAIN
    if T != 1 or not 1 < B <= most:
        return f"tokens have shape {tokens.shape}; the kernels take one token of 2 to {most} sequences"
    norms = [(p.attn_norm, p.ffn_norm) for p in params.layers]
    return (
        launch.refusal()
        or refused_field(config, LLAMA_FIELDS)
        or refused_leaf(params, [params.embed_tokens, params.norm, *norms, *_weights(params)])
        or _config_refusal(config, params, cache)
        or next(filter(None, map(_weight_refusal, _weights(params))), None)
    )


def _config_refusal(c: ModelConfig, params: Params, cache: KVCache) -> str | None:
    dtype = params.norm.dtype
    if cache.keys[0].dtype != dtype:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype}; the kernels want 16 bits in both"
    if c.attention_bias or c.mlp_bias or c.hidden_act != "silu":
        return f"the kernels know neither biases nor hidden_act {c.hidden_act}"
    return attention_refusal(c.num_attention_heads // c.num_key_value_heads, c.head_dim, dtype)


def _weights(params: Params) -> list[Array | QTensor]:
    """Every weight that is multiplied with, in the order of use."""
    found = []
    for layer in params.layers:
        a, m = layer.attention, layer.mlp
        found += [a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj]
    return [*found, params.embed_tokens if params.lm_head is None else params.lm_head]


def _weight_refusal(w: Array | QTensor) -> str | None:
    rows = 1
    for size in w.shape[:-1]:
        rows *= size
    return product_refusal(weight_format(w), rows, w.shape[-1])


def batch_step(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    n_valid: Array,
    rope: tuple[Array, Array],
) -> tuple[Array, KVCache]:
    """`model.forward` of one token of each sequence; asks `batch_refusal` first.

    Args:
      tokens: int32 `[B, 1]`.
      cache: updated in place where XLA may (the caller donates it); `length` is left to the caller.
      n_valid: int32 `[B]`, 0 for rows that are done.
      rope: cosines and sines of the new positions, float32 `[B, 1, H/2]`.

    Returns:
      float32 logits `[B, 1, V]` and the cache with the tokens' keys and values.
    """
    with jax.named_scope("batch_step"):
        c, B, eps = config, tokens.shape[0], config.rms_norm_eps
        x = embed(config, params, readable(tokens, n_valid, cache.length[:, None], cache.max_len))[:, 0]
        weights = _weights(params)
        heads = (c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads + 2, c.head_dim)
        for i, p in enumerate(params.layers):
            qkv, o, gate_up, down = weights[4 * i : 4 * i + 4]
            y = product(qkv, x, norm=p.attn_norm, eps=eps)
            mixed, own = decode_attend(
                y.reshape(B, 1, *heads), cache.layer(i), rope, Scores(c.sliding_window)
            )
            cache = cache.replace(i, own)
            x = product(o, mixed.reshape(B, -1), residual=x)
            h = product(gate_up, x, norm=p.ffn_norm, eps=eps, gated=True)
            x = product(down, h, residual=x)
        logits = product(weights[-1], x, norm=params.norm, eps=eps, wide=True)
        return logits[:, None], cache
