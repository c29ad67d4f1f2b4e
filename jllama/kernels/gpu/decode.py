"""One decoding step as one CUDA kernel: which models it can run, and its call."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.gpu import launch
from jllama.kernels.gpu.constants import ACTIVATIONS, rotary_dims
from jllama.kernels.gpu.exchange import Peers, gpus_of, refused_shards
from jllama.kernels.gpu.family import (
    MAX_KINDS,
    distinct_kinds,
    layer_extras,
    layer_weights,
    limits,
    table_per_layer,
)
from jllama.kernels.gpu.layout import TABLE_LAYER, Format
from jllama.kernels.gpu.plan import (
    IN_FLIGHT,
    LOGITS_SLOT,
    MAX_FORMATS,
    PEERS_SLOT,
    Plan,
    blocks,
    make_plan,
    source,
)
from jllama.kernels.refusals import DECODE_FIELDS, refused_field, refused_leaf
from jllama.layers import records
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import Shards
from jllama.model import Params, readable

MAX_TEXTS = 8  # decoded together
MAX_PACKED = 4  # with weights of 8 or 4 bits, without copy engine: more were not measured
MAX_RECORDED = 2  # with scales in records, which cost more instructions
MAX_WIDTH = 8192  # of a row of several texts, which a few threads hold
MIN_RING = 2 * IN_FLIGHT  # bytes that several texts leave: those on their way, and as many that wait
MOST_BESIDE = 98304  # without copy engine, with less shared memory: bytes that all but the ring takes


def decode_refusal(
    config: ModelConfig, params: Params, cache: KVCache, tokens: Array, shards: Shards | None = None
) -> str | None:
    """Why the kernel can't run this step; None if it can. With `shards` all sizes are one device's own."""
    B, T = tokens.shape
    if T != 1 or not 1 <= B <= MAX_TEXTS:
        return f"tokens have shape {tokens.shape}; the kernel decodes one token of 1 to {MAX_TEXTS} sequences"
    return (
        launch.refusal()
        or refused_shards(config, shards)
        or refused_field(config, DECODE_FIELDS)
        or _config_refusal(config)
        or _layer_refusal(params)
        or refused_leaf(params, [params.peers, *(weight for _, weight in _weights(params))])
        or _array_refusal(config, params, cache, gpus_of(shards), texts_of(B))
    )


def texts_of(rows: int) -> int:
    """How many texts the kernel for so many rows takes: what is left over does not run."""
    return next(texts for texts in (1, 2, 4, 8) if texts >= rows)


def _config_refusal(c: ModelConfig) -> str | None:
    checks = (
        (c.hidden_act not in ACTIVATIONS, f"hidden_act {c.hidden_act}"),
        (c.qk_norm == "full", "norms of all queries together (qk_norm=full)"),
        (c.head_dim % 32 or c.head_dim > 256, f"head_dim {c.head_dim} (multiples of 32 up to 256)"),
        (c.num_attention_heads > 16 * c.num_key_value_heads, "more than 16 query heads per key head"),
        (c.hidden_size % 32 or c.intermediate_size % 32, "sizes that are no multiple of 32"),
        (c.vocab_size % 2, "an odd vocabulary"),
        (blocks(c) < c.num_key_value_heads, "more key heads than blocks"),
        (max(c.hidden_size, c.intermediate_size) > 32768, "rows longer than 32768"),
    )
    return next((f"the kernel does not know {what}" for bad, what in checks if bad), _kinds_refusal(c))


def _kinds_refusal(c: ModelConfig) -> str | None:
    kinds, parts = distinct_kinds(c), rotary_dims(c)
    ropes = [kind.rope for kind in kinds if kind.rope is not None]
    checks = (
        (len(kinds) > MAX_KINDS, f"{len(kinds)} kinds of layers ({MAX_KINDS} at most)"),
        (len(parts) > 1, f"heads of which now {parts[:1]}, now {parts[1:]} elements turn"),
        (parts and parts[0] % 4, f"{parts} rotated elements of a head (multiples of 4)"),
        (any(rope.llama_4_scaling_beta is not None for rope in ropes), "llama_4_scaling_beta"),
    )
    return next((f"the kernel does not know {what}" for bad, what in checks if bad), None)


def _layer_refusal(params: Params) -> str | None:
    """Every layer has the weights of the first, and norms before both of its halves or neither; so behind."""
    first = params.layers[0]
    extras = layer_extras(first)
    for layer in params.layers:
        norms = {layer.attn_norm is None, layer.ffn_norm is None, first.attn_norm is None}
        if layer_extras(layer) != extras or len(norms) > 1:
            return "layers with different weights"
    pairs = (("attn_post_norm", "ffn_post_norm"), ("attention.q_norm", "attention.k_norm"))
    if any((a in extras) != (b in extras) for a, b in pairs):
        return "layers with one norm of two"
    return None


def _array_refusal(c: ModelConfig, params: Params, cache: KVCache, gpus: int, texts: int) -> str | None:
    dtype = params.norm.dtype
    if dtype not in (jnp.bfloat16, jnp.float16) or cache.keys[0].dtype != dtype:
        return f"weights of {dtype} with a cache of {cache.keys[0].dtype}; the kernel wants 16 bits in both"
    plan = make_plan(c, params, gpus, texts)
    if texts > 1 and (reason := _several_refusal(plan)):
        return reason
    if plan.head_rows % 2:
        return "the kernel does not know a head of an odd number of rows"
    if max(map(len, plan.formats)) > MAX_FORMATS:
        return f"layers whose weights are stored in more than {MAX_FORMATS} ways"
    pairs = zip(((plan.embed,), *plan.formats), (c.hidden_size, *plan.columns), strict=True)
    for f, width in ((f, width) for formats, width in pairs for f in formats):
        if reason := _format_refusal(f, width, plan):
            return reason
    return None if plan.slots >= max(3, plan.turn) else "rows too long for the shared memory"


def _several_refusal(plan: Plan) -> str | None:
    room = MIN_RING if plan.engine else min(MIN_RING, plan.shared_bytes - MOST_BESIDE)
    checks = (
        (plan.gpus > 1, "several sequences on several GPUs"),
        (
            plan.texts > MAX_PACKED and plan.packed and not plan.engine,
            f"{plan.texts} sequences with weights of fewer bits",
        ),
        (plan.texts > MAX_RECORDED and plan.recorded, f"{plan.texts} sequences with scales in records"),
        (plan.blocks < plan.texts * plan.config.num_key_value_heads, "more key heads than blocks"),
        (plan.slots * plan.slot < room, f"{plan.texts} sequences of rows that leave weights no room"),
        (plan.config.hidden_size > MAX_WIDTH, f"{plan.texts} sequences of rows longer than {MAX_WIDTH}"),
    )
    return next((f"the kernel does not know {what}" for bad, what in checks if bad), None)


def _format_refusal(f: Format, width: int, plan: Plan) -> str | None:
    if f.refusal is not None:
        return f.refusal
    if width % max(32, f.group, records.UNIT if f.record else 0) or width * f.bits // 8 % 16:
        return f"rows of {width} weights of {f.bits} bits"
    if f.row_scales(width) % 16 and width * f.bits // 8 > plan.row_bytes:
        return f"rows of {width} weights with scales that are no multiple of 16 bytes"
    return None


def decode_step(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    frequencies: Array,
    peers: Peers | None = None,
    n_valid: Array | None = None,
) -> tuple[Array, KVCache]:
    """`forward` of one token of each of a few sequences; asks `decode_refusal` first.

    Args:
      tokens: int32 `[B, 1]`.
      cache: updated in place where XLA may (the caller donates it); `length` is left to the caller.
      frequencies: of the rotation of each kind of layer, `family.decode_frequencies`.
      peers: the GPUs that take this step together, each called with its own part of everything.
      n_valid: int32 `[B]`, 0 for sequences that are done: nothing of theirs is read or written, their logits
        mean nothing. None: all run, as a single one always does.

    Returns:
      float32 logits `[B, 1, V]`, all of them on every GPU, and the cache with the tokens' keys and values.
    """
    with jax.named_scope("decode_step"):
        B = tokens.shape[0]
        texts = texts_of(B)
        given = (tokens, cache, frequencies)
        if B > 1:
            given = _filled_up(*given, jnp.ones((B,), jnp.int32) if n_valid is None else n_valid, texts)
        operands, slots = _operands(config, params, *given, peers)
        first_cache = len(operands) - 2 * len(cache.keys)
        results = [jax.ShapeDtypeStruct((texts, 1, config.vocab_size), jnp.float32)]
        results += [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*cache.keys, *cache.values)]
        slots += [LOGITS_SLOT] + [-1] * (len(results) - 1)
        plan = make_plan(config, params, gpus_of(peers), texts)
        logits, *caches = launch.call(
            _source(plan, tuple(slots)),
            "jllama_decode",
            operands,
            results,
            grid=plan.blocks,
            threads=plan.threads,
            shared=plan.shared,
            aliases={first_cache + i: 1 + i for i in range(len(results) - 1)},
        )
        keys, values = tuple(caches[: len(cache.keys)]), tuple(caches[len(cache.keys) :])
        logits = logits if texts == B else logits[:B]
        return logits, dataclasses.replace(cache, keys=keys, values=values)


def _filled_up(
    tokens: Array, cache: KVCache, frequencies: Array, n_valid: Array, texts: int
) -> tuple[Array, KVCache, Array]:
    """The arrays of `decode_step` for so many texts: those that do not run have a length of -1."""
    B = tokens.shape[0]
    tokens = readable(tokens, n_valid, cache.length[:, None], cache.max_len)
    length = jnp.where(n_valid > 0, cache.length, -1)
    rows, more = cache.layer(0).places, (0, texts - B)
    tables = frequencies.reshape(-1, B, frequencies.shape[-1])
    cache = dataclasses.replace(
        cache, length=jnp.pad(length, more, constant_values=-1), rows=jnp.pad(rows, more)
    )
    tables = jnp.pad(tables, ((0, 0), more, (0, 0)))
    return jnp.pad(tokens, (more, (0, 0))), cache, tables.reshape(-1, frequencies.shape[-1])


@functools.lru_cache(maxsize=32)
def _source(plan: Plan, slots: tuple[int, ...]) -> str:
    return source(plan, list(slots))


def _weights(params: Params) -> Iterator[tuple[int, Any]]:
    """All parameters that the kernel reads, each with its slot in the kernel's pointer table."""
    yield 5, params.norm
    yield 7, params.embed_tokens
    if params.lm_head is not None:
        yield 10, params.lm_head
    extras = layer_extras(params.layers[0])
    for i, layer in enumerate(params.layers):
        yield from layer_weights(layer, i, extras)


