"""How far each pair turns per position: plain rotary embedding and its forms for longer texts."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions become angles: the config keys `rope_theta` and `rope_scaling` / `rope_parameters`.

    `rope_type` is one of `default`, `linear`, `dynamic` (NTK), `llama3`, `yarn`, `longrope`. A field that the
    type does not use keeps its default.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0  # dynamic, llama3, yarn, longrope, llama_4_scaling_beta
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn, longrope; None: derived from the factor
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    frequency_factors: tuple[float, ...] | None = None  # R/2 divisors, as GGUF stores llama3's
    short_factor: tuple[float, ...] | None = None  # longrope: R/2 divisors up to the original length
    long_factor: tuple[float, ...] | None = None  # longrope: R/2 divisors beyond it
    partial_rotary_factor: float = 1.0  # R/H: the part of a head that is rotated, its first elements
    llama_4_scaling_beta: float | None = None  # queries grow with their position: `query_scale`

    def rotary_dim(self, head_dim: int) -> int:
        """R: how many elements of a head of `head_dim` are rotated."""
        return int(head_dim * self.partial_rotary_factor)


def rope_frequencies(rope: Rope, head_dim: int, context: Array) -> Array:
    """Angles per position: float32 `[1, R/2]`, or `[B, R/2]` where they depend on `context`, int32 `[B]`."""
    head_dim = rope.rotary_dim(head_dim)
    if rope.rope_type == "dynamic":
        return _dynamic_frequencies(rope, head_dim, context)
    if rope.rope_type == "longrope":
        return _longrope_frequencies(rope, head_dim, context)
    return jnp.asarray(inverse_frequencies(rope, head_dim), jnp.float32)[None]


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Angle per position of each pair, float64 `[R/2]`, R = `head_dim`, before `dynamic` and `longrope`."""
    plain = 1.0 / rope.rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    if rope.frequency_factors is not None:
        plain = plain / np.asarray(rope.frequency_factors)
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3_frequencies(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn_frequencies(rope, plain, head_dim)
    return plain


def _llama3_frequencies(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    turns = rope.original_max_position_embeddings * plain / (2 * math.pi)
    band = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / band, 0.0, 1.0)
    return keep * plain + (1.0 - keep) * plain / rope.factor


def _yarn_frequencies(rope: Rope, plain: np.ndarray, head_dim: int) -> np.ndarray:
    """YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071), its "NTK by parts"."""

    def pair_that_turns(rotations: float) -> float:
        wavelength = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = (high - low) or 0.001
    stretch = np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)
    return stretch * plain / rope.factor + (1.0 - stretch) * plain


def _dynamic_frequencies(rope: Rope, head_dim: int, context: Array) -> Array:
    """Dynamic NTK: the base grows with the text once it is longer than the model was trained for."""
    # Floats: files may state whole numbers that are no int32.
    trained, factor = float(rope.original_max_position_embeddings), float(rope.factor)
    length = jnp.maximum(context.astype(jnp.float32), trained)
    growth = (factor * length / trained - (factor - 1.0)) ** (head_dim / (head_dim - 2))
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    return 1.0 / (float(rope.rope_theta) * growth[:, None]) ** exponents[None, :]


def _longrope_frequencies(rope: Rope, head_dim: int, context: Array) -> Array:
    """LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753): one list of divisors up to the original
    length of a text, another one beyond it.
    """
    plain = inverse_frequencies(rope, head_dim)
    short, long = (jnp.asarray(plain / np.asarray(by), jnp.float32) for by in longrope_divisors(rope))
    is_long = context > rope.original_max_position_embeddings
    return jnp.where(is_long[:, None], long[None], short[None])


def longrope_divisors(rope: Rope) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The short list and the long one; a file that holds one alone means it for every length."""
    short, long = rope.short_factor or rope.long_factor, rope.long_factor or rope.short_factor
    assert short is not None  # `check_rope` saw to it
    assert long is not None
    return short, long


def attention_factor(rope: Rope) -> float:
    """What YaRN and LongRoPE multiply cosines and sines by; 1 for the other types."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return float(rope.attention_factor)
    if rope.rope_type == "longrope":
        return _longrope_attention_factor(rope)

    def magnitude(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)


def _longrope_attention_factor(rope: Rope) -> float:
    """The longer the texts than those of training, the larger the scores."""
    if rope.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))
