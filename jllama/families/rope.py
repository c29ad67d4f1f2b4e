"""Every spelling of a RoPE configuration, brought to one `Rope`."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jllama.errors import JllamaError, escaped
from jllama.families.rope_check import check_settings
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
_IGNORED = ("finetuned",)  # YaRN's first models state it, and no code reads it
# GGUF's further knobs, with the value that leaves everything as it is.
_GGUF_UNSUPPORTED = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
}


def rope_from_hf(keys: Mapping[str, Any], max_positions: int) -> Rope:
    """From `config.json`: `rope_theta` + `rope_scaling` (`type` or `rope_type`), or `rope_parameters`.

    Raises:
      JllamaError: an unknown type, a missing, unknown or non-numeric setting.
    """
    settings: Any = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        raise JllamaError(f"config.json: RoPE settings {settings!r} must be an object or null")
    by_layer = [str(key) for key, value in settings.items() if isinstance(value, Mapping)]
    if by_layer:
        raise JllamaError(
            f"config.json: RoPE settings for each layer type ({', '.join(by_layer)}) are not supported"
        )
    settings = {key: value for key, value in settings.items() if value is not None and key not in _IGNORED}
    typed = "rope_type" in settings or "type" in settings
    rope_type = settings.pop("rope_type", settings.pop("type", "default"))
    settings.pop("type", None)
    top_level_theta = keys.get("rope_theta")
    theta = settings.pop("rope_theta", 10000.0 if top_level_theta is None else top_level_theta)
    if rope_type not in _REQUIRED:
        raise JllamaError(
            f"config.json: RoPE type {rope_type!r} is not supported; use {', '.join(_REQUIRED)}"
        )
    if settings.pop("partial_rotary_factor", 1) != 1:
        raise JllamaError("config.json: partial_rotary_factor is not supported")
    _set_original_length(rope_type, settings, keys.get("original_max_position_embeddings"), max_positions)
    missing = [key for key in _REQUIRED[rope_type] if key not in settings]
    if missing:
        raise JllamaError(f"config.json: RoPE type {rope_type} lacks {', '.join(missing)}")
    if settings and not typed:
        raise JllamaError(f"config.json: RoPE settings {', '.join(settings)} without a rope_type")
    if rope_type == "default" and settings:
        warnings.warn(escaped(f"config.json: RoPE type default ignores {', '.join(settings)}"), stacklevel=4)
        settings = {}
    return _build(rope_type, theta, settings, max_positions)


def _set_original_length(
    rope_type: str, settings: dict[str, Any], top_level: Any, max_positions: int
) -> None:
    """Where Hugging Face's own code finds it: beside the RoPE settings, in them, else the longest text.

    Of the latter alone no factor would follow, so that YaRN then needs one.
    """
    if rope_type not in ("llama3", "yarn"):
        return
    if top_level is not None:
        settings["original_max_position_embeddings"] = top_level
    elif "factor" in settings:
        settings.setdefault("original_max_position_embeddings", max_positions)


def _build(rope_type: str, theta: Any, settings: dict[str, Any], max_positions: int) -> Rope:
    unknown = set(settings) - set(_REQUIRED[rope_type]) - set(_OPTIONAL.get(rope_type, ()))
    if unknown:
        raise JllamaError(f"RoPE type {rope_type} has no {', '.join(sorted(unknown))}")
    check_settings({"rope_theta": theta, **settings})
    if rope_type == "dynamic":
        # Hugging Face's own code reads the trained length from max_position_embeddings alone.
        settings["original_max_position_embeddings"] = max_positions
    if rope_type == "yarn":
        settings.setdefault("factor", max_positions / settings["original_max_position_embeddings"])
    return Rope(rope_type=rope_type, rope_theta=float(theta), **settings)


def rope_from_gguf(
    get: Callable[..., Any], max_positions: int, frequency_factors: tuple[float, ...] | None
) -> Rope:
    """From GGUF metadata (keys `rope.*` under the architecture's prefix), with llama.cpp's defaults.

    Llama 3's stretching comes as a tensor of one factor per frequency, not as metadata.

    Raises:
      JllamaError: an unknown type or a bad setting.
    """
    kind = get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise JllamaError(f"GGUF: RoPE scaling type {kind!r} is not supported; use none, linear, yarn")
    for key, neutral in _GGUF_UNSUPPORTED.items():
        if get(key, neutral) != neutral:
            raise JllamaError(f"GGUF: {key}={get(key)!r} is not supported (only {neutral})")
    # rope.scale_linear is the factor's name in old files; 0 stands for no scaling.
    factor = get("rope.scaling.factor", get("rope.scale_linear", 1.0))
    settings: dict[str, Any] = {"factor": 1.0 if factor == 0 else factor}
    if kind == "none" or (kind == "linear" and settings["factor"] == 1):
        kind, settings = "default", {}
    if kind == "yarn":
        settings["original_max_position_embeddings"] = (
            get("rope.scaling.original_context_length") or max_positions
        )
        for key in ("beta_fast", "beta_slow"):
            if get(f"rope.scaling.yarn_{key}") is not None:
                settings[key] = get(f"rope.scaling.yarn_{key}")
    rope = _build(kind, get("rope.freq_base", 10000.0), settings, max_positions)
    return dataclasses.replace(rope, frequency_factors=frequency_factors)
