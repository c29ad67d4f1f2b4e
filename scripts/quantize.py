"""Quantises a model once: `python scripts/quantize.py --model=REFERENCE --quantize=int4 --output=DIR`."""

from pathlib import Path
from typing import Any

import command_line
from absl import flags
from command_line import FLAGS, say

from jllama.errors import JllamaError

flags.DEFINE_string(
    "output", None, "The directory to write; --model loads it. It must not exist, or be empty."
)
command_line.define_model_flags()


def main() -> None:
    """Loads, quantises and writes the model."""
    if not FLAGS.model or not FLAGS.output:
        raise JllamaError("give both --model=REFERENCE and --output=DIR")
    if FLAGS.quantize not in ("int8", "int4", "auto"):
        raise JllamaError(
            "--quantize=none quantises nothing; use int8, int4, or auto for a GGUF's own blocks"
        )
    from jllama import runtime
    from jllama.checkpoint import load_params, read_config
    from jllama.checkpoint.output import check_free
    from jllama.checkpoint.saved import is_saved, save
    from jllama.hub import resolve

    runtime.configure(FLAGS.device)
    check_free(Path(FLAGS.output))
    files = resolve(FLAGS.model, sha256=FLAGS.model_sha256)
    if is_saved(files):
        raise JllamaError(f"{FLAGS.model} is quantised already: quantise the model that it was made of")
    config = read_config(files)
    params = load_params(files, config, FLAGS.dtype, quantize=FLAGS.quantize, pack=False)
    if not is_quantized(params):
        raise JllamaError(f"{FLAGS.model} holds no 8- or 4-bit blocks to keep: give --quantize=int8 or int4")
    save(files, config, params, Path(FLAGS.output), FLAGS.quantize)
    say(f"wrote {FLAGS.output}")


def is_quantized(params: Any) -> bool:
    """Whether any weight is stored in 8 or 4 bits."""
    import jax

    from jllama.layers.quantized import QTensor

    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    return any(isinstance(leaf, QTensor) for leaf in leaves)


if __name__ == "__main__":
    command_line.run(main, __doc__ or "")
