"""The engine against the plain loop that it replaces: one `forward` for each token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine.decoder import read_prompt
from jllama.engine.rows import chunk_size
from jllama.engine.state import Way
from jllama.errors import JllamaError
from jllama.kernels.target import CHUNK_SIZES
from jllama.layers.cache import KVCache
from jllama.model import forward
from tests.support.decoding import GPU, as_on_a_gpu, empty_slots, short_chunks, started, texts
from tests.support.host_arrays import as_for_users

MAX_LEN = 64
GPU_SIZES = CHUNK_SIZES["gpu"]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    short_chunks(monkeypatch)


def run(config, params, prompts, *, seed=0, dtype="float32", **options):
    """The generated ids of each prompt, in slots of their own, and the slots."""
    slots = empty_slots(config, params, len(prompts), MAX_LEN, dtype)
    return texts(slots, prompts, keys=[(0, seed)] * len(prompts), **options), slots


def greedy_by_hand(config, params, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        cache = KVCache.empty(config, batch=1, max_len=MAX_LEN, dtype="float32")
        padded = jnp.asarray([ids + [0] * (MAX_LEN - len(ids))], jnp.int32)
        logits, _ = _forward(config, params, padded, cache)
        ids.append(int(jnp.argmax(logits[0, len(ids) - 1])))
    return ids[len(prompt) :]


_forward = jax.jit(forward, static_argnums=0)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], list(range(40))]


def test_greedy_equals_the_plain_loop_in_a_ragged_batch(tiny_config, tiny_params):
    answers, _ = run(tiny_config, tiny_params, PROMPTS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == greedy_by_hand(tiny_config, tiny_params, prompt, 20)


def test_a_row_alone_draws_what_it_draws_among_others(tiny_config, tiny_params):
    settings = dict(temperature=1.0, top_p=0.9, seed=7)
    together, _ = run(tiny_config, tiny_params, PROMPTS, **settings)
    for row, prompt in enumerate(PROMPTS):
        alone, _ = run(tiny_config, tiny_params, [prompt], **settings)
        assert alone[0] == together[row]


@pytest.mark.parametrize(
    "settings", [{}, dict(temperature=1.0, top_p=0.9), dict(frequency_penalty=2.0)], ids=str
)
def test_the_loop_of_a_gpu_gives_the_same(tiny_config, tiny_params, monkeypatch, settings):
    """It runs anywhere; only its length and what plain settings leave out differ."""
    stops = dict(stop_ids=[11, 17], limit=21)
    here, _ = run(tiny_config, tiny_params, PROMPTS, **stops, **settings)
    as_on_a_gpu(monkeypatch)
    there, _ = run(tiny_config, tiny_params, PROMPTS, **stops, **settings)
    assert here == there


def test_only_a_gpu_has_a_loop_for_greedy_rows(tiny_config, tiny_params, monkeypatch):
    slots = empty_slots(tiny_config, tiny_params)
    assert slots.way(greedy=True, short=True) == slots.way() == Way(slots.target)
    as_on_a_gpu(monkeypatch)
    for count in (1, 2):
        slots = empty_slots(tiny_config, tiny_params, count)
        assert slots.way(greedy=True) == Way(GPU, greedy=True)
        assert slots.way(short=True) == Way(GPU, short=True)
        several = count > 1  # one program for scores and floors, and no greedy one
        assert slots.way(greedy=True, floors=True) == Way(
            GPU, greedy=not several, scores=several, floors=True
        )
        assert slots.way(scores=True) == Way(GPU, scores=True, floors=several)


def test_the_prefill_of_a_gpu_gives_the_same(tiny_config, tiny_params, monkeypatch):
    """A first chunk without logits, the cache begun instead of appended to; cuDNN's part by plain XLA."""
    here, kept = read_all(tiny_config, tiny_params)
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(kernels.gpu, "prefill_refusal", lambda *_: None)
    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **more: attention(*a, **more | dict(implementation="xla"))
    )
    there, caches = read_all(tiny_config, tiny_params)
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)
    for mine, other, prompt in zip(caches, kept, PROMPTS, strict=True):
        length = len(prompt)
        assert mine.length.tolist() == other.length.tolist() == [length]
        for ours, theirs in zip(mine.keys + mine.values, other.keys + other.values, strict=True):
            np.testing.assert_allclose(ours[0, :, :length], theirs[0, :, :length], rtol=1e-5, atol=1e-5)


