"""Measures a model's speed, against what the machine can do.

`jllama bench serve` measures a server instead.
"""

import json
import time
from typing import Any

from absl import flags

from jllama.cli import command_line, flag_groups, parallel, ready_made, sweep, sweep_picture
from jllama.cli.bench_report import as_table, with_shares
from jllama.cli.bench_tests import parse_tests
from jllama.cli.command_line import FLAGS, say
from jllama.cli.numbers import positive
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
flags.DEFINE_string(
    "sweep", None, "Measure a whole grid into this JSON file and draw it beside (.png); goes on with a file."
)
flags.DEFINE_list(
    "storages", None, "Values of --quantize that a sweep measures. Default: that of --quantize."
)
flags.DEFINE_string("profile", None, "Write a profiler trace of one more repetition of each test here.")
flag_groups.define_model_flags()
flag_groups.define_quantize_flag()
flag_groups.define_parallel_flags()
flag_groups.define_choice_flags()

PLACES = ("model",)
HELP = {
    "What runs": ("model", "random_config", "dtype", "device", "quantize", "tensor_parallel"),
    "What is measured": ("tests", "batch_sizes", "repetitions", "temperature", "top_p"),
    "What is shown": ("json", "markdown", "profile", "sweep", "storages"),
}


def main() -> None:
    """Loads the model, takes the ceilings, runs the tests and prints a table."""
    if FLAGS.sweep is not None:
        return sweep_all()
    batches = [positive(text, "--batch_sizes") for text in FLAGS.batch_sizes]
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
        rows.append(run_test(config, params, test, FLAGS.repetitions))
    first = measure.first_token_seconds(config, params, min(512, config.context_length - 2), FLAGS.seed)
    if FLAGS.profile:
        profile(config, params, tests)
    report = {
        **environment(name, params),
        "weight_bits": measure.weight_bits(params),
        "read_gb_per_second": limits.read_bytes_per_second / 1e9,
        "matrix_tflops": limits.matrix_flops_per_second / 1e12,
        "compile_seconds": sum(compiled),
        "first_token_seconds": first,
        "peak_memory_mib": measure.peak_memory_bytes() / 2**20,
        "tests": [with_shares(row, limits, rows) for row in rows],
    }
    as_json = json.dumps(report, indent=1, ensure_ascii=False)
    print(as_json if FLAGS.json else as_table(report, FLAGS.markdown))


def sweep_all() -> None:
    """Measures what `--sweep`'s file does not hold yet, point by point, and draws what it holds.

    Raises:
      JllamaError: a flag means nothing in a sweep, the file holds something else, or matplotlib is missing.
    """
    for name in ("json", "markdown", "profile"):
        if FLAGS[name].value:
            raise JllamaError(f"--{name} goes with a table, not with --sweep: leave one out")
    sweep_picture.check()
    path = expanded(FLAGS.sweep)
    record, points = sweep.Record(path), sweep_points()
    for storage, rest in sweep.by_storage(points, record.keys):
        sweep_storage(record, storage, rest)
    picture = path.with_suffix(".png")
    sweep_picture.draw(picture, record.run, record.points)
    say(f"{len(record.points)} points in {path}, drawn in {picture}")


def sweep_points() -> list[sweep.Point]:
    """The points that the flags ask for, a sweep's own where they say nothing."""
    tests = FLAGS.tests if FLAGS["tests"].present else sweep.TESTS
    given = FLAGS.batch_sizes if FLAGS["batch_sizes"].present else [*map(str, sweep.BATCHES)]
    batches = [positive(text, "--batch_sizes") for text in given]
    return sweep.grid(FLAGS.storages or [FLAGS.quantize], tests, batches, sampling() or sweep.SAMPLING)


def sweep_storage(record: sweep.Record, storage: str, points: list[sweep.Point]) -> None:
    """Measures the points of one storage, with ceilings of their own."""
    name, config, params = load(storage)
    import jax

    from jllama.cli import measure

    record.begin(environment(name, params))
    limits = measure.ceilings(FLAGS.dtype, jax.devices()[0].platform)
    for number, point in enumerate(points, 1):
        test = point.test
        say(f"{storage} {number}/{len(points)}: {test.name}, batch {test.batch} {test.choice}".rstrip())
        record.add(sweep.measured(point, config, params, limits, FLAGS.repetitions, FLAGS.seed))


