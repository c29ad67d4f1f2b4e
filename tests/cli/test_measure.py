"""What `bench.py` and `perplexity.py` report, against sums by hand."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.cli import measure
from jllama.cli.bench_tests import Test as BenchTest
from jllama.cli.bench_tests import parse_tests
from jllama.config import ModelConfig
from jllama.engine.state import DecodeState
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.layers.quantization import SCHEMES, quantize
from jllama.text.tokenizer import Tokenizer
from tests.support.checkpoint_generator import random_tensors
from tests.support.helpers import full_logits, params_from
from tests.support.tiny_checkpoint import KEYS, write_tiny_model

CONFIG = ModelConfig.from_hf(KEYS)


def bench_test(**changes):
    return BenchTest(**{"kind": "tg", "count": 40, "depth": 0, "batch": 1, **changes})


def test_a_prompts_operations():
    """Two for each weight and token, one unembedding a row, two products with each position so far."""
    c = CONFIG
    attention = c.hidden_size * 4 * c.head_dim * 2 + c.hidden_size * 2 * c.head_dim * 2  # q and o, k and v
    weights = 2 * (attention + 3 * c.hidden_size * c.intermediate_size)
    for count, depth, batch in ((3, 0, 1), (3, 5, 2)):
        pairs = sum(depth + place + 1 for place in range(count))
        by_hand = 2 * weights * count + 2 * c.vocab_size * c.hidden_size + 2 * 2 * 2 * 4 * c.head_dim * pairs
        assert (
            measure.prompt_flops(c, bench_test(kind="pp", count=count, depth=depth, batch=batch))
            == batch * by_hand
        )


def test_a_steps_bytes():
    params = params_from(CONFIG, random_tensors(KEYS))
    per_position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    mean = np.mean([10 + step + 1 for step in range(40)])
    assert measure.kv_bytes(CONFIG, params, bench_test(depth=10, batch=3)) == 3 * mean * per_position
    window = dataclasses.replace(CONFIG, sliding_window=8)
    assert measure.kv_bytes(window, params, bench_test(depth=10)) == 8 * per_position
    wide = dataclasses.replace(CONFIG, sliding_window=1000)
    assert measure.kv_bytes(wide, params, bench_test(depth=10)) == mean * per_position
    table = CONFIG.vocab_size * CONFIG.hidden_size * 4
    total = sum(array.nbytes for array in random_tensors(KEYS).values())
    assert measure.weight_bytes(params) == total - table

    tied = dataclasses.replace(params, lm_head=None)
    assert measure.weight_bytes(tied) == total - table  # one table, which is read


def test_the_first_runs_compile_and_are_not_counted(monkeypatch):
    seconds = iter([100.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr(measure, "prompt_seconds", lambda *given: next(seconds))
    params = params_from(CONFIG, random_tensors(KEYS))
    assert measure.first_token_seconds(CONFIG, params, 5, seed=0) == 3.0
    seconds = iter([100.0, 50.0, 1.0, 2.0, 4.0])
    row = measure.run_test(CONFIG, params, bench_test(kind="pp", count=8), 3, seed=0)
    assert (row["seconds"], row["tokens_per_second"], row["spread"]) == ([1.0, 2.0, 4.0], 4.0, 1.5)


def test_parts_of_a_measurement_do_what_they_time(monkeypatch):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert measure._row_maxima(None, rows).tolist() == [3, 7, 11]
    assert measure._row_maxima(np.array([9, 2, 9], np.float32), rows).tolist() == [3, 2, 9]
    left, right = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 2), np.float32)
    assert np.allclose(measure._product(left, right), left @ right / 2**0.5)
    clock = iter([5.0, 7.5])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure._seconds(lambda: rows) == 2.5


def test_a_prompt_is_timed_behind_its_depth(monkeypatch):
    read, clock = [], iter([1.0, 4.0])
    monkeypatch.setattr(measure, "read_prompt", lambda *given: read.append(given))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    slots = SimpleNamespace(config=SimpleNamespace(vocab_size=7))
    test = bench_test(kind="pp", count=30, depth=20)
    assert measure.prompt_seconds(slots, test, np.random.default_rng(0)) == 3.0
    ((given, prompt, depth),) = read
    assert (given, depth, prompt.shape, prompt.dtype) == (slots, 20, (50,), np.int32)
    assert (prompt.min(), prompt.max()) == (0, 6)


def test_bits_of_the_weights():
    leaf = quantize(np.ones((32, 64), np.float32), SCHEMES["int8"][0])
    small = quantize(np.ones((32, 64), np.float32), SCHEMES["int4"][0])
    assert measure.weight_bits({"a": np.ones(3)}) == []
    assert measure.weight_bits({"a": leaf, "b": small, "c": leaf, "d": np.ones(3)}) == [4, 8]


def test_batches_and_settings_multiply_the_generations_alone():
    drawn = {"temperature": 0.8}
    tests = parse_tests(["pp8", "tg4@d2"], [1, 3], drawn)
    assert [(test.name, test.batch, test.sampling) for test in tests] == [
        ("pp8", 1, {}),
        *(("tg4 @ d2", batch, sampling) for batch in (1, 3) for sampling in ({}, drawn)),
    ]
    assert [test.batch for test in parse_tests(["tg4"], [1, 3], {})] == [1, 3]


@pytest.mark.parametrize("late", [0.0, 7.0])
def test_the_rate_of_a_generation_leaves_the_first_block_out(monkeypatch, late):
    """Its start is not measured: only what comes after the second arrival, over the time since then."""
    arrivals = [(1, 0.5), (4, 2.0 + late), (16, 4.0 + late), (16, 5.0 + late), (4, 6.0 + late)]
    clock = iter([at for _, at in arrivals])
    slots = measure.empty_slots(CONFIG, params_from(CONFIG, random_tensors(KEYS)), 1, 16)
    blocks = [np.zeros((1, count)) for count, _ in arrivals]
    monkeypatch.setattr(measure, "bursts", lambda *_: iter(blocks))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    filled = []
    slots.begin_together = lambda *_: filled.append(slots.state.cache.length.tolist())
    seconds = measure.generation_seconds(slots, bench_test(depth=5), np.random.default_rng(0))
    assert seconds == pytest.approx((6.0 - 2.0) * 40 / (16 + 16 + 4))
    assert filled == [[5]]  # as if so many tokens had been read


@pytest.mark.parametrize(("kind", "seconds"), [("tg", 40 * 1.0), ("js", 40 * 2.0)])
def test_a_generation_is_read_as_its_kind_says(monkeypatch, kind, seconds):
    def each(second):
        return lambda *_: [(0.0, 1), (second, 1), (2 * second, 1), (3 * second, 1)]

    monkeypatch.setattr(measure, "_arrivals", each(1.0))
    monkeypatch.setattr(measure.measure_matching, "arrivals", each(2.0))
    cache = SimpleNamespace(holding=lambda lengths: None)
    state = DecodeState.of_one(KVCache.empty(CONFIG, batch=1, max_len=16, dtype="float32"))
    state = dataclasses.replace(state, cache=cache)
    slots = SimpleNamespace(config=CONFIG, state=state)
    found = measure.generation_seconds(slots, bench_test(kind=kind), np.random.default_rng(0))
    assert found == pytest.approx(seconds)
    for module, name in ((measure, "_arrivals"), (measure.measure_matching, "arrivals")):
        monkeypatch.setattr(module, name, lambda *_: [(0.0, 1), (1.0, 16)])  # nothing behind the first block
    slots.state = state
    with pytest.raises(JllamaError, match=f"^{kind}40: too few tokens to time; ask for at least 32$"):
        measure.generation_seconds(slots, bench_test(kind=kind), np.random.default_rng(0))


def test_what_a_test_takes_is_asked_of_memory_as_it_will_be_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(measure.memory, "check_cache", lambda *given, **named: asked.append((given, named)))
    measure.check_memory(CONFIG, "float32", [bench_test(count=250, depth=3), bench_test(batch=4)])
    advice = "leave out {} or --batch_sizes={}, or use --dtype=bfloat16"
    assert asked == [
        ((CONFIG, "float32"), dict(batch=1, max_len=512, advice=advice.format("tg250 @ d3", 1))),
        ((CONFIG, "float32"), dict(batch=4, max_len=256, advice=advice.format("tg40", 4))),
    ]


def test_perplexity_counts_each_token_of_the_text_once(server, tmp_path):
    """Windows of 16 and a rest: of each window all tokens but the first, and nothing of the padding."""
    model, text = write_tiny_model(tmp_path / "tiny"), "The same words again, and the same words."
    (tmp_path / "text.txt").write_text(text)
    flags = [
        f"--model={model}",
        f"--text={tmp_path}/text.txt",
        "--dtype=float32",
        "--window=16",
        "--modes=none",
    ]
    (row,) = server.run("perplexity.py", *flags, "--json").report["rows"]
    params, ids = params_from(CONFIG, random_tensors(KEYS)), Tokenizer.from_dir(model).encode(text)
    assert len(ids) % 16 > 1
    losses = []
    for start in range(0, len(ids), 16):
        window = ids[start : start + 16]
        logits = full_logits(CONFIG, params, [window])[0].astype(np.float64)
        picked = logits[np.arange(len(window) - 1), window[1:]]
        losses += list(np.log(np.exp(logits[:-1]).sum(axis=1)) - picked)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["standard_error"] == pytest.approx(
        math.exp(np.mean(losses)) * np.std(losses) / (len(losses) - 1) ** 0.5, rel=1e-4
    )
