"""jllama's own quantised checkpoints: a directory with `config.json`, one safetensors file and the tokenizer.

An array of `Params` is stored under its path (`layers.0.mlp.down_proj`), a quantised leaf as up to five
(`….values`, `….scales`, `….offsets`, `….scale_units`, `….offset_units`) in the layout "rows" of `QTensor`.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jllama.checkpoint.formats.gguf import copy_gguf_fields, read_gguf_header
from jllama.checkpoint.formats.safetensors import read_header
from jllama.checkpoint.formats.saved_check import check_saved, leaf_name
from jllama.checkpoint.formats.saved_parts import read_part, stored_name
from jllama.checkpoint.formats.stored import Reader
from jllama.checkpoint.layout import Leaf, layout
from jllama.checkpoint.leaves.dense import all_finite
from jllama.checkpoint.output import appearing, check_free, copy_tokenizer
from jllama.config import LayerKind, ModelConfig
from jllama.errors import JllamaError
from jllama.families.known import of_architecture, text_keys
from jllama.files.errors import file_errors
from jllama.files.json_files import read_object
from jllama.files.model_files import TOKENIZER_GGUF, ModelFiles
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.model import Params

_ADVICE = "quantise the model again"
METHOD = "jllama"  # config.json: quantization_config.quant_method
WEIGHTS = "model.safetensors"
_TOKENIZER_KEYS = ("bos_token_id", "eos_token_id")  # of config.json: some models state them nowhere else


def save(files: ModelFiles, config: ModelConfig, params: Params, output: Path, mode: str) -> None:
    """Writes a directory that `--model` loads; it appears when it is complete.

    Args:
      files: where the model came from: its tokenizer is copied.
      config: the architecture.
      params: weights, quantised leaves in the layout "rows".
      output: the directory; it must not exist, or be empty.
      mode: how the weights were quantised, for the record.

    Raises:
      JllamaError: `output` exists, or can't be written.
    """
    check_free(output)
    with appearing(output) as directory:
        _copy_tokenizer(files, directory)
        keys = _config_keys(config, _model_type(files), mode) | _tokenizer_keys(files)
        (directory / "config.json").write_text(json.dumps(keys, indent=2) + "\n", "utf-8")
        save_file(_arrays(params), directory / WEIGHTS, metadata={"format": METHOD, "version": "1"})
        # safetensors lets its owner alone read the file.
        shutil.copymode(directory / "config.json", directory / WEIGHTS)


def _model_type(files: ModelFiles) -> str:
    """The model's own; of a model that also sees, that of its text part."""
    if files.gguf is not None:
        return of_architecture(read_gguf_header(files.gguf).fields["general.architecture"]).model_types[0]
    return str(text_keys(read_object(files.config_path))["model_type"])


def _config_keys(config: ModelConfig, model_type: str, mode: str) -> dict[str, Any]:
    quantization = {"quant_method": METHOD, "mode": mode, "version": 1}
    return {
        "model_type": model_type,
        "quantization_config": quantization,
        METHOD: dataclasses.asdict(config),
    }


def _tokenizer_keys(files: ModelFiles) -> dict[str, Any]:
    given = read_object(files.config_path) if files.directory else {}
    return {key: given[key] for key in _TOKENIZER_KEYS if key in given}


def _copy_tokenizer(files: ModelFiles, target: Path) -> None:
    if files.gguf is not None:
        copy_gguf_fields(files.gguf, target / TOKENIZER_GGUF)
        return
    assert files.directory is not None
    copy_tokenizer(files.directory, target)


def _arrays(params: Params) -> dict[str, np.ndarray]:
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {leaf_name(path): np.asarray(leaf) for path, leaf in flat}


def is_saved(files: ModelFiles) -> bool:
    """Whether the files are such a directory."""
    return files.directory is not None and saved_config(files.directory) is not None


def saved_config(directory: Path) -> ModelConfig | None:
    """The configuration of such a directory; None for any other.

    Raises:
      JllamaError: it says that it is one and breaks the format.
    """
    try:
        keys = read_object(directory / "config.json")
        quantization = keys.get("quantization_config") or {}
        if quantization.get("quant_method") != METHOD:
            return None
    except (JllamaError, AttributeError):
        return None
    try:
        fields = dict(keys[METHOD])
        kinds = tuple(_kind(**kind) for kind in fields.pop("layer_kinds", []))
        return ModelConfig(rope=_rope(**fields.pop("rope")), layer_kinds=kinds, **fields)
    except (KeyError, TypeError, ValueError, ArithmeticError, JllamaError) as error:
        raise JllamaError(f"{directory}/config.json is damaged ({error}): {_ADVICE}") from None


def _kind(window: int | None, rope: dict[str, Any] | None) -> LayerKind:
    return LayerKind(window, None if rope is None else _rope(**rope))


def _rope(**fields: Any) -> Rope:
    lists: dict[str, Any] = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Rope(**{**fields, **lists})


def load_saved(
    directory: Path,
    config: ModelConfig,
    dtype: np.dtype,
    place: Callable[[Any, Any], Any],
    each: Callable[[Callable[..., Any]], Params],
) -> Params:
    """The parameters of such a directory.

    Args:
      directory: what `save` wrote.
      config: its configuration.
      dtype: the run dtype of everything that is not quantised.
      place: brings an array or a `QTensor` where it is to lie.
      each: `shards.each_leaf` of where that is.

    Raises:
      JllamaError: a file or tensor is missing, extra, misshapen or not sound.
    """
    path, tree = directory / WEIGHTS, layout(config)
    quantized = check_saved(path, tree)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {leaf_name(at): leaf for at, leaf in flat}
    stored = {tensor.name: tensor for tensor in read_header(path)}
    with file_errors(path, _ADVICE), contextlib.closing(Reader()) as reader:
        reader.open(path)

        def leaf(at: tuple[Any, ...], wanted: Leaf, where: Any) -> Any:
            name = stored_name(at, leaves)
            read = partial(read_part, reader, stored, leaves[name], wanted)
            if name in quantized:
                return place(_quantized(read, name, wanted, quantized[name]), where)
            return place(_dense(read(name), name, dtype), where)

        return each(leaf)


def _dense(array: np.ndarray, name: str, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    if not all_finite(cast):
        raise JllamaError(f"{name} holds numbers that are NaN, infinite or too large for {dtype}: {_ADVICE}")
    return cast


def _quantized(read: Callable[[str], np.ndarray], name: str, wanted: Leaf, kinds: tuple[str, ...]) -> QTensor:
    parts: Any = {"offsets": None} | {kind: read(f"{name}.{kind}") for kind in kinds}
    for kind, part in parts.items():
        if kind != "values" and part is not None and not np.isfinite(part).all():
            raise JllamaError(f"{name}: a scale or offset is NaN or infinite: {_ADVICE}")
    bits = 8 if parts["values"].dtype == np.int8 else 4
    return QTensor(**parts, shape=wanted.shape, bits=bits)
