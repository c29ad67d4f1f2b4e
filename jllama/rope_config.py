"""Every spelling of a RoPE configuration, brought to one `Rope`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.layers.rope import Rope

# What each type needs besides rope_theta, and what it may have.
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_position_embeddings",),
}
_OPTIONAL = {
    "dynamic": ("original_max_position_embeddings",),
    "yarn": (
        *("factor", "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}


def rope_from_hf(keys: Mapping[str, Any], max_positions: int) -> Rope:
    """From `config.json`: `rope_theta` + `rope_scaling` (`type` or `rope_type`), or `rope_parameters`.

    Raises:
      JllamaError: an unknown type, a missing, unknown or non-numeric setting.
    """
    settings: Any = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise JllamaError(f"config.json: RoPE settings {settings!r} must be an object or null")
    settings = {key: value for key, value in settings.items() if value is not None}
    rope_type = settings.pop("rope_type", settings.pop("type", "default"))
    settings.pop("type", None)
    theta = settings.pop("rope_theta", keys.get("rope_theta") or 10000.0)
    if rope_type not in _REQUIRED:
        raise JllamaError(
            f"config.json: RoPE type {rope_type!r} is not supported; use {', '.join(_REQUIRED)}"
        )
    if settings.pop("partial_rotary_factor", 1) != 1:
        raise JllamaError("config.json: partial_rotary_factor is not supported")
    missing = [key for key in _REQUIRED[rope_type] if key not in settings]
    if missing:
        raise JllamaError(f"config.json: RoPE type {rope_type} lacks {', '.join(missing)}")
    if rope_type == "default":
        settings = {}
    return _build(rope_type, theta, settings, max_positions)


def _build(rope_type: str, theta: Any, settings: dict[str, Any], max_positions: int) -> Rope:
    unknown = set(settings) - set(_REQUIRED[rope_type]) - set(_OPTIONAL.get(rope_type, ()))
    if unknown:
        raise JllamaError(f"config.json: RoPE type {rope_type} has no {', '.join(sorted(unknown))}")
    for key, value in {"rope_theta": theta, **settings}.items():
        if key == "truncate":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise JllamaError(f"config.json: RoPE setting {key}={value!r} must be a positive number")
    if rope_type == "dynamic":
        # Hugging Face's own code reads the trained length from max_position_embeddings alone.
        settings["original_max_position_embeddings"] = max_positions
    if rope_type == "yarn":
        settings.setdefault("factor", max_positions / settings["original_max_position_embeddings"])
    return Rope(rope_type=rope_type, rope_theta=float(theta), **settings)


def rope_from_gguf(
    get: Callable[..., Any], max_positions: int, frequency_factors: tuple[float, ...] | None
) -> Rope:
    """From GGUF metadata (keys `rope.*` under the architecture's prefix).

    Llama 3's stretching comes as a tensor of one factor per frequency, not as metadata.

    Raises:
      JllamaError: an unknown type or a bad setting.
    """
    kind = get("rope.scaling.type", "none")
    theta = get("rope.freq_base", 10000.0)
    settings: dict[str, Any] = {}
    if kind not in ("none", "linear", "yarn"):
        raise JllamaError(f"GGUF: RoPE scaling type {kind!r} is not supported; use none, linear, yarn")
    if kind == "none" and get("rope.scale_linear") not in (None, 1.0):
        kind, settings = "linear", {"factor": get("rope.scale_linear")}
    if kind in ("linear", "yarn"):
        settings.setdefault("factor", get("rope.scaling.factor", 1.0))
    if kind == "yarn":
        original = get("rope.scaling.original_context_length", max_positions)
        settings["original_max_position_embeddings"] = original
    rope = _build("default" if kind == "none" else kind, theta, settings, max_positions)
    return dataclasses.replace(rope, frequency_factors=frequency_factors)
