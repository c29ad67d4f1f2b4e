"""Mistral and its kin: sliding windows, and queries that grow with their position."""

from typing import Any

from jllama.families.family import Family
from jllama.families.keys import HfKeys
from jllama.families.kinds import alternating, layer_types
from jllama.families.rope import rope_from_hf

_DEFAULTS = dict(
    intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096
)


def _mistral(keys: HfKeys) -> dict[str, Any]:
    """`use_sliding_window` is Qwen's, and read by no code of Mistral's."""
    keys.ignore("use_sliding_window")
    return _sliding(keys)


def _sliding(keys: HfKeys) -> dict[str, Any]:
    """All layers slide, or those of `layer_types`, unless there is no window."""
    window = keys.nullable("sliding_window")
    slides = layer_types(keys, [window is not None] * keys.layers())
    rope = rope_from_hf(keys)
    return alternating(slides, window, rope, rope)


MISTRAL = Family(
    model_types=("mistral", "ministral"), architectures=("mistral",), defaults=_DEFAULTS, hf=_mistral
)

MINISTRAL3 = Family(
    model_types=("ministral3",),
    architectures=("mistral3",),
    defaults=dict(
        vocab_size=131072,
        intermediate_size=14336,
        num_hidden_layers=34,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        rms_norm_eps=1e-5,
        rope_theta=1000000.0,
        rope_parameters=dict(
            rope_type="yarn",
            factor=16.0,
            original_max_position_embeddings=16384,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
    ),
    hf=_sliding,
    rotary_interleaved=True,
)
