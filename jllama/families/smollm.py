"""SmolLM3: every fourth layer does without positions."""

from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import Family
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.kinds import check_window, every, kind_fields, layer_types
from jllama.families.rope import rope_from_gguf, rope_from_hf
from jllama.layers.kind import LayerKind

_INTERVAL = 4  # no GGUF file says so


def _smollm3(keys: HfKeys) -> dict[str, Any]:
    """`no_rope_layers` holds 1 for a layer that rotates; only the others may slide."""
    layers, rope = keys.layers(), rope_from_hf(keys)
    stated = keys.get("sliding_window")
    window = stated if keys.get("use_sliding_window", False) else None
    interval = every(keys.get("no_rope_layer_interval", _INTERVAL), layers)
    rotates = keys.get("no_rope_layers") or interval
    if not isinstance(rotates, list) or len(rotates) != layers:
        raise JllamaError(
            f"config.json: no_rope_layers={rotates!r} must be a list of {layers} numbers, 0 or 1"
        )
    slides = layer_types(keys, [window is not None and not turned for turned in rotates])
    check_window(slides, window)
    return kind_fields(
        [
            LayerKind(window if slide else None, rope if turned else None)
            for slide, turned in zip(slides, rotates, strict=True)
        ]
    )


def _smollm3_gguf(keys: GgufKeys) -> dict[str, Any]:
    keys.allow_only({"attention.sliding_window": 0})
    rope = rope_from_gguf(keys)
    rotates = every(_INTERVAL, keys.layers())
    return kind_fields([LayerKind(None, rope if turned else None) for turned in rotates])


SMOLLM3 = Family(
    model_types=("smollm3",),
    architectures=("smollm3",),
    defaults=dict(
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        rope_theta=2000000.0,
    ),
    hf=_smollm3,
    gguf=_smollm3_gguf,
    rotary_interleaved=True,
)
