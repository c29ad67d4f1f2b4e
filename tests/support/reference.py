"""A Llama in NumPy float64, one row at a time, written from the papers and Hugging Face's semantics.

It reads the content of a `config.json` (with `rope_parameters`) and Hugging Face's tensor names, shares no
code with the package, and prefers the most literal form: loops over heads, rotation as a complex product.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Keys = Mapping[str, Any]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Zhang & Sennrich 2019, equation 4, with the epsilon under the root."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def linear(x: np.ndarray, tensors: Keys, name: str) -> np.ndarray:
    y = x @ np.asarray(tensors[name + ".weight"], np.float64).T
    return y + tensors[name + ".bias"] if name + ".bias" in tensors else y


def activation(name: str, x: np.ndarray) -> np.ndarray:
    if name == "silu":
        return x / (1.0 + np.exp(-x))
    if name == "gelu":
        return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if name == "relu":
        return np.maximum(x, 0.0)
    raise ValueError(name)


def rope_frequencies(rope: Keys, head_dim: int, max_positions: int, length: int) -> np.ndarray:
    """Radians per position of each of the `head_dim / 2` planes, for a text of `length` tokens."""
    theta, kind, factor = rope["rope_theta"], rope.get("rope_type", "default"), rope.get("factor")
    if kind == "dynamic" and length > max_positions:
        theta *= (factor * length / max_positions - (factor - 1)) ** (head_dim / (head_dim - 2))
    planes = np.array([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    if kind == "linear":
        return planes / factor
    if kind == "llama3":
        return np.array([_llama3(rope, frequency) for frequency in planes])
    if kind == "yarn":
        return _yarn(rope, planes, head_dim)
    return planes


def _llama3(rope: Keys, frequency: float) -> float:
    """Meta's `apply_scaling` of Llama 3.1: decided by wavelength."""
    wavelength, trained = 2 * math.pi / frequency, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if wavelength < trained / high:
        return frequency
    if wavelength > trained / low:
        return frequency / rope["factor"]
    smooth = (trained / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


def _yarn(rope: Keys, planes: np.ndarray, head_dim: int) -> np.ndarray:
    """Peng et al. 2023, section 3.2, with the ramp over planes that Hugging Face uses."""
    trained = rope["original_max_position_embeddings"]

    def plane(turns: float) -> float:
        return head_dim / 2 * math.log(trained / (turns * 2 * math.pi)) / math.log(rope["rope_theta"])

    first, last = plane(rope.get("beta_fast", 32)), plane(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last = last + 0.001 if first == last else last
    out = []
    for index, frequency in enumerate(planes):
        interpolated = min(max((index - first) / (last - first), 0.0), 1.0)
        out.append(frequency * (1 - interpolated) + frequency / rope["factor"] * interpolated)
    return np.array(out)


def rope_magnitude(rope: Keys) -> float:
    """YaRN's attention temperature, applied to queries and keys alike."""
    if rope.get("rope_type") != "yarn":
        return 1.0
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return temperature(rope["mscale"]) / temperature(rope["mscale_all_dim"])
    return temperature(1.0)


def rotate(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray, magnitude: float) -> np.ndarray:
    """`[T, H]` turned: elements i and i + H/2 are the real and imaginary part of one number."""
    half = x.shape[-1] // 2
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * np.outer(positions, frequencies)) * magnitude
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, start: int, window: int | None) -> np.ndarray:
    """One head: queries `[T, H]` at positions from `start` on, keys and values `[S, H]` from position 0."""
    out = []
    for offset, query in enumerate(q):
        position = start + offset
        oldest = 0 if window is None else max(0, position - window + 1)
        scores = k[oldest : position + 1] @ query / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out.append(weights @ v[oldest : position + 1] / weights.sum())
    return np.array(out)


def attention(x: np.ndarray, keys: Keys, tensors: Keys, at: str, angles: tuple) -> np.ndarray:
    """Self-attention over one whole text `[T, D]`."""
    heads, groups = keys["num_attention_heads"], keys["num_attention_heads"] // keys["num_key_value_heads"]
    positions = np.arange(len(x))
    q, k, v = (linear(x, tensors, f"{at}{name}_proj") for name in "qkv")
    q = np.split(q, heads, axis=-1)
    k, v = (np.split(part, heads // groups, axis=-1) for part in (k, v))
    k = [rotate(part, positions, *angles) for part in k]
    mixed = [
        attend(
            rotate(q[n], positions, *angles), k[n // groups], v[n // groups], 0, keys.get("sliding_window")
        )
        for n in range(heads)
    ]
    return linear(np.concatenate(mixed, axis=-1), tensors, at + "o_proj")


def mlp(x: np.ndarray, act: str, tensors: Keys, at: str) -> np.ndarray:
    gated = activation(act, linear(x, tensors, at + "gate_proj")) * linear(x, tensors, at + "up_proj")
    return linear(gated, tensors, at + "down_proj")


def model(keys: Keys, tensors: Keys, tokens: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` of one text."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    rope = keys.get("rope_parameters") or {"rope_theta": 10000.0}
    head_dim = keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
    trained, eps = keys.get("max_position_embeddings", 2048), keys.get("rms_norm_eps", 1e-6)
    angles = (rope_frequencies(rope, head_dim, trained, len(tokens)), rope_magnitude(rope))
    x = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(keys["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, tensors[at + "input_layernorm.weight"], eps)
        x = x + attention(normed, keys, tensors, at + "self_attn.", angles)
        normed = rms_norm(x, tensors[at + "post_attention_layernorm.weight"], eps)
        x = x + mlp(normed, keys.get("hidden_act", "silu"), tensors, at + "mlp.")
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return rms_norm(x, tensors["model.norm.weight"], eps) @ head.T
