"""What is cut along which axis, into how many parts it can be, and what a device sees of a configuration."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor
from jllama.layers.shards import AXIS
from jllama.model import Params

WHOLE = PartitionSpec()
MOST = 64  # devices that a refusal suggests

# The axis of each leaf that is cut; the rest, listed too, lies whole on each device.
_AXES = dict(qkv_proj=0, o_proj=1, qkv_bias=0, gate_up_proj=1, gate_up_bias=1, down_proj=1, lm_head=0)
_WIDE_NORMS = ("q_norm", "k_norm")  # cut by key head where they go over all heads
_NORMS = ("norm", "attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")
_WHOLE = ("embed_tokens", *_NORMS, "o_bias", "down_bias", "peers")


def refusal(config: ModelConfig, devices: int) -> str | None:
    """Which size of a model can't be cut for that many devices; None: all can."""
    N, K, F = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    for name, size in (("num_attention_heads", N), ("intermediate_size", F)):
        if size % devices:
            return f"{name}={size}"
    return f"num_key_value_heads={K}" if K % devices and devices % K else None


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A row that is cut and consists of blocks, whose weights share a scale."""

    name: str  # of the leaf
    C: int  # weights in a row
    counts: tuple[int, ...]  # of everything that a row consists of; empty: of single weights

    def allow(self, devices: int) -> bool:
        """Each device gets whole blocks."""
        return not any(count % devices for count in self.counts)

    @property
    def text(self) -> str:
        """What can't be cut."""
        return f"{self.name}: rows of {self.C} weights in blocks of {self.C // min(self.counts)}"


def check(config: ModelConfig, devices: int, blocks: Sequence[Blocks] = ()) -> None:
    """Refuses a number of devices that a model's sizes or blocks do not allow.

    Raises:
      JllamaError: says which, and which numbers would do.
    """
    reason = refusal(config, devices)
    if reason is not None:
        reason += _ADVICE.format(devices, _fit(blocks, config))
    else:
        unfit = next((row for row in blocks if not row.allow(devices)), None)
        if unfit is None:
            return
        reason = unfit.text + _ADVICE.format(devices, _fit(blocks, config)) + _OR_WHOLE
    raise JllamaError(reason)


_ADVICE = " can't be cut into {} equal parts: use --tensor_parallel with one of {}"
_OR_WHOLE = ", or --quantize=none"


def _fit(blocks: Sequence[Blocks], config: ModelConfig | None = None) -> str:
    """The numbers of devices that would do."""
    numbers = (n for n in range(1, MOST + 1) if all(row.allow(n) for row in blocks))
    return ", ".join(str(n) for n in numbers if config is None or refusal(config, n) is None)


def widened(config: ModelConfig, devices: int) -> ModelConfig:
    """The same model as that many devices hold it: key heads repeated up to one for each, the head untied.

    A head whose V they do not divide lies whole on each of them, tied or not.
    """
    untied = config.vocab_size % devices == 0
    return dataclasses.replace(
        config,
        num_key_value_heads=max(config.num_key_value_heads, devices),
        tie_word_embeddings=config.tie_word_embeddings and not untied,
    )


def local(config: ModelConfig, devices: int) -> ModelConfig:
    """What each device sees of a widened configuration; V is that of the token ids, not of its logits."""
    return dataclasses.replace(
        config,
        num_attention_heads=config.num_attention_heads // devices,
        num_key_value_heads=config.num_key_value_heads // devices,
        intermediate_size=config.intermediate_size // devices,
    )


def cut_axis(path: tuple[Any, ...], leaf: Any, devices: int) -> int | None:
    """Along which axis of its shape a leaf of `Params` is cut; None: it lies whole on each device."""
    name = path[-1].name
    if name in _WHOLE or (name == "lm_head" and leaf.shape[0] % devices):
        return None
    if name in _WIDE_NORMS:
        return 0 if len(leaf.shape) > 1 else None
    if name not in _AXES:
        raise JllamaError(f"sharding does not know the parameter {name}: use --tensor_parallel=1")
    return _AXES[name]


def _is_quantized(node: Any) -> bool:
    return isinstance(node, QTensor)


def map_leaves(function: Callable[..., Any], params: Params, *rest: Any) -> Any:
    """`function(path, leaf, ...)` of each leaf of parameters, quantised ones whole."""
    return jax.tree_util.tree_map_with_path(function, params, *rest, is_leaf=_is_quantized)


def specs(params: Any, devices: int) -> Any:
    """`Params` of a `PartitionSpec` for each array.

    Args:
      params: as a widened configuration has them: arrays, quantised leaves or their shapes.
      devices: how many there are.

    Raises:
      JllamaError: a parameter that is not known here, or groups that can't be cut.
    """
    return map_leaves(partial(spec_of, devices=devices), params)


def spec_of(path: tuple[Any, ...], leaf: Any, devices: int) -> Any:
    """`specs` of one leaf."""
    axis = cut_axis(path, leaf, devices)
    if isinstance(leaf, QTensor):
        return _quantized_spec(path, leaf, axis, devices)
    return WHOLE if axis is None else PartitionSpec(*[None] * axis, AXIS)


def _quantized_spec(path: tuple[Any, ...], leaf: QTensor, axis: int | None, devices: int) -> Any:
    """By rows, or by columns with the scales of each part's groups.

    The rows of one device follow one another: where the cut axis is not the first, they are no longer in
    the order of the leaf's shape. A scale of whole rows is there once for each device (`with_own_scales`).
    """
    if axis == leaf.ndim - 1:
        check_groups(path[-1].name, leaf.shape[-1], [a.shape[1] for a in jax.tree.leaves(leaf)], devices)
    return jax.tree.map(lambda _: array_spec(axis, leaf.ndim), leaf)


def array_spec(axis: int | None, ndim: int) -> PartitionSpec:
    """Of the arrays of a quantised leaf with so many axes, of which one is cut."""
    if axis is None:
        return WHOLE
    return PartitionSpec(AXIS) if axis < ndim - 1 else PartitionSpec(None, AXIS)


def with_own_scales(leaf: QTensor, devices: int) -> QTensor:
    """8-bit rows that have a single scale with that scale for each device's part of them."""
    if leaf.bits != 8 or leaf.scale_units is not None or leaf.scales.shape[1] > 1:
        return leaf
    return dataclasses.replace(leaf, scales=jnp.repeat(leaf.scales, devices, axis=1))


def check_groups(name: str, C: int, counts: Sequence[int], devices: int) -> None:
    """Refuses to cut groups of weights that share a scale.

    Args:
      name: of the leaf.
      C: weights in a row.
      counts: how many there are of everything that a row consists of.
      devices: parts that it is to be cut into.

    Raises:
      JllamaError: says into how many it could be.
    """
    row = Blocks(name, C, tuple(counts))
    if not row.allow(devices):
        raise JllamaError(row.text + _ADVICE.format(devices, _fit([row])) + _OR_WHOLE)
