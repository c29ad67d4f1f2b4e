"""Refuses a configuration that no model has, wherever its fields came from."""

import dataclasses
from typing import Any

from jllama.errors import JllamaError
from jllama.families.checks import check_layers, check_size
from jllama.families.rope_check import check_rope
from jllama.layers.mlp import ACTIVATIONS

_OPTIONAL_FACTORS = ("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping")
_FACTORS = ("embedding_multiplier", "residual_multiplier", "logits_scaling", *_OPTIONAL_FACTORS)


def check_config(c: Any) -> None:
    """Refuses sizes and choices that no model has, each by name.

    Args:
      c: a `ModelConfig`.

    Raises:
      JllamaError: names the field.
    """
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        if field.type is int:
            check_size(field.name, value)
        if field.type is bool and type(value) is not bool:
            raise JllamaError(f"config: {field.name}={value!r} must be true or false")
    check_layers(c.num_hidden_layers)
    if c.num_attention_heads % c.num_key_value_heads:
        raise JllamaError(
            f"config: num_attention_heads={c.num_attention_heads} is no multiple of "
            f"num_key_value_heads={c.num_key_value_heads}"
        )
    if c.head_dim % 2:
        raise JllamaError(f"config: head_dim={c.head_dim} must be even: RoPE rotates pairs")
    _check_choices(c)
    _check_factors(c)
    for rope in (c.rope, *(kind.rope for kind in c.layer_kinds if kind.rope is not None)):
        check_rope(rope, c.head_dim, c.max_position_embeddings)
    if type(c.rms_norm_eps) not in (int, float) or not 0 <= c.rms_norm_eps < 1:
        raise JllamaError(f"config: rms_norm_eps={c.rms_norm_eps!r} must be a number from 0 to 1")
    if c.hidden_act not in ACTIVATIONS:
        raise JllamaError(
            f"config: hidden_act={c.hidden_act!r} is not supported; use {', '.join(ACTIVATIONS)}"
        )
    for window in (c.sliding_window, *(kind.window for kind in c.layer_kinds)):
        if window is not None:
            check_size("sliding_window", window, "below 2^31, or null")


def _check_choices(c: Any) -> None:
    for name, allowed in (("norm_placement", ("pre", "post", "both")), ("qk_norm", (None, "head", "full"))):
        if getattr(c, name) not in allowed:
            raise JllamaError(f"config: {name}={getattr(c, name)!r} must be one of {allowed}")
    if c.attention_out_bias not in (None, True, False):
        raise JllamaError(f"config: attention_out_bias={c.attention_out_bias!r} must be true, false or null")


def _check_factors(c: Any) -> None:
    """Numbers that scores, logits or the residual stream are multiplied by."""
    for name in _FACTORS:
        value = getattr(c, name)
        if value is None and name in _OPTIONAL_FACTORS:
            continue
        if type(value) not in (int, float) or not 0 < value <= 1e6:
            raise JllamaError(f"config: {name}={value!r} must be a positive number, 1000000 at most")
    if type(c.norm_offset) not in (int, float) or not -1e6 <= c.norm_offset <= 1e6:
        raise JllamaError(f"config: norm_offset={c.norm_offset!r} must be a number")
