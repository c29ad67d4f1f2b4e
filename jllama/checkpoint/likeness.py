"""By which processes that run one model notice that it is not the same one."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np

from jllama import __version__
from jllama.checkpoint.formats.gguf import read_gguf_header
from jllama.checkpoint.formats.safetensors import read_header, tensor_files
from jllama.checkpoint.formats.stored import Reader, Stored
from jllama.config import ModelConfig
from jllama.files.model_files import ModelFiles

SAMPLE = 1024  # bytes of each tensor's beginning, of its middle and of its end


def marks(config: ModelConfig, weights: str, *, dtype: str, storage: str, devices: int) -> dict[str, str]:
    """What must be the same in all processes, by what it is called.

    Args:
      config: the checkpoint's.
      weights: tells them from others: `sampled` of files, the seed of random ones.
      dtype: the run dtype.
      storage: how the leaves are stored, `auto` already decided.
      devices: that hold the model together.
    """
    return {
        "version of jllama or jax": f"{__version__} {jax.__version__}",
        "model": f"{config} {weights}",
        "dtype": dtype,
        "--quantize": storage,
        "--tensor_parallel": str(devices),
    }


def sampled(files: ModelFiles) -> str:
    """A digest of all tensors' names, shapes, types and sizes, and of a little of each one's bytes.

    Raises:
      JllamaError: a file that is not sound or can't be read.
    """
    digest, reader = hashlib.sha256(), Reader()
    try:
        for stored in _stored(files):
            digest.update(f"{stored.name} {stored.shape} {stored.encoding.name} {stored.nbytes}".encode())
            reader.open(stored.path)
            for start in (0, stored.nbytes // 2, max(stored.nbytes - SAMPLE, 0)):
                sample = np.empty(min(SAMPLE, stored.nbytes - start), np.uint8)
                reader.read(stored, start, sample)
                digest.update(sample.data)
    finally:
        reader.close()
    return digest.hexdigest()


def _stored(files: ModelFiles) -> Iterable[Stored]:
    if files.gguf is not None:
        return read_gguf_header(files.gguf).tensors
    assert files.directory is not None
    return [stored for path in tensor_files(files.directory) for stored in read_header(path)]
