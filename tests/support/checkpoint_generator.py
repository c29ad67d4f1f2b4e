"""Deterministic random checkpoints: NumPy alone, so that the goldens' maker and the tests build the same."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def tensor_shapes(keys: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names and shapes for the content of a `config.json`."""
    D, F, V = keys["hidden_size"], keys["intermediate_size"], keys["vocab_size"]
    N, K = keys["num_attention_heads"], keys["num_key_value_heads"]
    H = keys.get("head_dim") or D // N
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not keys.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (V, D)
    for layer in range(keys["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": (D,), at + "post_attention_layernorm.weight": (D,)}
        attention = {"q_proj": (N * H, D), "k_proj": (K * H, D), "v_proj": (K * H, D), "o_proj": (D, N * H)}
        for name, shape in attention.items():
            shapes |= _projection(at + "self_attn." + name, shape, keys.get("attention_bias"))
        for name, shape in {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}.items():
            shapes |= _projection(at + "mlp." + name, shape, keys.get("mlp_bias"))
    return shapes


def _projection(name: str, shape: tuple[int, ...], bias: bool | None) -> dict[str, tuple[int, ...]]:
    return {name + ".weight": shape} | ({name + ".bias": shape[:1]} if bias else {})


def random_tensors(keys: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 tensors by name: large enough that attention is far from uniform, so that mistakes show."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(keys).items():
        # The raw stream of PCG64 is promised to stay; the methods of Generator are not.
        uniform = generator.bit_generator.random_raw(math.prod(shape)) / 2.0**63 - 1.0
        tensors[name] = _scaled(name, uniform.reshape(shape)).astype(np.float32)
    return tensors


def named_tensors(shapes: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 tensors for names and shapes; each follows from its own name, whatever others there are."""
    return {name: _named(name, tuple(shape), seed) for name, shape in shapes.items()}


def _named(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    bits = np.random.default_rng([seed, zlib.crc32(name.encode())]).bit_generator
    uniform = bits.random_raw(math.prod(shape)) / 2.0**63 - 1.0
    return _scaled(name, uniform.reshape(shape)).astype(np.float32)


def _scaled(name: str, uniform: np.ndarray) -> np.ndarray:
    if name.endswith("norm.weight"):
        return 1.0 + 0.5 * uniform
    if name.endswith(".bias"):
        return 0.5 * uniform
    if name.endswith("embed_tokens.weight"):
        return uniform
    gain = 3.0 if "q_proj" in name or "k_proj" in name else 1.7
    return uniform * gain / math.sqrt(uniform.shape[-1])


def random_tokens(vocab_size: int, count: int, seed: int = 1) -> np.ndarray:
    """int64 `[count]`."""
    return (np.random.default_rng(seed).bit_generator.random_raw(count) % vocab_size).astype(np.int64)
