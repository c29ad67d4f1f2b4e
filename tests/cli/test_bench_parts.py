"""`bench.py`, `perplexity.py`, `quantize.py` and `random_checkpoint.py` part by part; nothing is measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jllama import __version__
from jllama.cli import command_line, measure, measure_engine, parallel, ready_made, sweep, sweep_picture
from jllama.cli.bench_tests import Test as BenchTest
from jllama.cli.bench_tests import parse_tests
from jllama.errors import JllamaError
from tests.support.programs import flags_of, program_module

bench = program_module("bench")
perplexity = program_module("perplexity")
quantize = program_module("quantize")
random_checkpoint = program_module("random_checkpoint")

USUAL = dict(sweep=None, tests=["pp8", "tg4"], batch_sizes=["1"], json=True, markdown=False, profile=None)
USUAL |= dict(dtype="float32", repetitions=3, seed=5, quantize="int8", tensor_parallel="1", device="cpu")
USUAL |= dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0)
USUAL |= dict(frequency_penalty=0.0, model=None, random_config=None, storages=None)
CONFIG = SimpleNamespace(context_length=100)


@pytest.fixture
def given(monkeypatch):
    """Sets flags; `typed` are those that stand on the command line."""

    def given(typed=(), **changes):
        made = flags_of(**USUAL | changes)
        for name, flag in made.items():
            flag.present = name in typed
        monkeypatch.setattr(bench, "FLAGS", made)

    given()
    return given


@pytest.fixture
def order(monkeypatch):
    """What the parts of a measurement are called with, in order."""
    order = []

    def note(kind, gives=None):
        return lambda *given, **how: order.append((kind, *given, *how.values())) or gives

    limits = measure.Ceilings(read_bytes_per_second=4e9, matrix_flops_per_second=3e12)
    monkeypatch.setattr(command_line, "count_compile_seconds", lambda: [1.5, 0.5])
    monkeypatch.setattr(bench, "load", note("load", ("m", CONFIG, "params")))
    monkeypatch.setattr(bench, "environment", lambda name, params: {"model": name, "of": params})
    monkeypatch.setattr(measure, "check_memory", note("memory"))
    monkeypatch.setattr(measure, "ceilings", note("ceilings", limits))
    monkeypatch.setattr(measure, "weight_bits", note("bits", [4, 8]))
    monkeypatch.setattr(measure, "first_token_seconds", note("first", 0.25))
    monkeypatch.setattr(measure, "peak_memory_bytes", note("peak", 3 << 20))
    return order


def test_a_model_is_measured_and_reported(given, order, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run_test", lambda *given: order.append(given) or {"row": given[2].name})
    monkeypatch.setattr(bench, "with_shares", lambda row, limits, rows: row | {"of": len(rows)})
    bench.main()
    tests = parse_tests(["pp8", "tg4"], [1], {})
    assert order == [
        ("load",),
        ("memory", CONFIG, "float32", tests),
        ("ceilings", "float32", "cpu"),
        *((CONFIG, "params", test, 3) for test in tests),
        ("first", CONFIG, "params", 98, 5),  # no longer than the model's context
        ("bits", "params"),
        ("peak",),
    ]
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "model": "m",
        "of": "params",
        "weight_bits": [4, 8],
        "read_gb_per_second": 4.0,
        "matrix_tflops": 3.0,
        "compile_seconds": 2.0,
        "first_token_seconds": 0.25,
        "peak_memory_mib": 3.0,
        "tests": [{"row": "pp8", "of": 2}, {"row": "tg4", "of": 2}],
    }
    assert err.splitlines() == ["pp8, batch 1 …", "tg4, batch 1 …"]
    monkeypatch.setattr(bench, "as_table", lambda report, markdown: f"{len(report['tests'])} {markdown}")
    for markdown in (True, False):
        given(json=False, markdown=markdown, batch_sizes=["1", "2"])
        bench.main()
        assert capsys.readouterr().out == f"3 {markdown}\n"


def test_a_trace_is_of_one_more_repetition_in_a_directory_that_is_made_first(
    given, order, monkeypatch, tmp_path
):
    place = tmp_path / "a" / "b"
    monkeypatch.setattr(bench, "load", lambda: order.append(place.is_dir()) or ("m", CONFIG, "params"))
    monkeypatch.setattr(bench, "run_test", lambda *given: order.append(given[2:]) or {})
    monkeypatch.setattr(bench, "with_shares", lambda row, limits, rows: row)
    entered = SimpleNamespace(__enter__=None)

    class Trace:
        def __init__(self, name):
            entered.name = name

        def __enter__(self):
            order.append("traced")

        def __exit__(self, *_):
            order.append("done")

    monkeypatch.setattr(jax.profiler, "trace", Trace)
    given(profile=str(place), tests=["pp8"])
    bench.main()
    (test,) = parse_tests(["pp8"], [1], {})
    assert order[0] is True
    assert entered.name == str(place)
    assert order[order.index("traced") :][:3] == ["traced", (test, 1), "done"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(tests=[]), "nothing to measure: give --tests=tg128"),
        (dict(batch_sizes=[]), "nothing to measure"),
        (dict(batch_sizes=["0"]), "--batch_sizes=0: give a whole number"),
        (dict(json=True, markdown=True), "give --json or --markdown, not both"),
        (dict(top_p=2.0), "top_p=2.0 must be"),
        (dict(sweep="x", json=True), "--json goes with a table, not with --sweep: leave one out"),
        (dict(sweep="x", json=False, markdown=True), "--markdown goes with a table"),
        (dict(sweep="x", json=False, profile="p"), "--profile goes with a table"),
    ],
)
def test_what_can_not_be_measured_is_refused_first(given, order, flags, words):
    given(**flags)
    with pytest.raises(JllamaError, match=words):
        bench.main()
    assert order == []


def test_only_settings_that_change_anything_are_measured(given):
    assert bench.sampling() == {}
    given(temperature=0.8, top_k=3, repetition_penalty=1.0)
    assert bench.sampling() == {"temperature": 0.8, "top_k": 3}


@pytest.mark.parametrize(("kind", "engine"), [("en8", True), ("tg8", False), ("pp8", False), ("js8", False)])
def test_which_tests_an_engine_answers(given, monkeypatch, kind, engine):
    (test,) = parse_tests([kind], [2], {})
    monkeypatch.setattr(measure_engine, "run_engine_test", lambda *given: ("engine", *given))
    monkeypatch.setattr(measure, "run_test", lambda *given: ("alone", *given))
    assert bench.run_test("c", "p", test, 7) == ("engine" if engine else "alone", "c", "p", test, 7, 5)


@pytest.mark.parametrize(("model", "shape"), [(None, None), ("m", "s"), ("", "")])
def test_one_thing_is_measured(given, model, shape):
    given(model=model, random_config=shape)
    with pytest.raises(JllamaError, match="give --model=REFERENCE or --random_config=config"):
        bench.load()


def test_what_is_loaded(given, monkeypatch, tmp_path):
    given(model="a/b")
    made = SimpleNamespace(name="n", config="c", params="p")
    asked = []
    monkeypatch.setattr(command_line, "load_model", lambda *what, **how: asked.append((what, how)) or made)
    assert bench.load("int4") == ("n", "c", "p")
    assert asked == [(("int4",), {"tokenizer": False})]
    order = []
    monkeypatch.setattr(parallel, "join_processes", lambda: order.append("joined"))
    monkeypatch.setattr("jllama.machine.devices.configure", lambda device: order.append(device))
    monkeypatch.setattr(ready_made, "shape", lambda name: Path(f"/x/{name}.json"))
    monkeypatch.setattr("jllama.config.ModelConfig.from_hf", lambda path: order.append(path) or "config")
    monkeypatch.setattr(bench, "random_weights", lambda *given: order.append(given) or ("wide", "params"))
    monkeypatch.setattr(parallel, "follow", lambda *given: order.append(given))
    given(random_config="tiny")
    for storage, stored in ((None, "int8"), ("none", "none")):
        order.clear()
        assert bench.load(storage) == ("random tiny", "wide", "params")
        path = Path("/x/tiny.json")
        assert order == ["joined", "cpu", path, ("config", stored), ("wide", "params", "float32")]


def test_what_a_figure_means_nothing_without(given):
    given(tensor_parallel="auto")
    told = bench.environment("m", jax.numpy.ones(3))
    assert len(told.pop("date")) == 10
    assert told == dict(
        model="m",
        dtype="float32",
        quantize="int8",
        tensor_parallel=1,
        device="cpu",
        jllama=__version__,
        jax=jax.__version__,
        seed=5,
        repetitions=3,
    )


def test_the_points_of_a_sweep(given):
    def points():
        found = bench.sweep_points()
        kinds = {point.storage for point in found}, {point.test.choice for point in found}
        return (*kinds, {point.test.name for point in found}, {point.test.batch for point in found})

    own = parse_tests([*sweep.TESTS], [1], {})
    names, sampled = {test.name for test in own}, "temperature 0.8, top_p 0.95"
    assert points() == ({"int8"}, {"", "greedy", sampled}, names, {*sweep.BATCHES})
    given(storages=["none", "int4"], typed=("tests", "batch_sizes"), batch_sizes=["3"], top_k=4)
    assert points() == ({"none", "int4"}, {"", "greedy", "top_k 4"}, {"pp8", "tg4"}, {1, 3})
    given(storages=["int4"], typed=("tests",), batch_sizes=["3"])
    assert points()[2:] == ({"pp8", "tg4"}, {*sweep.BATCHES})
    given(storages=["int4"], typed=("batch_sizes",), batch_sizes=["3"])
    assert points()[2:] == (names, {1, 3})


def test_a_sweep_goes_storage_by_storage_and_is_drawn(given, order, monkeypatch, capsys, tmp_path):
    path = tmp_path / "s.json"
    given(
        sweep=str(path), json=False, storages=["none", "int4"], typed=("tests", "batch_sizes"), tests=["tg4"]
    )

    def measured(point, *more):
        return dict(zip(("storage", "test", "batch", "choice"), point.key, strict=True))

    about = dict.fromkeys(sweep.SAME, "x")
    monkeypatch.setattr(bench, "environment", lambda name, params: about)
    monkeypatch.setattr(sweep, "measured", measured)
    monkeypatch.setattr(sweep_picture, "check", lambda: order.append("checked"))
    monkeypatch.setattr(
        sweep_picture, "draw", lambda *given: order.append(("drawn", given[0], len(given[2])))
    )
    bench.main()
    ceilings = ("ceilings", "float32", "cpu")
    drawn = ("drawn", tmp_path / "s.png", 4)
    assert order == ["checked", ("load", "none"), ceilings, ("load", "int4"), ceilings, drawn]
    assert capsys.readouterr().err.splitlines() == [
        "none 1/2: tg4, batch 1 greedy",
        "none 2/2: tg4, batch 1 temperature 0.8, top_p 0.95",
        "int4 1/2: tg4, batch 1 greedy",
        "int4 2/2: tg4, batch 1 temperature 0.8, top_p 0.95",
        f"4 points in {path}, drawn in {tmp_path / 's.png'}",
    ]
    order.clear()
    bench.main()  # all is there
    assert order == ["checked", drawn]


# What is measured.


@pytest.mark.parametrize(
    ("stats", "most"), [({"peak_bytes_in_use": 7}, 7), ({"x": 1}, 5 * 1024), (None, 5 * 1024)]
)
def test_the_most_memory_is_the_device_s_where_it_tells(monkeypatch, stats, most):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    usage = SimpleNamespace(ru_maxrss=5)
    monkeypatch.setattr(measure.resource, "getrusage", lambda whose: usage)
    assert measure.peak_memory_bytes() == most


@pytest.mark.parametrize(
    ("read", "copy", "best"), [(2.0, 8.0, 1024 / 2), (8.0, 2.0, 2 * 1024 / 2), (4.0, 8.0, 1024 / 4)]
)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_ceilings_are_bytes_and_operations_over_seconds(monkeypatch, read, copy, best, platform):
    class Rows:
        nbytes = 1024

        def __len__(self):
            return 4

    asked = []
    seconds = {measure._row_maxima: read, measure.jnp.negative: copy, measure._product: 0.5}

    def seconds_each(work, start, *operands, count):
        asked.append((count, start is None, len(operands)))
        return seconds[work]

    monkeypatch.setattr(measure, "_seconds_each", seconds_each)
    monkeypatch.setattr(measure.jnp, "ones", lambda shape, dtype: Rows())
    normal = lambda key, shape: np.zeros((), "float32") if shape[0] == shape[1] else 1 / 0  # noqa: E731
    monkeypatch.setattr(jax.random, "normal", normal)
    found = measure.ceilings("float32", platform)
    assert found.read_bytes_per_second == best
    size = 8192 if platform == "gpu" else 2048
    assert found.matrix_flops_per_second == 2 * size**3 / 0.5
    count = 10 if platform == "gpu" else 1
    assert asked == [(count, platform == "cpu", 1), (count, False, 0), (count, False, 1)]


@pytest.mark.parametrize("count", [1, 4])
def test_seconds_of_a_call_are_the_median_of_five(monkeypatch, count):
    took = iter([9.0, 1.0, 3.0, 2.0, 8.0])
    ran = []

    def seconds(call):
        ran.append(np.asarray(call()))
        return next(took)

    monkeypatch.setattr(measure, "_seconds", seconds)
    found = measure._seconds_each(lambda state, more: state + more, np.float32(1), np.float32(2), count=count)
    assert found == 3.0 / count
    assert [float(each) for each in ran] == [1 + 2 * count] * 5  # each call is fed with the last one's result


@pytest.mark.parametrize(
    ("depth", "count", "prompt", "length"), [(0, 40, 8, 256), (500, 12, 500, 512), (501, 12, 501, 768)]
)
def test_an_engine_has_room_for_prompts_and_answers(monkeypatch, depth, count, prompt, length):
    made, asked = [], []

    class Engine:
        def __init__(self, model, **sizes):
            made.append((model.config, model.params, model.dtype, sizes))

        def __enter__(self):
            return "engine"

        def __exit__(self, *_):
            made.append("closed")

    runs = iter([(0, 0, 0), (0, 0, 0), (10.0, 3.0, 0.5), (30.0, 1.0, 0.1), (20.0, 2.0, 0.9)])
    monkeypatch.setattr(measure_engine, "Engine", Engine)
    monkeypatch.setattr(measure_engine, "plain_tokenizer", lambda size: size)
    monkeypatch.setattr(measure_engine, "_once", lambda *given: asked.append(given[:3]) or next(runs))
    config, params = SimpleNamespace(vocab_size=300), SimpleNamespace(norm=np.zeros(1, "float32"))
    test = BenchTest(kind="en", count=count, depth=depth, batch=2, sampling={"top_k": 1})
    row = measure_engine.run_engine_test(config, params, test, 3, 0)
    sizes = dict(slots=2, max_seq_len=length, share_prefixes=False)
    assert made == [(config, params, "float32", sizes), "closed"]
    assert asked == [("engine", test, prompt)] * 5
    assert (row["tokens_per_second"], row["spread"], row["first_token_seconds"]) == (20.0, 1.0, 0.5)
    assert (row["seconds"], row["batch"], row["choice"]) == ((3.0, 1.0, 2.0), 2, "top_k 1")


# Perplexities.


def test_each_token_but_a_window_s_first_is_predicted_once(monkeypatch):
    seen = []

    def piece(model, ids):
        seen.append(ids)
        return np.array(ids[1:]) * 1.0, np.array(ids[1:]) * 10

    monkeypatch.setattr(perplexity, "_piece", piece)
    losses, best = perplexity.measure("model", [*range(1, 8)], 3)
    assert seen == [[1, 2, 3], [4, 5, 6]]  # the last token stands alone
    assert (losses, best) == ([2, 3, 5, 6], [20, 30, 50, 60])
    assert perplexity.measure("model", [*range(1, 6)], 3) == ([2, 3, 5], [20, 30, 50])
    assert seen[-1] == [4, 5, 0]


@pytest.mark.parametrize("nothing", [False, True])
def test_what_is_rounded_beside_float32(monkeypatch, nothing):
    theirs = np.array([[3.0, 0.0], [0.0, 4.0], [100.0, 0.0]], np.float32) * (not nothing)
    ours = theirs + np.array([[0.0, 3.5], [0.0, 1.0], [9.0, 9.0]], np.float32) * (not nothing)
    monkeypatch.setattr(perplexity, "expanded", lambda model: f"exact {model}")
    runs = {"model": ours, "exact model": theirs}
    monkeypatch.setattr(perplexity, "_run", lambda model, piece, work: runs[model])
    found = perplexity.rounding("model", [1, 2], 3)  # two tokens and one of padding
    error, size = 3.5**2 + 1, 3.0**2 + 4.0**2
    assert found["logit_error"] == (0.0 if nothing else pytest.approx((error / size) ** 0.5))
    assert found["same_top1"] == (1.0 if nothing else 0.5)


# What is written.

QUANTIZED = dict(model="m", output="o", quantize="int8", device="cpu", model_sha256="d", dtype="float32")


@pytest.fixture
def quantizing(monkeypatch):
    """`quantize.main` on parts that note what they are asked."""
    order, held = [], SimpleNamespace(saved=False, bits=[8])

    def note(kind, gives=None):
        return lambda *given, **how: order.append((kind, *given, *how.values())) or gives

    monkeypatch.setattr(quantize, "FLAGS", flags_of(**QUANTIZED))
    monkeypatch.setattr("jllama.machine.devices.configure", note("device"))
    monkeypatch.setattr("jllama.checkpoint.output.output_directory", note("output", "directory"))
    monkeypatch.setattr(ready_made, "check", note("check"))
    monkeypatch.setattr("jllama.hub.references.resolve", note("resolve", "files"))
    monkeypatch.setattr("jllama.checkpoint.formats.saved.is_saved", lambda files: held.saved)
    monkeypatch.setattr("jllama.checkpoint.read_config", note("config", "config"))
    monkeypatch.setattr("jllama.checkpoint.load_params", note("params", "params"))
    monkeypatch.setattr(measure, "weight_bits", lambda params: held.bits)
    monkeypatch.setattr("jllama.checkpoint.formats.saved.save", note("save"))
    return order, held


def test_a_model_is_quantised_and_written(quantizing, capsys):
    order, _ = quantizing
    quantize.main()
    assert order == [
        ("device", "cpu"),
        ("output", "o"),  # a place that can't be written is told before anything is fetched
        ("check", "m"),
        ("resolve", "m", "d"),
        ("config", "files"),
        ("params", "files", "config", "float32", "int8", False),
        ("save", "files", "config", "params", "directory", "int8"),
    ]
    assert capsys.readouterr().err == "wrote directory\n"


@pytest.mark.parametrize(
    ("held", "words", "last"),
    [
        (dict(saved=True), "m is quantised already: quantise the model that it was made of", "resolve"),
        (dict(bits=[]), "m holds no blocks of 4 to 8 bits to keep: give --quantize=int8 or int4", "params"),
    ],
)
def test_what_is_not_worth_writing_is_not(quantizing, held, words, last):
    order, parts = quantizing
    vars(parts).update(held)
    with pytest.raises(JllamaError, match=words):
        quantize.main()
    assert order[-1][0] == last


@pytest.mark.parametrize(
    ("count", "words"), [(3, "can't be cut into 3 equal parts"), ("auto", "needs --model")]
)
def test_random_weights_for_devices_that_can_not_share_them(given, monkeypatch, tiny_config, count, words):
    given()
    monkeypatch.setattr(parallel, "devices", lambda: count)
    with pytest.raises(JllamaError, match=words):
        bench.random_weights(tiny_config, "none")


@pytest.mark.parametrize(
    ("devices", "storage", "scheme", "made"),
    [
        (1, "none", "s", "w"),
        (1, "int8", None, "w"),  # a norm
        (1, "int8", "s", "placed(quantized(w,s))"),
        (2, "none", "s", "split(path,w,mesh of 2)"),
        (2, "int8", "s", "split(path,quantized(w,s),mesh of 2)"),
        (2, "int8", None, "split(path,w,mesh of 2)"),
    ],
)
def test_random_weights_lie_as_loaded_ones_would(given, monkeypatch, devices, storage, scheme, made):
    order = []

    def told(name, *shown):
        return lambda *given, **how: f"{name}({','.join(str(given[at]) for at in shown)})"

    given(tensor_parallel=str(devices))
    monkeypatch.setattr(parallel, "devices", lambda: devices)
    monkeypatch.setattr("jllama.sharding.check", lambda *asked: order.append(asked))
    monkeypatch.setattr("jllama.sharding.mesh_of", lambda count: f"mesh of {count}")
    monkeypatch.setattr("jllama.sharding.split_leaf", told("split", 0, 1, 3))
    monkeypatch.setattr("jllama.sharding.with_head", told("headed", 1, 2))
    monkeypatch.setattr("jllama.sharding.widened", told("wide", 0, 1))
    monkeypatch.setattr("jllama.kernels.joined", told("joined", 0))
    monkeypatch.setattr("jllama.checkpoint.leaves.choose.placed", told("placed", 0))
    monkeypatch.setattr("jllama.checkpoint.leaves.choose.cut_blocks", told("blocks", 0, 1))
    monkeypatch.setattr("jllama.checkpoint.leaves.choose.scheme_for", lambda leaf, asked: scheme)
    monkeypatch.setattr("jllama.layers.quantization.quantize", told("quantized", 0, 1))
    monkeypatch.setattr("jllama.machine.agreement.agree", order.append)
    monkeypatch.setattr("jllama.checkpoint.likeness.marks", lambda *what, **own: (*what, own))

    def random_params(config, dtype, *, seed, finish):
        order.append((config, dtype, seed))
        return finish("path", "leaf", "w")

    monkeypatch.setattr("jllama.checkpoint.random_params.random_params", random_params)
    found = bench.random_weights("config", storage)
    if devices == 1:
        assert found == ("config", made)
    else:
        assert found == ("wide(config,2)", f"joined(headed({made},mesh of 2))")
    own = dict(dtype="float32", storage=storage, devices=devices)
    agreed = ("config", "random 5", own)
    assert order == [("config", devices, f"blocks({storage},config)"), agreed, ("config", "float32", 5)]


@pytest.mark.parametrize(
    ("changes", "shard", "tokenizer"),
    [({}, None, None), (dict(shard_size="2KB", tokenizer="~/t"), 2000, Path("~/t").expanduser())],
)
def test_random_weights_are_written_as_the_flags_say(monkeypatch, capsys, changes, shard, tokenizer):
    usual = dict(config="c", output="o", scale=0.5, dtype="float16", seed=7, shard_size=None, tokenizer=None)
    written = []
    monkeypatch.setattr(random_checkpoint, "FLAGS", flags_of(**usual | changes))
    monkeypatch.setattr("jllama.checkpoint.output.output_directory", lambda name: f"directory {name}")
    monkeypatch.setattr(ready_made, "shape", lambda name: f"shape {name}")
    monkeypatch.setattr(
        "jllama.checkpoint.random_weights.write_random_checkpoint",
        lambda *given, **how: written.append((given, how)),
    )
    random_checkpoint.main()
    how = dict(dtype="float16", seed=7, scale=0.5, shard_bytes=shard, tokenizer=tokenizer)
    assert written == [(("shape c", "directory o"), how)]
    assert capsys.readouterr().err == "wrote directory o\n"
