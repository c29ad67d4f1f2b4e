"""One call for the whole model: operands, sizes and refusals of `jllama_forward` in kernels.cc."""

import dataclasses
import struct
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.config import ModelConfig
from jllama.kernels.cpu import build
from jllama.kernels.cpu.pack import SCALES, known_group
from jllama.kernels.refusals import FAMILY_FIELDS, refused_field, refused_leaf
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import SPAN, QTensor
from jllama.layers.rope import Rope
from jllama.model import Block, Params, Places, embedding_factor

# The numbers of `enum Kind` and `enum Act` in kernels.cc.
KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}
QUANTISED = {8: 3, 4: 4, 6: 5}
OF_LEVELS = 6
SCALE_KINDS = {"float32": 0, "float16": 1, "int8": 2}  # `enum Scales` in products.h
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2, "relu": 3}


class Operands:
    """The arrays of a call, and the numbers that say what each is."""

    def __init__(self, *first: Array) -> None:
        self.arrays: list[Array] = list(first)
        self.spec: list[int] = []

    def add(self, array: Array | None) -> int:
        if array is None:
            return -1
        self.arrays.append(array)
        return len(self.arrays) - 1

    def weight(self, w: Array | QTensor) -> None:
        """kind, rows, cols, group, the kind of scales, where values, scales, offsets and their units are."""
        cols = w.shape[-1]
        rows = int(np.prod(w.shape[:-1]))
        if isinstance(w, QTensor):
            leaves = [self.add(getattr(w, name)) for name in ("values", *SCALES)]
            kind = OF_LEVELS if w.levels else QUANTISED[w.bits]
            self.spec += [kind, rows, cols, w.group, SCALE_KINDS[str(w.scales.dtype)], *leaves]
        else:
            self.spec += [KINDS[str(w.dtype)], rows, cols, 0, 0, self.add(w), -1, -1, -1, -1]


def forward_refusal(config: ModelConfig, params: Params, cache: KVCache, *, waits: bool = True) -> str | None:
    """Why the kernels cannot run this model; None if they can: what that takes is then wanted (`build`).

    Args:
      config: the architecture.
      params: or their shapes.
      cache: or its shapes.
      waits: see `build.reason`.
    """
    reason = _unknown(config, params, cache)
    return reason or build.reason(_parts(params, cache), waits=waits)


def _unknown(config: ModelConfig, params: Params, cache: KVCache) -> str | None:
    """What of this model the kernels don't know."""
    kept = str(cache.keys[0].dtype)
    if kept not in KINDS or any(str(leaf.dtype) != kept for leaf in (*cache.keys, *cache.values)):
        return f"a cache of {kept}"
    if config.hidden_act not in ACTIVATIONS:
        return f"the activation {config.hidden_act}"
    strange = refused_field(config, FAMILY_FIELDS) or refused_leaf(params, _read(params))
    if strange:
        return strange
    if any(leaf is not None and leaf.dtype != params.norm.dtype for leaf in _all_vectors(params)):
        return "norms and biases of several dtypes"
    if str(params.norm.dtype) not in KINDS:
        return f"norms of {params.norm.dtype}"
    reasons = (weight_refusal(leaf) for leaf in _weights(params))
    return next((reason for reason in reasons if reason), None)


def _parts(params: Params, cache: KVCache) -> list[str]:
    """Those of the library that a model calls: of its cache, and of each kind of weights once."""
    return [*dict.fromkeys([f"attention_{cache.keys[0].dtype}", *map(part_of, _weights(params))])]


def part_of(w: Array | QTensor) -> str:
    """The part of the library that multiplies by a weight; see `compiling.PARTS`."""
    if not isinstance(w, QTensor):
        return f"dense_{w.dtype}"
    if w.bits == 4:
        return "of_levels" if w.levels else "four_bits"
    halves = w.group < SPAN
    return ("six_halves" if halves else "six_bits") if w.bits == 6 else ("halves" if halves else "eight_bits")