def read_all(config, params):
    """The last logits of each prompt, and the caches."""
    slots = [empty_slots(config, params) for _ in PROMPTS]
    logits = [read(each, prompt) for each, prompt in zip(slots, PROMPTS, strict=True)]
    return np.concatenate(logits), [each.state.cache for each in slots]


def read(slots, prompt, start=0):
    return np.asarray(read_prompt(slots, np.array(prompt, np.int32), start))


def test_seeds(tiny_config, tiny_params):
    first, again, other = (
        run(tiny_config, tiny_params, PROMPTS[:1], temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_stop_id_ends_its_row_alone(tiny_config, tiny_params):
    free, _ = run(tiny_config, tiny_params, PROMPTS)
    stop = free[0][6]
    stopped, slots = run(tiny_config, tiny_params, PROMPTS, stop_ids=[stop])
    for whole, cut in zip(free, stopped, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert cut == whole[:end]
    # The last token of a row is sampled, not fed.
    fed = [len(prompt) + len(cut) - 1 for prompt, cut in zip(PROMPTS, stopped, strict=True)]
    assert slots.state.cache.length.tolist() == fed


def test_penalties_reach_the_engine(tiny_config, tiny_params):
    answers, _ = run(tiny_config, tiny_params, PROMPTS[:1], frequency_penalty=100.0)
    assert len(set(answers[0])) == 20


def test_reading_goes_on_from_what_a_slot_holds(tiny_config, tiny_params):
    text = list(range(30))
    slots = empty_slots(tiny_config, tiny_params)
    read(slots, text[:13])
    halves, whole = read(slots, text, 13), read(empty_slots(tiny_config, tiny_params), text)
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-5)
    assert slots.state.cache.length.tolist() == [30]


def chunks_of(count, sizes):
    """How a prompt of `count` tokens is cut."""
    while count > 0:
        yield (size := chunk_size(count, sizes))
        count -= size


@pytest.mark.parametrize(("count", "chunks"), [(1, [32]), (40, [32, 32]), (70, [128]), (600, [512, 128])])
def test_chunks(count, chunks):
    assert list(chunks_of(count, (32, 128, 512))) == chunks


def test_of_two_chunks_that_would_do_the_smaller_is_taken():
    assert chunk_size(4, (4, 8, 16)) == 4
    assert chunk_size(9, (4, 12, 16)) == 12


def test_a_gpu_reads_a_short_prompt_in_one_chunk():
    """Its weights are read once, whatever the length, and padding at most doubles the work."""
    for count in range(1, GPU_SIZES[-1] + 1):
        size = chunk_size(count, GPU_SIZES)
        assert count <= size <= max(64, 2 * count)


def test_logits_that_are_not_finite_stop_with_advice(tiny_config, tiny_params):
    one_row = tiny_params.lm_head.at[7].set(jnp.nan)
    for damage in (dict(lm_head=one_row), dict(norm=tiny_params.norm * jnp.inf)):
        with pytest.raises(JllamaError, match="not finite"):
            run(tiny_config, dataclasses.replace(tiny_params, **damage), PROMPTS[:1])
    broken = dataclasses.replace(tiny_params, norm=tiny_params.norm * jnp.nan)
    with pytest.raises(JllamaError, match="not finite"):
        run(tiny_config, broken, PROMPTS[:1])
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), broken)
    with pytest.raises(JllamaError, match="not finite in float16: use --dtype=bfloat16"):
        run(tiny_config, halves, PROMPTS[:1], dtype="float16")


def test_the_cache_is_donated_and_updated_in_place(tiny_config, tiny_params):
    slots = empty_slots(tiny_config, tiny_params)
    started(slots, PROMPTS[:1])
    keys = slots.state.cache.keys[0]
    place = keys.unsafe_buffer_pointer()
    slots.run([0], 3)
    assert keys.is_deleted()
    assert slots.state.cache.keys[0].unsafe_buffer_pointer() == place


@as_for_users()
def test_nothing_compiles_after_warm_up(tiny_config, tiny_params):
    """New prompt lengths, temperatures, seeds and limits are data."""
    for length in (3, 7, 14):
        run(tiny_config, tiny_params, [list(range(length))], stop_ids=[99])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        for length, settings in [
            (5, dict(temperature=0.7, seed=3)),
            (11, dict(temperature=1.0, top_p=0.5, limit=9)),
            (23, dict(top_k=4, min_p=0.1, temperature=0.2, repetition_penalty=1.1)),
            (40, dict(stop_ids=[7])),
        ]:
            run(tiny_config, tiny_params, [list(range(length))], **({"stop_ids": [99]} | settings))
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
