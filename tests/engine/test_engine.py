"""The engine against the plain loop that it replaces: one `forward` for each token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine import prefill
from jllama.engine.decoder import Decoder
from jllama.engine.state import NO_TOKEN, Way
from jllama.engine.step import decode_burst
from jllama.errors import JllamaError
from jllama.kernels.target import CHUNK_SIZES
from jllama.layers.cache import KVCache
from jllama.model import forward
from tests.support.decoding import GPU, as_on_a_gpu, short_chunks, start

MAX_LEN = 64
GPU_SIZES = CHUNK_SIZES["gpu"]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    short_chunks(monkeypatch)


def begin(config, params, prompts, *, limit=20, stop_ids=(), seed=0, cache=None, **settings):
    """The state behind the first token, and that token."""
    batch = len(prompts)
    if cache is None:
        cache = KVCache.empty(config, batch=batch, max_len=MAX_LEN, dtype="float32")
    logits, cache = prefill.prefill(config, params, cache, prompts)
    keys = np.array([[0, seed]] * batch, np.uint32)
    return start(cache, logits, prompts=prompts, keys=keys, limit=limit, stop_ids=stop_ids, **settings)


def run(config, params, prompts, **options):
    """The generated ids of each row."""
    decoder = Decoder(config, params, *begin(config, params, prompts, **options))
    blocks = np.concatenate(list(decoder), axis=1)
    return [[int(token) for token in row if token != NO_TOKEN] for row in blocks], decoder.state


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
    *_, how = begin(tiny_config, tiny_params, PROMPTS, **settings)
    assert how == Way(GPU, greedy=not settings)
    assert here == there


def test_the_prefill_of_a_gpu_gives_the_same(tiny_config, tiny_params, monkeypatch):
    """A first chunk without logits, the cache begun instead of appended to; cuDNN's part by plain XLA."""
    cache = KVCache.empty(tiny_config, batch=3, max_len=MAX_LEN, dtype="float32")
    here, kept = prefill.prefill(tiny_config, tiny_params, cache, PROMPTS)
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(kernels.gpu, "prefill_refusal", lambda *_: None)
    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **more: attention(*a, **more | dict(implementation="xla"))
    )
    cache = KVCache.empty(tiny_config, batch=3, max_len=MAX_LEN, dtype="float32")
    there, cache = prefill.prefill(tiny_config, tiny_params, cache, PROMPTS)
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)
    assert cache.length.tolist() == kept.length.tolist()
    for row, length in enumerate(cache.length.tolist()):
        for ours, theirs in zip(cache.keys + cache.values, kept.keys + kept.values, strict=True):
            np.testing.assert_allclose(ours[row, :, :length], theirs[row, :, :length], rtol=1e-5, atol=1e-5)


def test_seeds(tiny_config, tiny_params):
    first, again, other = (
        run(tiny_config, tiny_params, PROMPTS[:1], temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_stop_id_ends_its_row_alone(tiny_config, tiny_params):
    free, _ = run(tiny_config, tiny_params, PROMPTS)
    stop = free[0][6]
    stopped, state = run(tiny_config, tiny_params, PROMPTS, stop_ids=[stop])
    for whole, cut in zip(free, stopped, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert cut == whole[:end]
    # The last token of a row is sampled, not fed.
    fed = [len(prompt) + len(cut) - 1 for prompt, cut in zip(PROMPTS, stopped, strict=True)]
    assert state.cache.length.tolist() == fed


def test_penalties_reach_the_engine(tiny_config, tiny_params):
    answers, _ = run(tiny_config, tiny_params, PROMPTS[:1], frequency_penalty=100.0)
    assert len(set(answers[0])) == 20


def test_prefill_continues_a_cache(tiny_config, tiny_params):
    cache = KVCache.empty(tiny_config, batch=1, max_len=MAX_LEN, dtype="float32")
    whole, _ = prefill.prefill(tiny_config, tiny_params, cache, [list(range(30))])
    cache = KVCache.empty(tiny_config, batch=1, max_len=MAX_LEN, dtype="float32")
    _, cache = prefill.prefill(tiny_config, tiny_params, cache, [list(range(13))])
    halves, cache = prefill.prefill(tiny_config, tiny_params, cache, [list(range(13, 30))])
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-5)
    assert cache.length.tolist() == [30]


@pytest.mark.parametrize(("count", "chunks"), [(1, [32]), (40, [32, 32]), (70, [128]), (600, [512, 128])])
def test_chunks(count, chunks):
    assert prefill.chunk_sizes(count, (32, 128, 512)) == chunks


def test_of_two_chunks_that_would_do_the_smaller_is_taken():
    assert prefill.chunk_sizes(4, (4, 8, 16)) == [4]
    assert prefill.chunk_sizes(9, (4, 12, 16)) == [12]


def test_a_gpu_reads_a_short_prompt_in_one_chunk():
    """Its weights are read once, whatever the length, and padding at most doubles the work."""
    for count in range(1, GPU_SIZES[-1] + 1):
        (size,) = prefill.chunk_sizes(count, GPU_SIZES)
        assert count <= size <= max(64, 2 * count)


def test_what_does_not_fit_is_refused_before_it_starts(tiny_config, tiny_params):
    cache = KVCache.empty(tiny_config, batch=1, max_len=8, dtype="float32")
    with pytest.raises(JllamaError, match="9 positions at least and the cache has 8"):
        prefill.prefill(tiny_config, tiny_params, cache, [list(range(8))])
    with pytest.raises(JllamaError, match="empty"):
        prefill.prefill(tiny_config, tiny_params, cache, [[]])


def test_logits_that_are_not_finite_stop_with_advice(tiny_config, tiny_params):
    one_row = tiny_params.lm_head.at[7].set(jnp.nan)
    for damage in (dict(lm_head=one_row), dict(norm=tiny_params.norm * jnp.inf)):
        with pytest.raises(JllamaError, match="not finite"):
            run(tiny_config, dataclasses.replace(tiny_params, **damage), PROMPTS[:1])
    broken = dataclasses.replace(tiny_params, norm=tiny_params.norm * jnp.nan)
    with pytest.raises(JllamaError, match="not finite"):
        run(tiny_config, broken, PROMPTS[:1])
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), broken)
    cache = KVCache.empty(tiny_config, batch=1, max_len=MAX_LEN, dtype="float16")
    with pytest.raises(JllamaError, match="bfloat16"):
        run(tiny_config, halves, PROMPTS[:1], cache=cache)


def test_the_cache_is_donated_and_updated_in_place(tiny_config, tiny_params):
    state, _, how = begin(tiny_config, tiny_params, PROMPTS[:1])
    place = state.cache.keys[0].unsafe_buffer_pointer()
    keys = state.cache.keys[0]
    state, _ = decode_burst(tiny_config, tiny_params, state, np.int32(3), how)
    assert keys.is_deleted()
    assert state.cache.keys[0].unsafe_buffer_pointer() == place


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
