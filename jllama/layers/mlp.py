"""The gated feed-forward layer (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jllama.layers.linear import linear
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import Shards

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP:
    """Gate and up projections lie behind one another in one array, so that one product reads both."""

    gate_up_proj: Array | QTensor  # [2, F, D]
    down_proj: Array | QTensor  # [D, F]
    gate_up_bias: Array | None = None  # [2, F]
    down_bias: Array | None = None  # [D]


def mlp(p: MLP, x: Array, activation: str, shards: Shards | None = None) -> Array:
    """`down(activation(gate(x)) * up(x))`.

    Args:
      p: the layer's parameters.
      x: `[B, T, D]`.
      activation: a key of `ACTIVATIONS` (config key `hidden_act`); computed in float32.
      shards: the devices that F is spread over.

    Returns:
      `[B, T, D]` in the dtype of `x`.
    """
    with jax.named_scope("mlp"):
        return linear(p.down_proj, gated(p, x, activation), p.down_bias, shards=shards)


def gated(p: MLP, x: Array, activation: str) -> Array:
    """What `mlp` projects down: `[B, T, F]` of `x` `[B, T, D]`, in its dtype."""
    gate_up = linear(p.gate_up_proj, x, p.gate_up_bias).astype(jnp.float32)
    return (ACTIVATIONS[activation](gate_up[:, :, 0]) * gate_up[:, :, 1]).astype(x.dtype)
