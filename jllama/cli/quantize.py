"""Quantises a model once and writes it to a directory, which is a model like any other."""

from absl import flags

from jllama.cli import flag_groups, ready_made
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError

flags.DEFINE_string(
    "output", None, "The directory to write; --model loads it. It must not exist, or be empty."
)
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()

PLACES = ("model", "output")
HELP = {"What is written": ("model", "output", "quantize", "dtype", "verbose")}


def main() -> None:
    """Loads, quantises and writes the model."""
    if not FLAGS.model or not FLAGS.output:
        raise JllamaError("give both --model=REFERENCE and --output=DIR")
    if FLAGS.quantize not in ("int8", "int4", "auto"):
        raise JllamaError(
            "--quantize=none quantises nothing; use int8, int4, or auto for a GGUF's own blocks"
        )
    from jllama.checkpoint import load_params, read_config
    from jllama.checkpoint.formats.saved import is_saved, save
    from jllama.checkpoint.output import output_directory
    from jllama.cli.measure import weight_bits
    from jllama.hub.references import resolve
    from jllama.machine import devices

    devices.configure(FLAGS.device)
    output = output_directory(FLAGS.output)
    ready_made.check(FLAGS.model)
    files = resolve(FLAGS.model, sha256=FLAGS.model_sha256)
    if is_saved(files):
        raise JllamaError(f"{FLAGS.model} is quantised already: quantise the model that it was made of")
    config = read_config(files)
    params = load_params(files, config, FLAGS.dtype, quantize=FLAGS.quantize, pack=False)
    if not weight_bits(params):
        raise JllamaError(
            f"{FLAGS.model} holds no blocks of 4 to 8 bits to keep: give --quantize=int8 or int4"
        )
    save(files, config, params, output, FLAGS.quantize)
    say(f"wrote {output}")
