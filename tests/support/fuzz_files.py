"""Damaged checkpoints: `config.json`, safetensors, indexes, GGUF files and parts, quantised directories.

Whatever is accepted must also run: the first forward pass gives finite logits, or NaN, which is reported.
"""

import functools
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .fuzz_damage import damaged_bytes, damaged_json
from .fuzz_gguf import damaged_gguf, split_gguf, tiny_gguf

_ROPES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 16},
]
_KEYS = dict(
    rope_theta=1e4, sliding_window=7, layer_types=["full_attention"], hidden_act="gelu", model_type="mistral"
)
_KEYS |= dict(
    original_max_position_embeddings=16, partial_rotary_factor=1.0, quantization_config={"quant_method": "x"}
)


@functools.cache
def _model(quantize: str = "none", shards: bool = False) -> dict[str, bytes]:
    """The files of a tiny sound model."""
    from tests.support.checkpoint_files import write_shards
    from tests.support.checkpoint_generator import random_tensors
    from tests.support.tiny_checkpoint import KEYS, write_tiny_model

    keys = dict(num_hidden_layers=1, intermediate_size=64)
    with tempfile.TemporaryDirectory() as place:
        directory = write_tiny_model(Path(place) / "m", **keys)
        if shards:
            (directory / "model.safetensors").unlink()
            write_shards(directory, KEYS | keys, random_tensors(KEYS | keys))
        if quantize != "none":
            directory = _quantized(directory, quantize)
        return {file.name: file.read_bytes() for file in directory.iterdir()}


def _quantized(directory: Path, mode: str) -> Path:
    from jllama.checkpoint import load_params, read_config
    from jllama.checkpoint.formats.saved import save
    from jllama.hub.references import resolve

    files = resolve(str(directory))
    config = read_config(files)
    params = load_params(files, config, "float32", quantize=mode, pack=False)
    save(files, config, params, directory.with_name(mode), mode)
    return directory.with_name(mode)


def _written(directory: Path, files: dict[str, bytes], **changed: bytes) -> Path:
    for name, content in (files | {name.replace("__", "."): data for name, data in changed.items()}).items():
        (directory / name).write_bytes(content)
    return directory


def _run(path: Path, dtype: str = "float32", quantize: str = "auto") -> None:
    """Loads and computes logits of three tokens; raises AssertionError where one is infinite unnoticed."""
    import numpy as np

    import jllama
    from jllama.layers.sampling import largest_and_sum

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = jllama.load(str(path), dtype=dtype, quantize=quantize)
        cache = jllama.KVCache.empty(model.config, batch=1, max_len=8, dtype=dtype)
        tokens = np.array([[1, 2, 3]], np.int32) % model.config.vocab_size
        logits, _ = _forward()(model.config, model.params, tokens, cache, n_valid=np.array([3], np.int32))
    _, total = largest_and_sum(logits[:, 0])
    noticed = not np.isfinite(total).all()  # the engine ends such a row with an error
    assert noticed or np.isfinite(np.asarray(logits)).all(), "logits are not finite, which no check reports"


@functools.cache
def _forward() -> Callable[..., Any]:
    import jax

    from jllama import kernels
    from jllama.kernels.target import Target

    return jax.jit(functools.partial(kernels.forward, target=Target("cpu")), static_argnums=0)


def _config(rng: random.Random, directory: Path) -> None:
    files = _model()
    keys = json.loads(files["config.json"])
    keys["rope_parameters"] = rng.choice([keys["rope_parameters"], *_ROPES])
    keys = damaged_json(rng, keys, _KEYS)
    _run(_written(directory, files, config__json=json.dumps(keys).encode()))


def _config_bytes(rng: random.Random, directory: Path) -> None:
    files = _model()
    _run(_written(directory, files, config__json=damaged_bytes(rng, files["config.json"], 10**6)))


