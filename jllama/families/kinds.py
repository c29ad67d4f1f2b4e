"""Which layers slide, which rotate: the lists and patterns of the files -> the kinds of the layers."""

from collections.abc import Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.families.checks import check_size
from jllama.families.keys import GgufKeys, HfKeys
from jllama.layers.kind import LayerKind
from jllama.layers.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"


def kind_fields(kinds: Sequence[LayerKind]) -> dict[str, Any]:
    """The fields of `ModelConfig` for the kinds of all layers: one for all of them where they are equal."""
    first = kinds[0] if kinds else LayerKind()
    if first.rope is not None and all(kind == first for kind in kinds):
        return dict(sliding_window=first.window, rope=first.rope, layer_kinds=())
    rope = next((kind.rope for kind in kinds if kind.window is None and kind.rope), None)
    rope = rope or next((kind.rope for kind in kinds if kind.rope), Rope())
    return dict(sliding_window=None, rope=rope, layer_kinds=_period(kinds))


def _period(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest beginning that repeats to the end."""
    numbers: dict[LayerKind, int] = {}
    word = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
    # Lists of small numbers compare fast: a file may state ten thousand layers.
    size = next((n for n in range(1, len(word)) if word[n:] == word[:-n]), len(word))
    return tuple(kinds[:size])


def alternating(
    slides: Sequence[bool], window: Any, full: Rope | None, sliding: Rope | None
) -> dict[str, Any]:
    """The fields where some layers slide and others see everything, each with a rotary embedding.

    Raises:
      JllamaError: see `check_window`.
    """
    check_window(slides, window)
    kinds = [LayerKind(window, sliding) if slide else LayerKind(None, full) for slide in slides]
    return kind_fields(kinds)


def check_window(slides: Sequence[bool], window: Any) -> None:
    """Refuses layers that slide over a window of no size.

    Raises:
      JllamaError: says what fits.
    """
    if window is not None:
        check_size("sliding_window", window, "below 2^31, or null")
    elif any(slides):
        raise JllamaError(
            f"config.json: {sum(slides)} of {len(slides)} layers are of {SLIDING}, and there is no window: "
            f"state sliding_window (and use_sliding_window, where the family has it), or {FULL} as all "
            "layer_types"
        )


def layer_types(keys: HfKeys, otherwise: Sequence[bool]) -> list[bool]:
    """Which layers slide: config key `layer_types`, or what the family does without it.

    Raises:
      JllamaError: another kind of layer, or not one for each layer.
    """
    types = keys.get("layer_types")
    if not types:
        return list(otherwise)
    layers = keys.layers()
    if not isinstance(types, list) or not set(map(str, types)) <= {FULL, SLIDING}:
        kinds = sorted({str(kind) for kind in types}) if isinstance(types, list) else types
        raise JllamaError(
            f"config.json: layer_types of kinds {kinds} are not supported; use {FULL}, {SLIDING}"
        )
    if len(types) != layers:
        raise JllamaError(f"config.json: {len(types)} layer_types for num_hidden_layers={layers}")
    return [kind == SLIDING for kind in types]


def every(period: int, layers: int, stated: str = "config.json") -> list[bool]:
    """All layers slide but for each `period`-th one.

    Raises:
      JllamaError: the period is none; names where it was `stated`.
    """
    if type(period) is not int or period < 1:
        raise JllamaError(f"{stated}: a pattern of {period!r} layers must be a whole number from 1")
    return [(layer + 1) % period != 0 for layer in range(layers)]


def gguf_slides(keys: GgufKeys, period: int, window: Any) -> list[bool]:
    """Which layers slide: the key `attention.sliding_window_pattern`, a list or a period, or `period`.

    Without a `window` none does.

    Raises:
      JllamaError: a list that does not fit the layers, or no period.
    """
    key, layers = "attention.sliding_window_pattern", keys.layers()
    pattern = keys.each(key)
    if window is None:
        return [False] * layers
    if not isinstance(pattern, list):
        return every(period if pattern is None else pattern, layers, f"GGUF: {keys.prefix}.{key}")
    if len(pattern) != layers:
        raise JllamaError(f"GGUF: sliding_window_pattern has {len(pattern)} values for {layers} layers")
    return [bool(slide) for slide in pattern]
