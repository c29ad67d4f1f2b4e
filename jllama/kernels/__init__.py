"""Hand-written twins of the whole model, chosen by the target; `model.forward` is their oracle.

A twin lists what it knows. For a call with anything else it says so (`refusal`), and plain XLA runs.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama import model, sharding
from jllama.config import ModelConfig
from jllama.kernels import cpu, gpu
from jllama.kernels.chunks import chunk_sizes as chunk_sizes
from jllama.kernels.chunks import short_refusal as short_refusal
from jllama.kernels.gpu.constants import rotary_dims
from jllama.kernels.refusals import ATTENTION_FIELDS, refused_field
from jllama.kernels.target import Target, target_of
from jllama.layers.attention import Attend, append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.shards import Shards
from jllama.model import Params


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    *,
    n_valid: Array,
    context: Array | None = None,
    last_only: bool = True,
    target: Target,
    fresh: bool = False,
) -> tuple[Array, KVCache]:
    """`model.forward`, by the target's fused kernel where there is one for it.

    Args:
      target: where the parameters lie. On a mesh this is called under `jax.shard_map`: parameters and cache
        are one device's.
      fresh: nothing precedes the tokens: the cache is empty.

    Returns:
      float32 logits `[B, T, V]` (`[B, 1, V]` with `last_only`), on a mesh this device's own (`Target.whole`
      gathers them), and the cache with the new tokens; as in `model.forward` where they do not fit.

    Raises:
      JllamaError: see `model.forward`.
    """
    model.check_room(cache, n_valid)
    config = config if target.mesh is None else sharding.local(config, target.devices)
    shards = shards_of(params, target)
    peers = shards if target.on_gpu and isinstance(shards, gpu.Peers) else None
    if last_only and short_refusal(config, params, tokens, cache, target) is None:
        return gpu.short_step(config, params, tokens, cache, n_valid, context, fresh)
    if refusal(config, params, tokens, cache, target) is not None:
        attend_fn = gpu_attention(config, params, tokens, cache, fresh, target) if target.on_gpu else None
        options: Any = dict(n_valid=n_valid, context=context, last_only=last_only, shards=shards)
        options |= dict(attend_fn=attend_fn or append_and_attend)
        return model.forward(config, params, tokens, cache, **options)
    context = cache.length + n_valid if context is None else context
    one = tokens.size == 1
    if target.on_gpu and (one or gpu.decode_refusal(config, params, cache, tokens, shards) is None):
        frequencies = gpu.decode_frequencies(config, context)
        logits, cache = gpu.decode_step(config, params, tokens, cache, frequencies, peers, n_valid)
        return logits, cache.advance(n_valid)
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    places = model.places(config, positions, context)
    if target.on_gpu:
        logits, cache = gpu.batch_step(config, params, tokens, cache, n_valid, places, peers)
    else:
        logits, cache = cpu.forward(config, params, tokens, cache, places, n_valid, last_only=last_only)
    return logits, cache.advance(n_valid)


def refusal(
    config: ModelConfig, params: Params, tokens: Any, cache: KVCache, target: Target, *, waits: bool = True
) -> str | None:
    """In one line why no kernel runs this whole call, or None if one does; `waits` is the CPU kernels'."""
    if not target.kernels:
        return "JLLAMA_KERNELS=0"
    if target.on_gpu:
        call: Any = (config, params, cache, tokens, shards_of(params, target))
        reason = gpu.decode_refusal(*call)
        return reason if reason is None or tokens.shape[0] == 1 else gpu.batch_refusal(*call)
    if target.mesh is not None:
        return "no kernel here runs a model that lies on several devices"
    if target.platform != "cpu":
        return f"no kernels for {target.platform}"
    return cpu.forward_refusal(config, params, cache, waits=waits)


def notice(config: ModelConfig, params: Params, dtype: str, target: Target) -> str | None:
    """Why a model's decode steps will run without a kernel; None if they won't, or if that was asked for."""
    return decode_refusal(config, params, dtype, target) if target.kernels else None


def decode_refusal(
    config: ModelConfig, params: Params, dtype: str, target: Target, *, waits: bool = True
) -> str | None:
    """Why no kernel decodes a single text, or None if one does; `params` may be shapes without numbers.

    On a mesh `config` and `params` are the whole model's, as a widened configuration has them.
    """
    if target.mesh is not None:
        if target.on_gpu and (reason := peers_refusal(target)):
            return reason
        peers: Any = jax.ShapeDtypeStruct((target.devices, 2), jnp.int32) if target.on_gpu else None
        params = dataclasses.replace(sharding.local_shapes(params, target.devices), peers=peers)
        config = sharding.local(config, target.devices)
    cache = jax.eval_shape(partial(KVCache.empty, config, batch=1, max_len=32, dtype=dtype))
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return refusal(config, params, token, cache, target, waits=waits)


