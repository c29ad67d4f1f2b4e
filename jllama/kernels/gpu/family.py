"""What makes a family, in the decode kernel's source: constants, and where a layer's weights stand."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama.config import LayerKind, ModelConfig
from jllama.kernels.gpu.constants import ACTIVATIONS, Constants, literal, rotary_dims, unless
from jllama.kernels.gpu.layout import TABLE_LAYER, TABLE_PER_LAYER
from jllama.layers.rope import attention_factor, rope_frequencies
from jllama.model import Block, embedding_factor

MAX_KINDS = 8
# A layer's weights that not all families have, from slot 16 of its part of the pointer table on (layout.cu).
EXTRAS = (
    "attn_post_norm",
    "ffn_post_norm",
    "attention.q_norm",
    "attention.k_norm",
    "attention.qkv_bias",
    "attention.o_bias",
    "mlp.gate_up_bias",
    "mlp.down_bias",
)
_BIASES = dict(QKV_BIAS=4, O_BIAS=5, GU_BIAS=6, DOWN_BIAS=7)  # name in the source: place among EXTRAS


def layer_leaf(layer: Block, path: str) -> Array | None:
    """The weight of a name of `EXTRAS`, or another dotted one."""
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def layer_extras(layer: Block) -> tuple[str, ...]:
    """Those of `EXTRAS` that a layer has."""
    return tuple(path for path in EXTRAS if layer_leaf(layer, path) is not None)


def table_per_layer(extras: tuple[str, ...]) -> int:
    """Slots of the pointer table for each layer."""
    return TABLE_PER_LAYER + (len(EXTRAS) if extras else 0)


def layer_weights(layer: Block, number: int, extras: tuple[str, ...]) -> list[tuple[int, Any]]:
    """The parameters of layer `number` that the kernel reads, each with its slot in the pointer table."""
    a, m = layer.attention, layer.mlp
    weights = {0: layer.attn_norm, 1: layer.ffn_norm, 4: a.qkv_proj, 7: a.o_proj}
    weights |= {10: m.gate_up_proj, 13: m.down_proj}
    weights |= {TABLE_PER_LAYER + i: layer_leaf(layer, path) for i, path in enumerate(EXTRAS)}
    first = TABLE_LAYER + table_per_layer(extras) * number
    return [(first + slot, weight) for slot, weight in weights.items() if weight is not None]


def distinct_kinds(config: ModelConfig) -> tuple[LayerKind, ...]:
    """The kinds of the layers, each once, in the order in which they first come."""
    return tuple(dict.fromkeys(config.kind_of(layer) for layer in range(config.num_hidden_layers)))


def rotary_dim(config: ModelConfig) -> int:
    """R, how many elements of a head turn in the layers where any do."""
    return next(iter(rotary_dims(config)), config.head_dim)


def decode_frequencies(config: ModelConfig, context: Array) -> Array:
    """The rotation of each kind of layer, float32 `[kinds * B, R/2]`: zeros where nothing turns.

    Args:
      context: int32 `[B]`, the length of each whole text.
    """
    each = (context.shape[0], rotary_dim(config) // 2)
    still = jnp.zeros(each, jnp.float32)
    ropes = [kind.rope for kind in distinct_kinds(config)]
    found = [still if rope is None else rope_frequencies(rope, config.head_dim, context) for rope in ropes]
    tables = [jnp.broadcast_to(table, each) for table in found]
    return tables[0] if len(tables) == 1 else jnp.concatenate(tables)


def limits(config: ModelConfig, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel is told, int32: the cache's length and the first kind's window; the other windows."""
    windows = [kind.window or 0 for kind in distinct_kinds(config)]
    return np.array([max_len, windows[0]], np.int32), np.array(windows[1:], np.int32)


def family_defines(c: ModelConfig, dtype: str, extras: tuple[str, ...], normed: bool) -> dict[str, Any]:
    """The constants of `step.cu` and its neighbours; those of a Llama leave nothing behind.

    Args:
      dtype: of the activations.
      extras: the layers' weights beyond a Llama's.
      normed: there are norms before attention and feed-forward layer.
    """
    kinds = distinct_kinds(c)
    factors = [1.0 if kind.rope is None else attention_factor(kind.rope) for kind in kinds]
    scores, cap = Constants.of(rotary_dim(c), c.score_rule(kinds[0])), c.final_logit_softcapping
    embed = embedding_factor(c, dtype)
    return dict(
        KINDS=len(kinds),
        KINDS_OF_LAYERS=_braces(kinds.index(c.kind_of(layer)) for layer in range(c.num_hidden_layers)),
        **dataclasses.asdict(scores),
        **{"ROPE_SCALE(kind)": _choice(factors)},
        LAYER_SLOTS=table_per_layer(extras),
        PRE=int(normed),
        POST=int(EXTRAS[0] in extras),
        QK_NORM=int(EXTRAS[2] in extras),
        **{name: str(EXTRAS[at] in extras).lower() for name, at in _BIASES.items()},
        NORM_OFFSET=unless(c.norm_offset, 0),
        FINAL_CAP="0" if cap is None else literal(cap),
        EMBED_SCALE=unless(embed, 1),
        RESIDUAL_SCALE=unless(c.residual_multiplier, 1),
        LOGIT_SCALE=unless(1 / c.logits_scaling, 1),
        ACTIVATION=ACTIVATIONS.index(c.hidden_act),
    )


def _braces(numbers: Any) -> str:
    return "{" + ", ".join(map(str, numbers)) + "}"


def _choice(values: list[float]) -> str:
    """An expression in `kind`."""
    first = " ".join(f"kind == {i} ? {literal(value)} :" for i, value in enumerate(values[:-1]))
    return f"({first} {literal(values[-1])})" if first else literal(values[-1])
