"""Measures a model's speed, against what the machine can do."""

import json
import statistics
import time
from typing import Any

from absl import flags

from jllama.cli import command_line, flag_groups, ready_made
from jllama.cli.bench_tests import parse_tests
from jllama.cli.command_line import FLAGS, say
from jllama.errors import JllamaError
from jllama.files.paths import expanded
from jllama.settings import CHOICES, GenerationSettings, build_settings

flags.DEFINE_string(
    "random_config",
    None,
    "Instead of --model: random weights for a config.json, or a ready-made one (tinyllama-1.1b).",
)
flags.DEFINE_list("tests", ["pp512", "pp2048", "tg128", "tg128@d1024"], "What to measure.")
flags.DEFINE_list("batch_sizes", ["1"], "Rows of the generation tests.")
flags.DEFINE_integer("repetitions", 5, "Of each test, after a warm-up.", lower_bound=1, upper_bound=1000)
flags.DEFINE_integer(
    "seed", 0, "Of random weights and prompts.", lower_bound=0, upper_bound=2**63 - 1, short_name="s"
)
flags.DEFINE_bool("json", False, "Print one JSON object.")
flags.DEFINE_bool("markdown", False, "Print a Markdown table.")
flags.DEFINE_string("profile", None, "Write a profiler trace of one more repetition of each test here.")
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()
flag_groups.define_choice_flags()

PLACES = ("model",)
HELP = {
    "What runs": ("model", "random_config", "dtype", "device", "quantize"),
    "What is measured": ("tests", "batch_sizes", "repetitions", "temperature", "top_p"),
    "What is shown": ("json", "markdown", "profile"),
}


def main() -> None:
    """Loads the model, takes the ceilings, runs the tests and prints a table."""
    batches = [command_line.positive(text, "--batch_sizes") for text in FLAGS.batch_sizes]
    if not FLAGS.tests or not batches:
        raise JllamaError("nothing to measure: give --tests=tg128 and --batch_sizes=1, for instance")
    tests = parse_tests(FLAGS.tests, batches, sampling())
    if FLAGS.json and FLAGS.markdown:
        raise JllamaError("give --json or --markdown, not both")
    if FLAGS.profile:
        expanded(FLAGS.profile).mkdir(parents=True, exist_ok=True)  # fails now, not after the measurements
    compiled = command_line.count_compile_seconds()
    name, config, params = load()
    import jax

    from jllama.cli import measure

    measure.check_memory(config, FLAGS.dtype, tests)
    limits = measure.ceilings(FLAGS.dtype, jax.devices()[0].platform)
    rows = []
    for test in tests:
        say(f"{test.name}, batch {test.batch} …")
        rows.append(measure.run_test(config, params, test, FLAGS.repetitions, FLAGS.seed))
    first = measure.first_token_seconds(config, params, min(512, config.context_length - 2), FLAGS.seed)
    if FLAGS.profile:
        profile(config, params, tests)
    report = {
        **environment(name),
        "weight_bits": measure.weight_bits(params),
        "read_gb_per_second": limits.read_bytes_per_second / 1e9,
        "matrix_tflops": limits.matrix_flops_per_second / 1e12,
        "compile_seconds": sum(compiled),
        "first_token_seconds": first,
        "peak_memory_mib": measure.peak_memory_bytes() / 2**20,
        "tests": [with_shares(row, limits, rows) for row in rows],
    }
    print(json.dumps(report, indent=1) if FLAGS.json else as_table(report, FLAGS.markdown))


def sampling() -> dict[str, float]:
    """The sampling flags that change anything.

    Raises:
      JllamaError: a value is out of range.
    """
    settings, neutral = build_settings(**{name: FLAGS[name].value for name in CHOICES}), GenerationSettings()
    given = {name: getattr(settings, name) for name in CHOICES}
    return {name: value for name, value in given.items() if value != getattr(neutral, name)}


def load() -> tuple[str, Any, Any]:
    """The model's name, configuration and weights: those of `--model`, or random ones."""
    if bool(FLAGS.model) == bool(FLAGS.random_config):
        raise JllamaError("give --model=REFERENCE or --random_config=config.json, one of them")
    if FLAGS.model:
        model = command_line.load_model()
        return model.name, model.config, model.params
    from jllama.config import ModelConfig
    from jllama.machine import devices

    devices.configure(FLAGS.device)
    path = ready_made.shape(FLAGS.random_config)
    config = ModelConfig.from_hf(path)
    return f"random {path.stem}", config, random_weights(config)


