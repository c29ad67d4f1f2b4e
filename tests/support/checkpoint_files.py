"""Writes checkpoints in every format with code of its own, byte by byte where a test wants lies."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as GgmlType

from jllama.families.tensor_names import from_hf, to_gguf
from tests.support.small_models import BASE

SAFETENSORS_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
KEYS: dict[str, Any] = BASE | dict(vocab_size=64, hidden_size=64, intermediate_size=96, head_dim=32)


def header_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A safetensors header."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        dtype = SAFETENSORS_NAMES[tensor.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return header


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], header: Any = None) -> Path:
    """`header` replaces the true one."""
    text = json.dumps(header_of(tensors) if header is None else header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_directory(
    directory: Path, keys: Mapping[str, Any], tensors: Mapping[str, np.ndarray], dtype: str = "float32"
) -> Path:
    """A model in Hugging Face's layout, in one file."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(keys))
    cast = {
        name: tensor.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for name, tensor in tensors.items()
    }
    write_safetensors(directory / "model.safetensors", cast)
    return directory


def write_shards(directory: Path, keys: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """The same in three files with an index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(keys))
    places = {}
    for n in range(3):
        shard = dict(list(tensors.items())[n::3])
        file = f"model-{n + 1:05}-of-00003.safetensors"
        write_safetensors(directory / file, shard)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """The order of q and k rows in GGUF's architecture llama, as llama.cpp's converter writes them."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def gguf_writer(path: Path, keys: Mapping[str, Any], architecture: str = "llama") -> gguf.GGUFWriter:
    """A writer that has the metadata of a configuration."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(keys["num_hidden_layers"])
    writer.add_context_length(keys["max_position_embeddings"])
    writer.add_embedding_length(keys["hidden_size"])
    writer.add_feed_forward_length(keys["intermediate_size"])
    writer.add_head_count(keys["num_attention_heads"])
    writer.add_head_count_kv(keys["num_key_value_heads"])
    writer.add_key_length(keys["head_dim"])
    writer.add_value_length(keys["head_dim"])
    writer.add_rope_dimension_count(keys["head_dim"])
    writer.add_layer_norm_rms_eps(keys["rms_norm_eps"])
    writer.add_vocab_size(keys["vocab_size"])
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: GgmlType = GgmlType.F32,
    architecture: str = "llama",
) -> Path:
    """Matrices in `kind`, vectors in float32."""
    writer = gguf_writer(path, keys, architecture)
    heads = {"q_proj": keys["num_attention_heads"], "k_proj": keys["num_key_value_heads"]}
    for name, tensor in tensors.items():
        rotary = next((count for part, count in heads.items() if part in name), None)
        if rotary and architecture == "llama":
            tensor = permuted(tensor, rotary)
        stored = kind if tensor.ndim == 2 else GgmlType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(tensor, np.float32), stored)
        writer.add_tensor(to_gguf(str(from_hf(name))), data, raw_dtype=stored)
    finish(writer)
    return path