def weight_refusal(w: Array | QTensor) -> str | None:
    """Why the kernels cannot multiply by this weight, or None if they can."""
    if not isinstance(w, QTensor):
        return None if str(w.dtype) in KINDS else f"weights of {w.dtype}"
    if w.layout != "tiles":
        return f"quantised weights in the layout {w.layout!r}; kernels.cpu.prepare makes tiles"
    if w.bits not in QUANTISED or not known_group(w):
        return f"{w.bits}-bit weights in groups of {w.group}"
    levels = [(w.scales, w.scale_units), (w.offsets, w.offset_units)]
    kinds = {tuple(str(leaf.dtype) for leaf in pair if leaf is not None) for pair in levels}
    known = ({("float16",)}, {("float32",)}, {("int8", "float16")})
    names = sorted({name for kind in kinds for name in kind})
    return None if kinds - {()} in known else f"scales of {', '.join(names)}"


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    cache: KVCache,
    places: Mapping[Rope | None, Places],
    n_valid: Array,
    *,
    last_only: bool = False,
    target: str = "jllama_forward",
) -> tuple[Array, KVCache]:
    """`model.forward` in one call, without its tables and without advancing the cache's length.

    The residual stream stays in float32 between the layers; the cache is updated in place where XLA may.

    Args:
      places: what the tokens' positions mean, `model.places`.
      n_valid: int32 `[B]`, how many of the T tokens count; says which one is the last, and which find the
        cache full.
      target: the name that `build.register` gave the function.

    Returns:
      float32 logits `[B, T, V]` (`[B, 1, V]` with `last_only`: of a row without a token that counts 0, and it
      is not computed) and the cache with the new tokens.
    """
    B, T = tokens.shape
    vocab = (params.embed_tokens if params.lm_head is None else params.lm_head).shape[0]
    kept = (*cache.keys, *cache.values)
    operands = _operands(config, params, tokens, cache, places, n_valid, last_only)
    shape = (B, 1 if last_only else T, vocab)
    call = jax.ffi.ffi_call(
        target,
        [
            jax.ShapeDtypeStruct(shape, jnp.float32),
            *(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in kept),
        ],
        input_output_aliases={4 + i: 1 + i for i in range(len(kept))},
    )
    logits, *updated = call(*operands.arrays, spec=np.asarray(operands.spec, np.int64))
    layers = len(cache.keys)
    return logits, dataclasses.replace(cache, keys=tuple(updated[:layers]), values=tuple(updated[layers:]))


def _operands(config, params, tokens, cache, places, n_valid, last_only) -> Operands:
    """The order of `struct Spec` and of class Step in kernels.cc."""
    rows = jnp.arange(len(tokens), dtype=jnp.int32) if cache.rows is None else cache.rows
    operands = Operands(tokens, cache.length, n_valid, rows, *cache.keys, *cache.values)
    heads, groups = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    sizes = [len(params.layers), *tokens.shape, config.hidden_size, heads, groups, config.head_dim]
    sizes += [config.intermediate_size, params.embed_tokens.shape[0], cache.max_len]
    sizes += [ACTIVATIONS[config.hidden_act], KINDS[str(params.norm.dtype)]]
    sizes += [KINDS[str(cache.keys[0].dtype)], int(last_only)]
    operands.spec += [*sizes, *_bits(_factors(config, params.norm.dtype))]
    for leaf in _weights(params):
        operands.weight(leaf)
    tables = {rope: [operands.add(leaf) for leaf in _tables(of)] for rope, of in places.items()}
    for layer, p in enumerate(params.layers):
        kind, norm = config.kind_of(layer), p.attention.q_norm
        operands.spec += [kind.window or 0, int(norm is not None and norm.ndim > 1), *tables[kind.rope]]
        operands.spec += [operands.add(leaf) for leaf in _vectors(p)]
    operands.spec.append(operands.add(params.norm))
    return operands


def _factors(config: ModelConfig, dtype) -> list[float]:
    """Numbers of the configuration."""
    scores = config.score_rule(config.kind_of(0))
    factors = [
        config.rms_norm_eps,
        config.norm_offset,
        embedding_factor(config, dtype),
        config.residual_multiplier,
    ]
    factors += [scores.factor(config.head_dim), scores.softcap or 0.0]
    return [*factors, 1 / config.logits_scaling, config.final_logit_softcapping or 0.0]


def _bits(numbers: list[float]) -> tuple[int, ...]:
    """Those of float64 as whole numbers."""
    return struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))


def _tables(places: Places) -> tuple[Array | None, ...]:
    """Cosines, sines, what queries are multiplied by."""
    rope, query_scale = places
    return (*(rope or (None, None)), query_scale)


def _weights(params: Params) -> list[Array | QTensor]:
    layers = [
        leaf
        for p in params.layers
        for leaf in (p.attention.qkv_proj, p.attention.o_proj, p.mlp.gate_up_proj, p.mlp.down_proj)
    ]
    head = params.embed_tokens if params.lm_head is None else params.lm_head
    return [params.embed_tokens, *layers, head]


def _read(params: Params) -> list[Array | QTensor | None]:
    """All that a call hands to the kernel."""
    return [*_weights(params), *_all_vectors(params)]


def _all_vectors(params: Params) -> list[Array | None]:
    return [*(leaf for p in params.layers for leaf in _vectors(p)), params.norm]


def _vectors(p: Block) -> tuple[Array | None, ...]:
    a, norms = p.attention, (p.attn_norm, p.attn_post_norm, p.ffn_norm, p.ffn_post_norm)
    return *norms, a.q_norm, a.k_norm, a.qkv_bias, a.o_bias, p.mlp.gate_up_bias, p.mlp.down_bias