def random_weights(config: Any) -> Any:
    """Random weights, quantised as `load` would quantise a checkpoint's."""
    import jax

    from jllama.checkpoint.layout import layout
    from jllama.checkpoint.leaves.choose import placed, scheme_for
    from jllama.checkpoint.random_params import random_params
    from jllama.layers.quantization import SCHEMES, quantize

    params = random_params(config, FLAGS.dtype, seed=FLAGS.seed)
    if FLAGS.quantize not in SCHEMES:
        return params

    def shrink(leaf: Any, array: Any) -> Any:
        scheme = scheme_for(leaf, FLAGS.quantize)
        return array if scheme is None else placed(quantize(array, scheme))

    return jax.tree.map(shrink, layout(config), params)


def profile(config: Any, params: Any, tests: list[Any]) -> None:
    """A trace of each test; its phases carry the names of the model's parts."""
    import jax

    from jllama.cli import measure

    with jax.profiler.trace(str(expanded(FLAGS.profile))):
        for test in tests:
            measure.run_test(config, params, test, 1, FLAGS.seed)


def environment(name: str) -> dict[str, Any]:
    """What a figure means nothing without."""
    import jax

    from jllama import __version__
    from jllama.machine.devices import describe_device

    return {
        "model": name,
        "dtype": FLAGS.dtype,
        "quantize": FLAGS.quantize,
        "device": describe_device(),
        "jllama": __version__,
        "jax": jax.__version__,
        "seed": FLAGS.seed,
        "repetitions": FLAGS.repetitions,
        "date": time.strftime("%Y-%m-%d"),
    }


def with_shares(row: dict[str, Any], limits: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds what part of the ceiling measured in this run a test reached, and of the greedy test's rate."""
    if "flops_per_second" in row:
        return row | {"matrix_share": row["flops_per_second"] / limits.matrix_flops_per_second}
    row = row | {"read_share": row["bytes_per_second"] / limits.read_bytes_per_second}
    if not row["sampling"]:
        return row
    same = (other for other in rows if (other["test"], other["batch"]) == (row["test"], row["batch"]))
    return row | {"of_greedy": row["tokens_per_second"] / next(same)["tokens_per_second"]}


def as_table(report: dict[str, Any], markdown: bool) -> str:
    """A line about the run, a row a test."""
    head = ["test", "batch", "tok/s", "±", "GB/s", "of read", "TFLOP/s", "of matrix", "ms"]
    head += ["tokens", "of greedy"] if any(row["sampling"] for row in report["tests"]) else []
    rows = [head, *(cells(row)[: len(head)] for row in report["tests"])]
    if markdown:
        rows.insert(1, ["---"] * len(head))
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        body = "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return f"{about(report)}\n\n{body}"


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table; what a test does not measure stays empty."""

    def show(key: str, scale: float, form: str) -> str:
        return form.format(row[key] * scale) if key in row else ""

    return [
        row["test"],
        str(row["batch"]),
        f"{row['tokens_per_second']:,.1f}",
        f"{row['spread']:.1%}",
        show("bytes_per_second", 1e-9, "{:,.1f}"),
        show("read_share", 1, "{:.1%}"),
        show("flops_per_second", 1e-12, "{:,.2f}"),
        show("matrix_share", 1, "{:.1%}"),
        f"{statistics.median(row['seconds']) * 1e3:,.2f}",
        row["choice"],
        show("of_greedy", 1, "{:.1%}"),
    ]


def about(report: dict[str, Any]) -> str:
    """Everything that holds for the whole run."""
    weights = next(
        (row["weight_bytes_per_step"] for row in report["tests"] if "weight_bytes_per_step" in row), 0
    )
    parts = [
        f"{report['model']} · {report['dtype']} · {weights_of(report)} · {report['device']}",
        f"jllama {report['jllama']} · jax {report['jax']}",
        f"seed {report['seed']} · median of {report['repetitions']} · {report['date']}\nceilings:",
        f"reads {report['read_gb_per_second']:,.1f} GB/s",
        f"products {report['matrix_tflops']:,.2f} TFLOP/s",
        f"weights {weights / 1e9:.3f} GB a step · compiled in {report['compile_seconds']:.1f} s",
        f"first token of 512 in {report['first_token_seconds'] * 1e3:,.1f} ms",
        f"peak memory {report['peak_memory_mib']:,.0f} MiB",
    ]
    return " · ".join(parts).replace("ceilings: ·", "ceilings:")


def weights_of(report: dict[str, Any]) -> str:
    """How the weights were stored, and what asked for it."""
    bits = " and ".join(map(str, report["weight_bits"]))
    return f"weights of {bits} bit ({report['quantize']})" if bits else "weights not quantised"
