"""What a kernel knows of a model is listed; anything else, known to us or not, is left to the plain model."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

# The fields of `ModelConfig` that make a Llama or a Mistral: each kernel here does them as the plain model
# does, or refuses some of their values itself.
LLAMA_FIELDS = frozenset(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps rope hidden_act tie_word_embeddings attention_bias mlp_bias
    sliding_window""".split()
)
# And those that make every other family of `jllama/families`: the CPU's kernel does them all.
FAMILY_FIELDS = LLAMA_FIELDS | frozenset(
    """attention_out_bias layer_kinds norm_placement norm_offset qk_norm attention_multiplier
    attn_logit_softcapping final_logit_softcapping embedding_multiplier residual_multiplier logits_scaling
    rope.partial_rotary_factor rope.llama_4_scaling_beta""".split()
)
# The GPU's attention kernels know them too: constants of their source (window, scale, soft cap, rotation or
# none), and what lies outside of them, in XLA's forward.
ATTENTION_FIELDS = FAMILY_FIELDS

DECODE_FIELDS = ATTENTION_FIELDS - {"rope.llama_4_scaling_beta"}  # a GPU's persistent kernel


def refused_field(config: Any, known: frozenset[str]) -> str | None:
    """Names a field of the configuration that differs from its default and that a kernel does not know."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in known and value != field.default:
            return f"the kernel does not know {field.name}={value!r}"
        if field.name == "rope" and (strange := _refused_rope(value, known)):
            return strange
    return None


def _refused_rope(rope: Any, known: frozenset[str]) -> str | None:
    for name in ("partial_rotary_factor", "llama_4_scaling_beta"):
        value = getattr(rope, name)
        if f"rope.{name}" not in known and value != type(rope).__dataclass_fields__[name].default:
            return f"the kernel does not know {name}={value!r}"
    return None


def refused_leaf(params: Any, read: Iterable[Any]) -> str | None:
    """Names a leaf of the parameters that is not among those that a kernel reads."""
    leaves = {id(leaf) for weight in read for leaf in jax.tree.leaves(weight)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if id(leaf) not in leaves:
            return f"the kernel does not know the parameter {jax.tree_util.keystr(path).lstrip('.')}"
    return None