def _header_changed(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(damaged_json(rng, json.loads(data[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _safetensors_bytes(rng: random.Random, directory: Path) -> None:
    files = _model()
    data = files["model.safetensors"]
    head = 8 + int.from_bytes(data[:8], "little")
    _run(_written(directory, files, model__safetensors=damaged_bytes(rng, data, head)))


def _safetensors_header(rng: random.Random, directory: Path) -> None:
    files = _model()
    _run(_written(directory, files, model__safetensors=_header_changed(rng, files["model.safetensors"])))


def _index(rng: random.Random, directory: Path) -> None:
    files = dict(_model(shards=True))
    index, shard = "model.safetensors.index.json", f"model-0000{rng.randint(1, 3)}-of-00003.safetensors"
    if rng.random() < 0.5:
        files[index] = json.dumps(damaged_json(rng, json.loads(files[index]))).encode()
    elif rng.random() < 0.5:
        files[shard] = _header_changed(rng, files[shard])
    else:
        files[index] = damaged_bytes(rng, files[index], 10**6)
    _run(_written(directory, files))


def _quantized_config(rng: random.Random, directory: Path) -> None:
    files = _model(rng.choice(("int8", "int4")))
    keys = json.loads(files["config.json"])
    keys["jllama"]["rope"] |= rng.choice([{}, *_ROPES])
    place = rng.choice((keys, keys["jllama"], keys["jllama"]["rope"]))
    changed = damaged_json(rng, place)
    place.clear()
    place.update(changed)
    _run(_written(directory, files, config__json=json.dumps(keys).encode()))


def _quantized_weights(rng: random.Random, directory: Path) -> None:
    files = _model(rng.choice(("int8", "int4")))
    data = files["model.safetensors"]
    head = 8 + int.from_bytes(data[:8], "little")
    changed = _header_changed(rng, data) if rng.random() < 0.5 else damaged_bytes(rng, data, head)
    _run(_written(directory, files, model__safetensors=changed))


def _sizes(rng: random.Random, directory: Path) -> None:
    """No damage at all: a sound model of odd sizes, quantised or not."""
    from tests.support.checkpoint_files import write_directory
    from tests.support.checkpoint_generator import random_tensors
    from tests.support.tiny_checkpoint import KEYS

    heads = rng.choice((1, 2, 3))
    keys = KEYS | dict(num_hidden_layers=1, num_key_value_heads=heads)
    keys |= dict(num_attention_heads=heads * rng.choice((1, 3)), head_dim=rng.choice((2, 6, 8, 16, 34)))
    keys |= dict(hidden_size=rng.choice((1, 2, 7, 32, 33, 64)))
    keys |= dict(intermediate_size=rng.choice((1, 5, 32, 48, 96)), tie_word_embeddings=rng.random() < 0.5)
    keys |= dict.fromkeys(("attention_bias", "mlp_bias"), rng.random() < 0.3)
    path = write_directory(_written(directory, _model()), keys, random_tensors(keys))
    _run(path, rng.choice(("float32", "bfloat16", "float16")), rng.choice(("none", "int8", "int8", "int4")))


def _gguf_bytes(rng: random.Random, directory: Path) -> None:
    data, head = tiny_gguf()
    (directory / "m.gguf").write_bytes(damaged_bytes(rng, data, head))
    _run(directory / "m.gguf")


def _gguf_fields(rng: random.Random, directory: Path) -> None:
    (directory / "m.gguf").write_bytes(damaged_gguf(rng))
    _run(directory / "m.gguf")


def _gguf_parts(rng: random.Random, directory: Path) -> None:
    """Parts exchanged, missing, doubled, of other names, or with damaged bytes."""
    parts = dict(split_gguf())
    first, second = rng.sample(sorted(parts), 2)
    action = rng.randrange(5)
    if action == 0:
        parts[first], parts[second] = parts[second], parts[first]
    elif action == 1:
        del parts[first]
    elif action == 2:
        parts[first] = parts[second]
    elif action == 3:
        parts[first.replace("-of-0000", f"-of-0000{rng.randint(0, 2)}")] = parts.pop(first)
    else:
        parts[first] = damaged_bytes(rng, parts[first], 2000)
    _run(_written(directory, parts) / rng.choice(["", *sorted(parts)]))


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "config": _config,
    "config_bytes": _config_bytes,
    "safetensors_header": _safetensors_header,
    "safetensors_bytes": _safetensors_bytes,
    "index": _index,
    "gguf_fields": _gguf_fields,
    "gguf_bytes": _gguf_bytes,
    "gguf_parts": _gguf_parts,
    "quantized_config": _quantized_config,
    "quantized_weights": _quantized_weights,
    "sizes": _sizes,
}