def run_test(config: Any, params: Any, test: Any, repetitions: int) -> dict[str, Any]:
    """What a test gave."""
    from jllama.cli import measure, measure_engine

    run = measure_engine.run_engine_test if test.kind == "en" else measure.run_test
    return run(config, params, test, repetitions, FLAGS.seed)


def sampling() -> dict[str, float]:
    """The sampling flags that change anything.

    Raises:
      JllamaError: a value is out of range.
    """
    settings, neutral = build_settings(**{name: FLAGS[name].value for name in CHOICES}), GenerationSettings()
    given = {name: getattr(settings, name) for name in CHOICES}
    return {name: value for name, value in given.items() if value != getattr(neutral, name)}


def load(storage: str | None = None) -> tuple[str, Any, Any]:
    """The model's name, configuration and weights: those of `--model`, or random ones; `storage` instead of
    what `--quantize` says.
    """
    if bool(FLAGS.model) == bool(FLAGS.random_config):
        raise JllamaError("give --model=REFERENCE or --random_config=config.json, one of them")
    if FLAGS.model:
        model = command_line.load_model(storage, tokenizer=False)
        return model.name, model.config, model.params
    from jllama.config import ModelConfig
    from jllama.machine import devices

    parallel.join_processes()
    devices.configure(FLAGS.device)
    path = ready_made.shape(FLAGS.random_config)
    with parallel.telling():
        config, params = random_weights(ModelConfig.from_hf(path), storage or FLAGS.quantize)
    parallel.follow(config, params, FLAGS.dtype)
    return f"random {path.stem}", config, params


def random_weights(config: Any, storage: str) -> tuple[Any, Any]:
    """Random weights, quantised as `load` would quantise a checkpoint's, on as many devices as are asked for;
    and the configuration that they have there.
    """
    from jllama import kernels, sharding
    from jllama.checkpoint import likeness
    from jllama.checkpoint.leaves.choose import cut_blocks, placed, scheme_for
    from jllama.checkpoint.random_params import random_params
    from jllama.layers.quantization import SCHEMES, quantize
    from jllama.machine import agreement

    devices = parallel.devices()
    if isinstance(devices, str):
        raise JllamaError("--tensor_parallel=auto needs --model: give the number of devices")
    sharding.check(config, devices, cut_blocks(storage, config))
    mesh = sharding.mesh_of(devices) if devices > 1 else None
    own = dict(dtype=FLAGS.dtype, storage=storage, devices=devices)
    agreement.agree(likeness.marks(config, f"random {FLAGS.seed}", **own))
    sharding.acquaint(mesh)

    def finish(path: Any, leaf: Any, array: Any) -> Any:
        scheme = scheme_for(leaf, storage) if storage in SCHEMES else None
        made = array if scheme is None else quantize(array, scheme)
        if mesh is not None:
            return sharding.split_leaf(path, made, config, mesh)
        return array if scheme is None else placed(made)

    params = random_params(config, FLAGS.dtype, seed=FLAGS.seed, finish=finish)
    if mesh is None:
        return config, params
    return sharding.widened(config, devices), kernels.joined(sharding.with_head(config, params, mesh))


def profile(config: Any, params: Any, tests: list[Any]) -> None:
    """A trace of each test; its phases carry the names of the model's parts."""
    import jax

    with jax.profiler.trace(str(expanded(FLAGS.profile))):
        for test in tests:
            run_test(config, params, test, 1)


def environment(name: str, params: Any) -> dict[str, Any]:
    """What a figure means nothing without."""
    import jax

    from jllama import __version__, sharding
    from jllama.machine.devices import describe_device

    return {
        "model": name,
        "dtype": FLAGS.dtype,
        "quantize": FLAGS.quantize,
        "tensor_parallel": sharding.devices_under(params),
        "device": describe_device(params),
        "jllama": __version__,
        "jax": jax.__version__,
        "seed": FLAGS.seed,
        "repetitions": FLAGS.repetitions,
        "date": time.strftime("%Y-%m-%d"),
    }
