"""What `--quantize=auto` means for a file on this machine, and what it takes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jllama import kernels, sharding
from jllama.checkpoint.formats.stored import Checkpoint
from jllama.checkpoint.layout import Leaf
from jllama.checkpoint.layout import layout as leaves
from jllama.checkpoint.leaves.block_types import bits_in_tiles
from jllama.checkpoint.leaves.choose import cut_blocks
from jllama.checkpoint.leaves.gguf_blocks import form_of, outline, types_of
from jllama.checkpoint.reading import open_checkpoint
from jllama.checkpoint.shards import shard_layout, split_layout
from jllama.checkpoint.verify import verified
from jllama.config import ModelConfig
from jllama.files.model_files import ModelFiles
from jllama.kernels.target import Target
from jllama.model import Params


def automatic_mode(
    files: ModelFiles, config: ModelConfig, dtype: str, target: Target, *, waits: bool = True
) -> str:
    """`auto` if a kernel decodes with a GGUF file's blocks as they are stored, else `none`.

    XLA expands blocks anew for each token, which is far slower than to expand them once.

    Args:
      files: where the weights are.
      config: what `read_config` made of them.
      dtype: the run dtype.
      target: where the weights will lie.
      waits: False: takes kernels that are being compiled for granted; `kernels.failed` tells.

    Raises:
      JllamaError: the file is not sound.
    """
    if files.gguf is None:
        return "none"
    layout = target.layout if target.kernels else "rows"  # without kernels none is asked what it looks up
    params = kept_outline(files, config, dtype, layout=layout, devices=target.devices)
    if target.mesh is not None:
        config = sharding.widened(config, target.devices)
    refusal = kernels.decode_refusal(config, params, dtype, target, waits=waits)
    return "auto" if refusal is None else "none"


def kept_outline(
    files: ModelFiles, config: ModelConfig, dtype: str, *, layout: str = "rows", devices: int = 1
) -> Params:
    """The parameters of a GGUF file as `auto` loads them, without their numbers.

    Args:
      layout: of the `QTensor`s that have one for kernels.
      devices: that hold the model together.

    Raises:
      JllamaError: the file is not sound.
    """
    tree = leaves(config) if devices == 1 else split_layout(config, devices)
    return _outlined(verified(open_checkpoint(files), config), dtype, layout, tree)


def _outlined(checkpoint: Checkpoint, dtype: str, layout: str, tree: Any) -> Any:
    """What becomes of each `Leaf` of a tree."""

    def shapes(leaf: Leaf) -> Any:
        form = form_of(leaf, checkpoint)
        if form is None:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        if layout != "tiles":
            return outline(leaf, form, layout)
        kinds = types_of(leaf, checkpoint)
        levels = kinds == {"IQ4_NL"} and kernels.cpu.looks_up()
        form = dataclasses.replace(form, bits=bits_in_tiles(kinds, levels))
        return outline(leaf, form, layout, levels)

    return jax.tree.map(shapes, tree)


def kept_bytes(
    files: ModelFiles, config: ModelConfig, dtype: str, layout: str = "rows", devices: int = 1
) -> int:
    """Memory that the weights of a GGUF file take, as `auto` loads them, of each of the devices that hold
    them; see `kept_outline`. Tiles' last rows are not counted where they pad.

    Raises:
      JllamaError: the file is not sound; its sizes or blocks can't be cut for so many devices.
    """
    checkpoint = verified(open_checkpoint(files), config)
    if devices > 1:
        sharding.check(config, devices, cut_blocks("auto", config, checkpoint))
    tree = leaves(config) if devices == 1 else shard_layout(config, devices, 0)
    arrays = jax.tree.leaves(_outlined(checkpoint, dtype, layout, tree))
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
