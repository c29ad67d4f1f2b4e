"""Every spelling of a RoPE configuration, brought to one `Rope`."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError, escaped
from jllama.families.checks import check_size
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.rope_check import check_settings
from jllama.families.tensor_names import FACTORS, LONG_FACTORS, SHORT_FACTORS
from jllama.layers.rope import Rope

# What each type needs besides rope_theta, and what it may have.
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
_OPTIONAL = {
    "dynamic": ("original_max_position_embeddings",),
    "yarn": (
        *("factor", "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate", "llama_4_scaling_beta"),
    ),
    "longrope": ("factor", "attention_factor"),
}
# What no default rotation has, and would turn or scale otherwise.
_OF_OTHER_TYPES = {"llama_4_scaling_beta", "mscale", "mscale_all_dim", "mrope_section"}
_ALIASES = {"su": "longrope"}  # what Phi-3's first files call it
# YaRN's first models state `finetuned`, Ministral 3 its longest text again, and no code reads them.
_IGNORED = ("finetuned", "max_position_embeddings")
_LENGTHS = ("llama3", "yarn", "longrope")  # types that know how long the texts of training were
# GGUF's further knobs, with the value that leaves everything as it is.
_GGUF_UNSUPPORTED = {
    "rope.scaling.yarn_attn_factor": 1.0,  # but for YaRN
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.alpha": 0.0,
}


def longest_text(keys: HfKeys) -> int:
    """`max_position_embeddings`.

    Raises:
      JllamaError: it is no size.
    """
    longest = keys.get("max_position_embeddings", 2048)
    check_size("max_position_embeddings", longest)
    return longest


def rope_from_hf(
    keys: HfKeys,
    layer_type: str | None = None,
    *,
    theta_key: str = "rope_theta",
    theta: float = 10000.0,
    partly: bool = False,
) -> Rope:
    """From `config.json`: `rope_theta` + `rope_scaling` (`type` or `rope_type`), or `rope_parameters`.

    Args:
      keys: of the configuration.
      layer_type: whose rotation is meant, where kinds of layers have their own: `full_attention`, to which
        settings belong that name no kind, or `sliding_attention`.
      theta_key: the key of the angles' base outside of the settings.
      theta: the base where no key says it.
      partly: the family rotates a part of each head where its files say so.

    Raises:
      JllamaError: an unknown type, a missing, unknown or non-numeric setting.
    """
    stated = _settings(keys, layer_type)
    settings = {key: value for key, value in stated.items() if value is not None and key not in _IGNORED}
    typed = "rope_type" in settings or "type" in settings
    rope_type = settings.pop("rope_type", settings.pop("type", "default"))
    base = settings.pop("rope_theta", keys.get(theta_key, theta))
    partial = settings.pop("partial_rotary_factor", keys.get("partial_rotary_factor", 1.0))
    if not partly and partial != 1:
        raise JllamaError(f"config.json: partial_rotary_factor={partial!r} is not supported by its family")
    rope_type = _ALIASES.get(rope_type, rope_type) if isinstance(rope_type, str) else rope_type
    if not isinstance(rope_type, str) or rope_type not in _REQUIRED:
        raise JllamaError(
            f"config.json: RoPE type {rope_type!r} is not supported; use {', '.join(_REQUIRED)}"
        )
    longest = longest_text(keys)
    _set_original_length(rope_type, settings, keys.get("original_max_position_embeddings"), longest)
    missing = [key for key in _REQUIRED[rope_type] if key not in settings]
    if rope_type == "yarn" and "factor" not in stated:
        missing.append("factor (null: the longest text by that of the training)")
    if missing:
        raise JllamaError(f"config.json: RoPE type {rope_type} lacks {', '.join(missing)}")
    if settings and not typed:
        raise JllamaError(f"config.json: RoPE settings {', '.join(settings)} without a rope_type")
    if rope_type == "default" and settings:
        _tell_of_unread(settings)
        settings = {}
    return _build(rope_type, base, settings, longest, partial)


def _tell_of_unread(settings: Mapping[str, Any]) -> None:
    """The default rotation has no settings: what another would turn or scale by is refused."""
    if of_others := sorted(_OF_OTHER_TYPES & set(settings)):
        raise JllamaError(
            f"config.json: RoPE type default has no {', '.join(of_others)}; remove it, or set "
            "the type that has it"
        )
    warnings.warn(escaped(f"config.json: RoPE type default ignores {', '.join(settings)}"), stacklevel=5)


def _settings(keys: HfKeys, layer_type: str | None) -> Mapping[str, Any]:
    """The settings that belong to layers of a type; those that name no type belong to full layers."""
    settings: Any = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    keys.get("rope_parameters")
    if not isinstance(settings, Mapping):
        raise JllamaError(f"config.json: RoPE settings {settings!r} must be an object or null")
    by_layer = [str(key) for key, value in settings.items() if isinstance(value, Mapping)]
    if not by_layer:
        if layer_type is not None and settings and not keys.all.get("rope_scaling"):
            raise JllamaError(
                "config.json: rope_parameters must hold full_attention and sliding_attention, each with the "
                f"settings of those layers, not {', '.join(map(str, settings))}, which transformers ignores"
            )
        return {} if layer_type == "sliding_attention" else settings
    if layer_type is None or not set(by_layer) <= {"full_attention", "sliding_attention"}:
        raise JllamaError(
            f"config.json: RoPE settings for each layer type ({', '.join(by_layer)}) are not supported"
        )
    return settings.get(layer_type) or {}


def _set_original_length(
    rope_type: str, settings: dict[str, Any], top_level: Any, max_positions: int
) -> None:
    """Where Hugging Face's own code finds it: beside the RoPE settings, in them, else the longest text.

    Of the latter alone no factor would follow, so that YaRN then needs one.
    """
    if rope_type not in _LENGTHS:
        return
    if top_level is not None:
        settings["original_max_position_embeddings"] = top_level
    elif "factor" in settings or rope_type == "longrope":
        settings.setdefault("original_max_position_embeddings", max_positions)


def _build(rope_type: str, theta: Any, settings: dict[str, Any], max_positions: int, partial: Any) -> Rope:
    unknown = set(settings) - set(_REQUIRED[rope_type]) - set(_OPTIONAL.get(rope_type, ()))
    if unknown:
        raise JllamaError(f"RoPE type {rope_type} has no {', '.join(sorted(unknown))}")
    lists: dict[str, Any] = {
        key: _divisors(key, settings.pop(key)) for key in ("short_factor", "long_factor") if key in settings
    }
    check_settings({"rope_theta": theta, "partial_rotary_factor": partial, **settings})
    if rope_type == "dynamic":
        # Hugging Face's own code reads the trained length from max_position_embeddings alone.
        settings["original_max_position_embeddings"] = max_positions
    if rope_type in ("yarn", "longrope"):
        settings.setdefault("factor", max_positions / settings["original_max_position_embeddings"])
    fields: dict[str, Any] = {**settings, **lists, "partial_rotary_factor": float(partial)}
    return Rope(rope_type=rope_type, rope_theta=float(theta), **fields)


def _divisors(key: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        raise JllamaError(f"RoPE setting {key}={values!r} must be a list of numbers")
    return tuple(values)


def rope_from_gguf(keys: GgufKeys) -> Rope:
    """From GGUF metadata (keys `rope.*` under the architecture's prefix), with llama.cpp's defaults.

    Llama 3's stretching and LongRoPE's come as tensors of one factor per frequency, not as metadata.

    Raises:
      JllamaError: an unknown type or a bad setting.
    """
    longest = keys.need("context_length")
    kind = keys.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise JllamaError(
            f"GGUF: RoPE scaling type {kind!r} is not supported; use none, linear, yarn, longrope"
        )
    for key, neutral in _GGUF_UNSUPPORTED.items():
        if keys.get(key, neutral) != neutral and (kind, key) != ("yarn", "rope.scaling.yarn_attn_factor"):
            raise JllamaError(f"GGUF: {key}={keys.get(key)!r} is not supported (only {neutral})")
    # rope.scale_linear is the factor's name in old files; 0 stands for no scaling.
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    settings: dict[str, Any] = {"factor": 1.0 if factor == 0 else factor}
    trained = keys.get("rope.scaling.original_context_length") or longest
    if kind == "longrope" or LONG_FACTORS in keys.factors or SHORT_FACTORS in keys.factors:
        kind, settings = "longrope", _longrope(keys, trained)
    elif kind == "none" or (kind == "linear" and settings["factor"] == 1):
        kind, settings = "default", {}
    if kind == "yarn":
        settings |= _yarn(keys, trained)
    if kind not in ("yarn", "longrope"):
        keys.allow_only({"rope.scaling.attn_factor": 1.0})
    rope = _build(kind, keys.get("rope.freq_base", 10000.0), settings, longest, _partial(keys))
    return dataclasses.replace(rope, frequency_factors=keys.factors.get(FACTORS))


def _partial(keys: GgufKeys) -> float:
    """The rotated part of a head; of no heads, which are refused with the configuration, all."""
    width = keys.head_dim()
    return keys.get("rope.dimension_count", width) / width if width else 1.0


def _longrope(keys: GgufKeys, trained: Any) -> dict[str, Any]:
    if missing := [name for name in (LONG_FACTORS, SHORT_FACTORS) if name not in keys.factors]:
        raise JllamaError(
            f"GGUF: RoPE scaling type longrope without the tensors {', '.join(missing)}; download it again"
        )
    settings: dict[str, Any] = dict(
        long_factor=keys.factors[LONG_FACTORS], short_factor=keys.factors[SHORT_FACTORS]
    )
    stated = keys.get("rope.scaling.attn_factor")
    factor = {} if stated is None else {"attention_factor": stated}
    return {**settings, **factor, "original_max_position_embeddings": trained}


def _yarn(keys: GgufKeys, trained: Any) -> dict[str, Any]:
    """A logarithmic multiplier is `mscale_all_dim` beside an `mscale` of 1.

    Some converters write Hugging Face's `attention_factor` under the name that LongRoPE has for it, others 1
    there for what YaRN does anyway.
    """
    settings: dict[str, Any] = {"original_max_position_embeddings": trained}
    names = {
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
        "attn_factor": "attention_factor",
        "yarn_attn_factor": "attention_factor",
    }
    for key, field in names.items():
        value = keys.get(f"rope.scaling.{key}")
        if value is not None and (key, value) != ("attn_factor", 1.0):
            settings[field] = value
    if multiplier := keys.get("rope.scaling.yarn_log_multiplier"):
        settings |= dict(mscale=1.0, mscale_all_dim=multiplier)
    if beta := keys.get("attention.temperature_scale"):
        settings["llama_4_scaling_beta"] = beta
    return settings
