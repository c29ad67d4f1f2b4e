"""Refuses RoPE settings with which some angle would be no number, before a forward pass meets them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jllama.errors import JllamaError
from jllama.layers.rope import Rope, attention_factor, inverse_frequencies

LARGEST = 1e30  # of any setting: float32 still computes with it
_LARGEST_ANGLE = 1e30
_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_OPTIONAL = ("attention_factor", "mscale", "mscale_all_dim", "llama_4_scaling_beta")
_LISTS = ("frequency_factors", "short_factor", "long_factor")
_TENSORS = {
    "frequency_factors": "rope_freqs.weight",
    "short_factor": "rope_factors_short.weight",
    "long_factor": "rope_factors_long.weight",
}
_STRETCHED = ("dynamic", "llama3", "yarn", "longrope")  # types that know how long the texts of training were


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses a setting that is no positive number (`truncate`: no truth value), by name.

    Raises:
      JllamaError: names it.
    """
    for key, value in settings.items():
        if key == "truncate":
            if not isinstance(value, bool):
                raise JllamaError(f"RoPE setting truncate={value!r} must be true or false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            raise JllamaError(f"RoPE setting {key}={value!r} must be a positive number, {LARGEST:g} at most")


def check_rope(rope: Rope, head_dim: int, max_positions: int) -> None:
    """Refuses what no file may state, wherever the settings came from.

    Raises:
      JllamaError: names the setting.
    """
    if rope.rope_type not in _TYPES:
        raise JllamaError(f"RoPE type {rope.rope_type!r} is not supported; use {', '.join(_TYPES)}")
    settings = {field.name: getattr(rope, field.name) for field in dataclasses.fields(rope)}
    unset = {"rope_type", *_LISTS} | {key for key in _OPTIONAL if settings[key] is None}
    if rope.rope_type not in _STRETCHED:
        unset.add("original_max_position_embeddings")
        _check_unread(rope.original_max_position_embeddings)
    check_settings({key: value for key, value in settings.items() if key not in unset})
    width = _rotary_dim(rope, head_dim)
    for name in _LISTS:
        _check_list(name, getattr(rope, name), width)
    if rope.rope_type == "longrope" and rope.short_factor is None and rope.long_factor is None:
        raise JllamaError("RoPE type longrope lacks short_factor and long_factor")
    if rope.llama_4_scaling_beta is not None and not rope.original_max_position_embeddings:
        raise JllamaError("RoPE setting llama_4_scaling_beta needs original_max_position_embeddings")
    if rope.rope_type == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
        raise JllamaError("RoPE setting low_freq_factor must be below high_freq_factor")
    if rope.rope_type == "yarn" and rope.rope_theta == 1:
        raise JllamaError("RoPE type yarn needs a rope_theta other than 1")
    if rope.rope_type == "dynamic":
        _check_dynamic(rope, width, max_positions)
    _check_angles(rope, width, max_positions)


def _check_unread(length: Any) -> None:
    """A length that the type does not use may be 0; anything but a number would not even be hashable."""
    if type(length) not in (int, float):
        raise JllamaError(f"RoPE setting original_max_position_embeddings={length!r} must be a number")


def _rotary_dim(rope: Rope, head_dim: int) -> int:
    """R, which must be even: pairs rotate."""
    width = rope.rotary_dim(head_dim)
    if rope.partial_rotary_factor > 1 or width % 2 or not width:
        raise JllamaError(
            f"RoPE setting partial_rotary_factor={rope.partial_rotary_factor!r} rotates {width} of "
            f"{head_dim} elements; it must be an even number of them"
        )
    return width


def _check_list(name: str, factors: Any, width: int) -> None:
    if factors is None:
        return
    if not isinstance(factors, tuple):
        raise JllamaError(f"RoPE setting {name}={factors!r} must be a tuple of numbers")
    if len(factors) != width // 2:
        raise JllamaError(
            f"RoPE has {len(factors)} factors ({name}, of the tensor {_TENSORS[name]} in GGUF files), and "
            f"heads that rotate {width} elements need {width // 2}; correct "
            "the list, or download the file again"
        )
    for factor in factors:
        check_settings({f"{name} ({_TENSORS[name]})": factor})


def _check_dynamic(rope: Rope, head_dim: int, max_positions: int) -> None:
    if head_dim == 2:
        raise JllamaError("config: RoPE type dynamic needs a head_dim of 4 at least")
    if not max_positions * rope.factor < 2**31:
        raise JllamaError(f"config: RoPE setting factor={rope.factor!r} stretches the context beyond 2^31")


def _check_angles(rope: Rope, head_dim: int, max_positions: int) -> None:
    """Settings that are sound one by one may still divide by zero together: hence the angles themselves."""
    try:
        with np.errstate(all="ignore"):
            frequencies = inverse_frequencies(rope, head_dim)
            largest = float(np.max(frequencies)) * max_positions
            sound = bool(np.isfinite(frequencies).all()) and largest <= _LARGEST_ANGLE
        sound = sound and math.isfinite(attention_factor(rope))
    except (ValueError, ArithmeticError):
        sound = False
    if not sound:
        stated = {key: value for key, value in dataclasses.asdict(rope).items() if value is not None}
        raise JllamaError(
            f"RoPE settings {stated} give angles that are no numbers; correct them in the model"
        )
