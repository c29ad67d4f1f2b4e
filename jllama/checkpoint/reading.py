"""Model files -> `ModelConfig`, and -> `Params` on a device."""

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jllama.checkpoint.formats.gguf import open_gguf, read_gguf_header
from jllama.checkpoint.formats.safetensors import open_safetensors, tensor_files
from jllama.checkpoint.formats.saved import is_saved, load_saved, saved_config
from jllama.checkpoint.formats.stored import Checkpoint, Reader, Stored
from jllama.checkpoint.leaves.choose import check_cuts, converter_for, placed
from jllama.checkpoint.leaves.dense import CHUNK
from jllama.checkpoint.shards import each_leaf, numbers
from jllama.checkpoint.verify import verified
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.known import family_of, tie_left_open
from jllama.families.tensor_names import EMBED, GGUF_ROPE_FACTORS, HEAD
from jllama.files.json_files import read_object
from jllama.files.model_files import ModelFiles
from jllama.machine.devices import DTYPES
from jllama.machine.progress import ByteBar
from jllama.model import Params


def read_config(files: ModelFiles) -> ModelConfig:
    """The architecture that `config.json` or the GGUF metadata states.

    Raises:
      JllamaError: unreadable, or not supported.
    """
    if files.directory is not None:
        return saved_config(files.directory) or _of_directory(files, files.directory)
    assert files.gguf is not None
    header = read_gguf_header(files.gguf)
    tensors = {stored.name: stored for stored in header.tensors}
    factors = {name: _vector(tensors[name]) for name in GGUF_ROPE_FACTORS if name in tensors}
    return ModelConfig.from_gguf(header.fields, tensors, factors)


def _of_directory(files: ModelFiles, directory: Path) -> ModelConfig:
    """As `config.json` states it, but for a tie that it leaves to the tensors."""
    config = ModelConfig.from_hf(files.config_path)
    if not tie_left_open(read_object(files.config_path)) or not any(directory.glob("*.safetensors*")):
        return config
    return dataclasses.replace(config, tie_word_embeddings=HEAD not in open_checkpoint(files).tensors)


def _vector(stored: Stored) -> tuple[float, ...]:
    if not stored.encoding.readable or stored.nbytes > CHUNK:
        raise JllamaError(f"{stored.path}: {stored.name} makes no sense; download it again")
    raw = np.empty((1, stored.nbytes), np.uint8)
    with contextlib.closing(Reader()) as reader:
        reader.open(stored.path)
        reader.read(stored, 0, raw)
    return tuple(stored.encoding.numbers(raw).ravel().tolist())


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """What the files' headers say about their tensors.

    Raises:
      JllamaError: a file that is missing or not sound.
    """
    if files.gguf is not None:
        return open_gguf(files.gguf)
    assert files.directory is not None
    tensor_files(files.directory)  # what holds no model is named, whatever its config.json says
    return open_safetensors(files.directory, family_of(files.config_path))


def load_params(
    files: ModelFiles,
    config: ModelConfig,
    dtype: Any,
    *,
    placement: Any = None,
    progress: bool = True,
    quantize: str = "none",
    pack: bool = True,
    mesh: Mesh | None = None,
) -> Params:
    """Streams the weights to where they are to lie, converted once to the run dtype.

    At its peak this takes the parameters in the run dtype and tens of megabytes; on the host of an
    accelerator two leaves and tens of megabytes.

    Args:
      files: where the weights are.
      config: what `read_config` made of them.
      dtype: float32, bfloat16 or float16.
      placement: a `jax.Device` or `Sharding`, or `Params` (any of its branches may be one leaf) of them;
        JAX's default device where None.
      progress: show a bar on stderr when it takes over a second.
      quantize: which weights stay or become `QTensor`s; see `leaves.choose.converter_for`.
      pack: bring quantised weights into the layout that the platform's kernels read.
      mesh: devices that hold the model together (`jllama.sharding`): this process reads what its own of them
        take, and `placement` says nothing.

    Raises:
      JllamaError: tensors missing, extra, misshapen, of an unknown type or not finite; a file that can't be
        read; no memory for the weights.
    """
    run_dtype, place = _run_dtype(dtype), partial(placed, pack=pack, alone=mesh is None)
    each = partial(each_leaf, config, placement, mesh)
    if is_saved(files):
        assert files.directory is not None
        return load_saved(files.directory, config, run_dtype, place, each)
    headers = open_checkpoint(files)
    checkpoint = verified(headers, config)
    check_cuts(quantize, config, checkpoint, mesh)
    total = numbers(config, mesh) * run_dtype.itemsize
    with contextlib.closing(Reader()) as reader, ByteBar("loading weights", total, enabled=progress) as bar:
        for stored in headers.tensors.values():
            reader.open(stored.path)
        _check_tied(headers, config, reader)
        converter, open_ends = converter_for(quantize, checkpoint, reader, run_dtype, bar, place)
        with contextlib.ExitStack() as stack, _memory_errors(total, run_dtype):
            for end in open_ends:
                stack.callback(end.close)
            return each(lambda path, leaf, where: converter(leaf, where))


def _run_dtype(dtype: Any) -> np.dtype:
    try:
        run_dtype = np.dtype(jnp.dtype(dtype))
    except TypeError:
        run_dtype = np.dtype(bool)
    if run_dtype.name not in DTYPES:
        raise JllamaError(f"dtype {dtype!r} is not supported; use {', '.join(DTYPES)}")
    return run_dtype


def _check_tied(headers: Checkpoint, config: ModelConfig, reader: Reader) -> None:
    """A file that holds both ends of a tie must hold the same numbers twice."""
    embed, head = headers.tensors.get(EMBED), headers.tensors.get(HEAD)
    if not config.tie_word_embeddings or embed is None or head is None:
        return
    same = embed.encoding == head.encoding and embed.shape == head.shape
    for start in range(0, embed.nbytes if same else 0, CHUNK):
        pair = np.empty((2, min(CHUNK, embed.nbytes - start)), np.uint8)
        reader.read(embed, start, pair[0])
        reader.read(head, start, pair[1])
        same = same and np.array_equal(pair[0], pair[1])
    if not same:
        raise JllamaError(
            f"{headers.description}: tie_word_embeddings is true, but {head.name} differs from {embed.name}; "
            "set it to false in config.json"
        )


@contextlib.contextmanager
def _memory_errors(total: int, dtype: np.dtype):
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            needed = f"the weights need {total / 2**20:,.0f} MiB in {dtype.name}"
            raise JllamaError(f"out of memory: {needed}; use a narrower dtype or a smaller model") from None
        raise
