"""What `--quantize=auto` means for a file on this machine."""

from typing import Any

import jax
import jax.numpy as jnp

from jllama import kernels
from jllama.checkpoint.layout import Leaf, layout
from jllama.checkpoint.leaves.gguf_blocks import kind_of, outline
from jllama.checkpoint.reading import open_checkpoint
from jllama.checkpoint.verify import verified
from jllama.config import ModelConfig
from jllama.files.model_files import ModelFiles
from jllama.kernels.target import Target


def automatic_mode(files: ModelFiles, config: ModelConfig, dtype: str, target: Target) -> str:
    """`auto` if a kernel decodes with a GGUF file's 8- and 4-bit blocks as they are stored, else `none`.

    XLA expands blocks anew for each token, which is far slower than to expand them once.

    Args:
      files: where the weights are.
      config: what `read_config` made of them.
      dtype: the run dtype.
      target: where the weights will lie.

    Raises:
      JllamaError: the file is not sound.
    """
    if files.gguf is None:
        return "none"
    checkpoint = verified(open_checkpoint(files), config)

    def shapes(leaf: Leaf) -> Any:
        kind = kind_of(leaf, checkpoint)
        if kind is None:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        return outline(leaf, kind, layout="tiles" if target.platform == "cpu" else "rows")

    params = jax.tree.map(shapes, layout(config))
    return "auto" if kernels.decode_refusal(config, params, dtype, target) is None else "none"
