"""Gemma 1, 2 and 3: norms around 1, scaled embeddings, soft caps, alternating windows, two rotations."""

import dataclasses
import math
from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import FOUR_NORMS, Family
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.kinds import alternating, every, gguf_slides, layer_types
from jllama.families.rope import rope_from_gguf, rope_from_hf
from jllama.layers.rope import Rope

_ACTIVATION = "gelu_pytorch_tanh"
_FIELDS = dict(norm_offset=1.0, hidden_act=_ACTIVATION)
_DEFAULTS = dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    tie_word_embeddings=True,
)
_PATTERN = 6  # Gemma 3: five layers slide, the sixth sees everything; no GGUF file says so
_LOCAL_THETA = 10000.0  # of Gemma 3's sliding layers; no GGUF file says so


def _common(keys: HfKeys) -> dict[str, Any]:
    """`gelu` in the first files meant its approximation; what attends both ways is no language model."""
    activation = keys.get("hidden_activation") or keys.get("hidden_act") or _ACTIVATION
    if keys.get("use_bidirectional_attention", False) not in (False, None):
        raise JllamaError("config.json: use_bidirectional_attention is not supported: jllama predicts text")
    return dict(
        embedding_multiplier=math.sqrt(keys.get("hidden_size")),
        hidden_act=_ACTIVATION if activation == "gelu" else activation,
    )


def _scale_and_cap(keys: HfKeys) -> dict[str, Any]:
    return dict(
        attention_multiplier=keys.get("query_pre_attn_scalar", 256) ** -0.5,
        final_logit_softcapping=keys.nullable("final_logit_softcapping"),
    )


def _gemma2(keys: HfKeys) -> dict[str, Any]:
    slides, rope = layer_types(keys, every(2, keys.layers())), rope_from_hf(keys)
    window = keys.nullable("sliding_window")
    cap = dict(attn_logit_softcapping=keys.nullable("attn_logit_softcapping"))
    return _common(keys) | _scale_and_cap(keys) | cap | alternating(slides, window, rope, rope)


def _gemma3(keys: HfKeys) -> dict[str, Any]:
    """Full layers have a longer rotation and its stretching, sliding ones their own.

    A cap of scores is left unread, and so refused: transformers takes it and never uses it.
    """
    period = keys.get("sliding_window_pattern", keys.get("_sliding_window_pattern", _PATTERN))
    slides = layer_types(keys, every(period, keys.layers()))
    full = rope_from_hf(keys, "full_attention")
    local = rope_from_hf(keys, "sliding_attention", theta_key="rope_local_base_freq", theta=_LOCAL_THETA)
    window = keys.nullable("sliding_window")
    return _common(keys) | _scale_and_cap(keys) | alternating(slides, window, full, local)


def _common_gguf(keys: GgufKeys) -> dict[str, Any]:
    return dict(embedding_multiplier=math.sqrt(keys.need("embedding_length")))


def _scale_gguf(keys: GgufKeys, large: int) -> float:
    """Queries are scaled by the width of a head; in the largest model, of `large` layers, by D / N."""
    heads, hidden = keys.need("attention.head_count"), keys.need("embedding_length")
    width = hidden // heads if keys.layers() == large else keys.need("attention.key_length")
    return width**-0.5


def _gemma2_gguf(keys: GgufKeys) -> dict[str, Any]:
    rope, window = rope_from_gguf(keys), keys.get("attention.sliding_window", 4096)
    slides = gguf_slides(keys, 2, window)
    return (
        _common_gguf(keys)
        | alternating(slides, window, rope, rope)
        | dict(
            attention_multiplier=_scale_gguf(keys, 46),
            attn_logit_softcapping=keys.get("attn_logit_softcapping", 50.0),
            final_logit_softcapping=keys.get("final_logit_softcapping", 30.0),
        )
    )


def _gemma3_gguf(keys: GgufKeys) -> dict[str, Any]:
    full, window = rope_from_gguf(keys), keys.get("attention.sliding_window") or None
    slides = gguf_slides(keys, _PATTERN, window)
    local = Rope(rope_theta=float(keys.get("rope.freq_base_swa", _LOCAL_THETA)))
    return (
        _common_gguf(keys)
        | alternating(slides, window, full, local)
        | dict(
            attention_multiplier=_scale_gguf(keys, 62),
            final_logit_softcapping=keys.get("final_logit_softcapping") or None,
        )
    )


GEMMA = Family(
    model_types=("gemma",),
    architectures=("gemma",),
    defaults=_DEFAULTS
    | dict(
        vocab_size=256000,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
    ),
    fields=_FIELDS,
    hf=_common,
    gguf=_common_gguf,
)

GEMMA2 = Family(
    model_types=("gemma2",),
    architectures=("gemma2",),
    defaults=_DEFAULTS
    | dict(
        vocab_size=256000,
        max_position_embeddings=8192,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    fields=_FIELDS | dict(norm_placement="both"),
    hf=_gemma2,
    gguf=_gemma2_gguf,
    hf_layer=FOUR_NORMS,
)

GEMMA3 = dataclasses.replace(
    GEMMA2,
    model_types=("gemma3_text",),
    architectures=("gemma3",),
    defaults=_DEFAULTS
    | dict(vocab_size=262208, max_position_embeddings=131072, sliding_window=4096, rope_theta=1000000.0),
    fields=_FIELDS | dict(norm_placement="both", qk_norm="head"),
    hf=_gemma3,
    gguf=_gemma3_gguf,
)