def failed(target: Target) -> bool:
    """Whether the CPU's kernels were to run there and can't be compiled or loaded. Waits for them."""
    return target.platform == "cpu" and target.mesh is None and target.kernels and not _on_cpu(target)


def shards_of(params: Params, target: Target) -> Shards | None:
    """What a device knows of the others that hold the model with it; None: it is alone."""
    if target.mesh is None or params.peers is None:
        return target.shards
    return gpu.Peers(count=target.devices, addresses=params.peers)


def joined(params: Params) -> Params:
    """Parameters on several devices, with mailboxes where these are GPUs that reach each other's memory."""
    target = target_of(params)
    if target.mesh is None or not (target.on_gpu and target.kernels) or peers_refusal(target) is not None:
        return params
    return dataclasses.replace(params, peers=gpu.mailboxes(target.mesh))


def peers_refusal(target: Target) -> str | None:
    """Why the target's GPUs add up their sums by XLA's collectives; None if by words, or if there is one."""
    return None if target.mesh is None else gpu.peers_refusal(list(target.mesh.devices.flat))


def gpu_attention(
    config: ModelConfig, params: Params, tokens: Array, cache: KVCache, fresh: bool, target: Target
) -> Attend | None:
    """The attention kernel for a call that no kernel runs whole: one of our own for one token a row, one for
    more; where there is none, cuDNN's for prompts that nothing precedes; None:
    `layers.attention.append_and_attend`.
    """
    T, dtype = tokens.shape[1], cache.keys[0].dtype
    if params.norm.dtype != dtype or refused_field(config, ATTENTION_FIELDS):
        return None
    head = (config.head_dim, dtype, rotary_dims(config))
    if T == 1:
        heads_per_key = config.num_attention_heads // config.num_key_value_heads
        known = gpu.attention_refusal(heads_per_key, *head) is None
        return gpu.decode_attend if known and target.kernels else None
    if target.kernels and gpu.chunk_refusal(*head) is None:
        return gpu.first_chunk_attend if fresh else gpu.chunk_attend
    reason = gpu.prefill_refusal(config.head_dim, dtype, T, config.attn_logit_softcapping)
    return gpu.prefill_attend if fresh and cache.max_len >= T and reason is None else None


def chooses_tokens(vocab_size: int, target: Target) -> bool:
    """Whether `gpu.sample_rows` takes the place of `jllama.layers.sampling`."""
    return target.on_gpu and target.kernels and gpu.sampling_refusal(vocab_size) is None


def asks_for_masks(target: Target) -> bool:
    """Whether a program can ask the host for masks while it runs."""
    return target.on_gpu and target.kernels and target.mesh is None and gpu.desk_refusal() is None


def skips_padding(config: ModelConfig, params: Params, cache: KVCache, target: Target) -> bool:
    """Whether what pads a chunk, and chunks that pad a program, cost nothing: no kernel computes them."""
    return target.platform == "cpu" and refusal(config, params, None, cache, target) is None


def empty_cache(config: ModelConfig, params: Params, **room: Any) -> KVCache:
    """`sharding.empty_cache`, by memory that is zero without being written where the target's kernels run."""
    if _on_cpu(target_of(params)):
        return cpu.empty_cache(config, **room)
    return sharding.empty_cache(config, params, **room)


def copy_row(cache: KVCache, source: Array | int, to: Array, positions: int, target: Target) -> KVCache:
    """Keys and values of which the first positions of row `to` are those of row `source`.

    Args:
      cache: donated, so that nothing else of it is copied.
      source: int32, a row; -1: zeros.
      to: int32, a row.
      positions: how many.
      target: where the cache lies.
    """
    if _on_cpu(target):
        return cpu.copy_row(cache, source, to, positions)
    source = jnp.int32(source)

    def copied(leaf: Array) -> Array:
        _, K, _, H = leaf.shape
        part = jax.lax.dynamic_slice(leaf, (source, 0, 0, 0), (1, K, positions, H))
        part = jnp.where(source < 0, jnp.zeros_like(part), part)
        return jax.lax.dynamic_update_slice(leaf, part, (to, 0, 0, 0))

    keys, values = (tuple(map(copied, leaves)) for leaves in (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values)


def _on_cpu(target: Target) -> bool:
    """Whether the CPU's kernels run there."""
    return target.platform == "cpu" and target.mesh is None and target.kernels and cpu.refusal() is None
