"""How many parameters a configuration has and how much memory it takes: arithmetic, no arrays."""

import math

import numpy as np

from jllama.checkpoint.layout import parts
from jllama.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def parameter_count(config: ModelConfig) -> int:
    """How many numbers the model is made of; tied embeddings count once."""
    return sum(math.prod(part.shape) for part in parts(config).values())


def parameter_bytes(config: ModelConfig, dtype: str) -> int:
    """Memory of the weights in a run dtype."""
    return parameter_count(config) * DTYPE_BYTES[dtype]


def cache_bytes(config: ModelConfig, *, batch: int, max_len: int, dtype: str) -> int:
    """Memory of a `KVCache` of `max_len` positions for `batch` rows."""
    row = config.num_key_value_heads * config.head_dim
    per_row = 2 * config.num_hidden_layers * row * max_len * DTYPE_BYTES[dtype]
    return batch * (per_row + np.dtype(np.int32).itemsize)