def _operands(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    frequencies: Array,
    peers: Peers | None = None,
) -> tuple[list[Array], list[int]]:
    """The kernel's operands, the caches last, and the slot of each in the kernel's pointer table."""
    first, windows = limits(config, cache.max_len)
    # Nothing empty: the partitioner of jax 0.11.2 crashes on it.
    told = jnp.concatenate([jnp.asarray(a) for a in (first, cache.layer(0).places, windows) if a.size])
    operands: list[Array] = [tokens, cache.length, frequencies, told]
    slots = [0, 1, 2, 4]
    if peers is not None:
        operands += [peers.addresses, peers.rank()]
        slots += [PEERS_SLOT, PEERS_SLOT + 1]

    def add(slot: int, weight: Array | QTensor) -> None:
        parts = jax.tree.leaves(weight)  # of a QTensor: values, scales, offsets if it has them
        operands.extend(parts)
        slots.extend(range(slot, slot + len(parts)))

    for slot, weight in _weights(params):
        add(slot, weight)
    per_layer = table_per_layer(layer_extras(params.layers[0]))
    for which, arrays in ((2, cache.keys), (3, cache.values)):
        operands.extend(arrays)
        slots.extend(TABLE_LAYER + per_layer * i + which for i in range(len(arrays)))
    return operands, slots
