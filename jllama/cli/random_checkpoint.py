"""Writes a checkpoint of random weights in the shape that a config.json describes."""

import math
import re

from absl import flags

from jllama.cli import ready_made
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.files.paths import expanded

flags.DEFINE_string(
    "config", None, "The config.json to make weights for, or a ready-made one such as tinyllama-1.1b."
)
flags.DEFINE_string("output", None, "The directory to write; it must not exist, or be empty.")
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "float16"], "The stored type.")
flags.DEFINE_integer("seed", 0, "Of the random numbers.", lower_bound=0, short_name="s")
flags.DEFINE_string("shard_size", None, "Split into files of at most this size, such as 2GB or 500MB.")
flags.DEFINE_float("scale", 0.02, "Standard deviation of the weights.", lower_bound=0.0, upper_bound=1e3)
flags.DEFINE_string("tokenizer", None, "Copy the tokenizer files of this directory too.")

PLACES = ("config", "output")
HELP = {"What is written": ("config", "output", "dtype", "seed", "shard_size", "scale", "tokenizer")}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main() -> None:
    """Writes the checkpoint."""
    if not FLAGS.config or not FLAGS.output:
        raise JllamaError("give both --config=config.json and --output=DIR, or both as words")
    if math.isnan(FLAGS.scale):
        raise JllamaError("--scale=nan: give a number from 0 to 1000")
    shard_bytes = size_in_bytes(FLAGS.shard_size) if FLAGS.shard_size else None
    from jllama.checkpoint.output import output_directory
    from jllama.checkpoint.random_weights import write_random_checkpoint

    output = output_directory(FLAGS.output)
    write_random_checkpoint(
        ready_made.shape(FLAGS.config),
        output,
        dtype=FLAGS.dtype,
        seed=FLAGS.seed,
        scale=FLAGS.scale,
        shard_bytes=shard_bytes,
        tokenizer=expanded(FLAGS.tokenizer) if FLAGS.tokenizer else None,
    )
    say(f"wrote {output}")


def size_in_bytes(text: str) -> int:
    """`2GB`, `500MB`, `1000`: decimal units, as Hugging Face's shard sizes.

    Raises:
      JllamaError: no such size.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMG]?)B?", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise JllamaError(f"--shard_size={text[:40]}: give a size such as 2GB or 500MB")
    return size
