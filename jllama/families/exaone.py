"""EXAONE 4: norms behind the layers, normalised heads; layers that see everything do without positions."""

from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import POST_NORMS, Family
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.kinds import alternating, check_window, every, gguf_slides, layer_types
from jllama.families.rope import rope_from_gguf, rope_from_hf

_PATTERN = 4


def _slides(keys: HfKeys) -> list[bool]:
    """A period, or a word of L (local) and G (global) that repeats; the last layer is global then."""
    pattern, layers = keys.get("sliding_window_pattern", _PATTERN), keys.layers()
    if not isinstance(pattern, str):
        return every(pattern, layers)
    if not pattern or set(pattern) - {"L", "G"}:
        raise JllamaError(
            f"config.json: sliding_window_pattern={pattern!r} must be a number, or letters L and G"
        )
    return [pattern[layer % len(pattern)] == "L" and layer < layers - 1 for layer in range(layers)]


def _exaone4(keys: HfKeys) -> dict[str, Any]:
    rope, window = rope_from_hf(keys), keys.nullable("sliding_window")
    if window is None:
        keys.ignore("sliding_window_pattern")
        check_window(layer_types(keys, ()), None)
        return dict(rope=rope)
    return alternating(layer_types(keys, _slides(keys)), window, None, rope)


def _exaone4_gguf(keys: GgufKeys) -> dict[str, Any]:
    """Only the large model slides, and its file may not say how far."""
    rope, layers = rope_from_gguf(keys), keys.layers()
    window = keys.get("attention.sliding_window", 4096 if layers == 64 else None) or None
    if window is None:
        keys.ignore("attention.sliding_window_pattern")
        return dict(rope=rope)
    return alternating(gguf_slides(keys, _PATTERN, window), window, None, rope)


EXAONE4 = Family(
    model_types=("exaone4",),
    architectures=("exaone4",),
    defaults=dict(
        vocab_size=102400,
        intermediate_size=16384,
        num_key_value_heads=32,
        rms_norm_eps=1e-5,
        sliding_window=4096,
    ),
    fields=dict(norm_placement="post", qk_norm="head"),
    hf=_exaone4,
    gguf=_exaone4_gguf,
    hf_layer=POST_NORMS,
)
