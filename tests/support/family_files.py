"""Files of the families' small models: as transformers saves them, as llama.cpp's converter writes them."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jllama.families.family import Family
from jllama.families.known import of_architecture, of_model_type
from jllama.families.tensor_names import LONG_FACTORS, SHORT_FACTORS, from_hf, to_gguf
from tests.support.checkpoint_generator import named_tensors

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = json.loads((GOLDENS / "families.json").read_text())
CONVERTED = json.loads((GOLDENS / "families_gguf.json").read_text())


def write_hf(name: str, directory: Path, config: str = "config") -> Path:
    """A directory as transformers saves it, with the configuration of version 5 or the `older` one."""
    save_file(named_tensors(MODELS[name]["shapes"]), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(MODELS[name][config]))
    return directory


def gguf_tensors(name: str) -> dict[str, np.ndarray]:
    """What the converter makes of a model: names, permuted rows, and Gemma's norms with their 1."""
    keys, family = MODELS[name]["config"], of_architecture(_architecture(name))
    named = of_model_type(keys["model_type"])
    tensors = {}
    for theirs, tensor in named_tensors(MODELS[name]["shapes"]).items():
        ours = str(from_hf(theirs, named))
        tensors[to_gguf(ours, family)] = _converted(ours, tensor, keys, family)
    rope = keys.get("rope_parameters") or {}
    if family.architectures == ("phi3",) and "long_factor" in rope:
        tensors[LONG_FACTORS] = np.asarray(rope["long_factor"], np.float32)
        tensors[SHORT_FACTORS] = np.asarray(rope["short_factor"], np.float32)
    return tensors


def _architecture(name: str) -> str:
    return CONVERTED[name]["fields"]["general.architecture"]


def _converted(ours: str, tensor: np.ndarray, keys: dict, family: Family) -> np.ndarray:
    if ours.endswith("norm.weight"):
        return tensor + np.float32(family.fields.get("norm_offset", 0.0))
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    projection = ours.split(".")[-2]
    if not family.rotary_interleaved or projection not in heads:
        return tensor
    count = keys[heads[projection]]
    pairs = tensor.reshape(count, 2, math.prod(tensor.shape[:1]) // count // 2, *tensor.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)


def write_gguf(name: str, path: Path) -> Path:
    """The file that the converter would write, but for the tokenizer."""
    from gguf import GGUFWriter

    fields = CONVERTED[name]["fields"]
    writer = GGUFWriter(path, _architecture(name))
    for key, value in fields.items():
        if key not in ("general.architecture", "general.type"):
            _add(writer, key, value)
    if f"{_architecture(name)}.vocab_size" not in fields:
        writer.add_token_list([f"w{index}" for index in range(MODELS[name]["config"]["vocab_size"])])
    for tensor_name, tensor in gguf_tensors(name).items():
        writer.add_tensor(tensor_name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, key: str, value) -> None:
    kinds = {bool: writer.add_bool, str: writer.add_string, float: writer.add_float32, list: writer.add_array}
    kinds.get(type(value), writer.add_uint32)(key, value)
