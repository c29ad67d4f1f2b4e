"""Qwen 2, 2.5 and 3: biases on q, k and v; normalised heads; windows on the upper layers."""

from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import Family
from jllama.families.keys import HfKeys
from jllama.families.kinds import alternating, layer_types
from jllama.families.rope import rope_from_hf

_DEFAULTS = dict(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    sliding_window=4096,
)


def _qwen(keys: HfKeys) -> dict[str, Any]:
    """Layers from `max_window_layers` on slide, and only with `use_sliding_window`."""
    stated = keys.nullable("sliding_window")
    window = stated if keys.get("use_sliding_window", False) else None
    first, layers = keys.get("max_window_layers", 28), keys.layers()
    if type(first) is not int:
        raise JllamaError(f"config.json: max_window_layers={first!r} must be a whole number")
    slides = layer_types(keys, [window is not None and layer >= first for layer in range(layers)])
    rope = rope_from_hf(keys)
    return alternating(slides, window, rope, rope)


def _qwen2(keys: HfKeys) -> dict[str, Any]:
    return _qwen(keys) | dict(attention_bias=True, attention_out_bias=False)


QWEN2 = Family(model_types=("qwen2",), architectures=("qwen2",), defaults=_DEFAULTS, hf=_qwen2)

QWEN3 = Family(
    model_types=("qwen3",),
    architectures=("qwen3",),
    defaults={**_DEFAULTS, "head_dim": 128},
    fields=dict(qk_norm="head"),
    hf=_qwen,
)
