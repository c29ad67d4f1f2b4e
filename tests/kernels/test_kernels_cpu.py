"""The step of the C++ kernels against `forward`, on every instruction set that this machine has."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels import cpu
from jllama.layers.cache import KVCache
from jllama.layers.rope import Rope
from jllama.model import forward
from tests.support import aarch64
from tests.support.helpers import AS_FOR_USERS, random_params
from tests.support.kernels_cpu import (
    BASE,
    FORMATS,
    every_machine,
    filled_cache,
    kernel_step,
    machines,
    marked,
    params_of,
    random_weight,
    register_copy,
    skip_without_kernels,
    suffix_of,
    weights_like,
)

plain_step = jax.jit(forward, static_argnums=0)
MODELS = {
    "plain": {},
    "tied_gelu": dict(tie_word_embeddings=True, hidden_act="gelu"),
    "biases_tanh": dict(attention_bias=True, mlp_bias=True, hidden_act="gelu_pytorch_tanh"),
    "window": dict(sliding_window=5),
    "window_of_single_queries": dict(sliding_window=5, num_key_value_heads=6),
    "half_a_panel_of_gates": dict(hidden_size=592, intermediate_size=176),  # thrice as deep as a panel
    "odd_sizes": dict(hidden_size=70, intermediate_size=51, head_dim=18, hidden_act="relu"),
    "large_epsilon": dict(rms_norm_eps=0.1),
    "one_head": dict(num_attention_heads=1, num_key_value_heads=1, head_dim=96),
    "five_queries": dict(num_attention_heads=5, num_key_value_heads=1, head_dim=12),
    "eight_queries": dict(num_attention_heads=8, num_key_value_heads=1, head_dim=12),
}


def assert_same_step(config, params, lengths, T, max_len, suffix, dtype="float32", rtol=2e-5):
    rng = np.random.default_rng(T)
    cache = filled_cache(config, rng, lengths, max_len, dtype)
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (len(lengths), T)), jnp.int32)
    wanted, cache_wanted = plain_step(config, params, tokens, cache)
    got, cache_got = kernel_step(config, cpu.prepare(params), tokens, cache, suffix)
    np.testing.assert_allclose(got, wanted, atol=rtol * np.nanmax(np.abs(wanted)))
    np.testing.assert_array_equal(cache_got.length, cache_wanted.length)
    places = np.arange(max_len) - np.asarray(lengths)[:, None]
    untouched = ((places < 0) | (places >= T))[:, None, :, None]  # [B, 1, S, 1]
    got_kv, wanted_kv, old_kv = ((*c.keys, *c.values) for c in (cache_got, cache_wanted, cache))
    for ours, theirs, old in zip(got_kv, wanted_kv, old_kv, strict=True):
        ours, theirs, old = (np.asarray(leaf, np.float32) for leaf in (ours, theirs, old))
        np.testing.assert_allclose(ours, theirs, atol=rtol * 8)
        np.testing.assert_array_equal(np.where(untouched, ours, 0), np.where(untouched, old, 0))


# Elsewhere only the models whose sizes meet each loop's remainders.
CASES = [
    marked(machine, name)
    for machine in (*machines(), *aarch64.PROCESSORS)
    for name in MODELS
    if machine == "native" or name in ("window", "odd_sizes", "eight_queries")
]


@pytest.mark.parametrize(("machine", "name"), CASES)
def test_step_is_forward(machine, name):
    layers = 2 if name in ("plain", "odd_sizes") else 1  # a second one has no other sizes
    config = dataclasses.replace(BASE, num_hidden_layers=layers, **MODELS[name])
    params = random_params(config)
    for lengths, T in (((0, 12, 5), 1), ((3, 0), 4), ((2,), 40)):
        assert_same_step(config, params, lengths, T, 48, suffix_of(machine))


@pytest.mark.parametrize("changes", [dict(hidden_act="gelu_pytorch_tanh"), dict(attention_multiplier=40.0)])
def test_gates_and_scores_that_are_far_from_0(changes):
    """Where exponentials would overflow or vanish: on both sides of what a float32 holds."""
    skip_without_kernels()
    config = dataclasses.replace(BASE, num_hidden_layers=1, **changes)
    params = random_params(config)
    gates = params.layers[0].mlp.gate_up_proj * jnp.array([300.0, 1.0])[:, None, None]
    layer = dataclasses.replace(
        params.layers[0], mlp=dataclasses.replace(params.layers[0].mlp, gate_up_proj=gates)
    )
    params = dataclasses.replace(params, layers=(layer,))
    for lengths, T in (((0, 12), 1), ((2,), 40)):
        assert_same_step(config, params, lengths, T, 48, "", rtol=2e-3)


@every_machine
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.04), ("float16", 0.005)])
def test_step_in_16_bits(machine, dtype, bound):
    for changes in ({}, MODELS["half_a_panel_of_gates"]):
        config = dataclasses.replace(BASE, **changes)
        params = random_params(config, dtype=dtype)
        for lengths, T in (((7, 3), 1), ((2,), 40)):
            assert_same_step(config, params, lengths, T, 48, suffix_of(machine), dtype, bound)


@every_machine
def test_keys_are_those_of_activations_in_float32(machine):
    """Many rows meet bfloat16 weights in bfloat16 where the machine multiplies pairs; k and v in two."""
    config = dataclasses.replace(BASE, num_hidden_layers=1)
    params, rng = random_params(config, dtype="bfloat16"), np.random.default_rng(0)
    cache = KVCache.empty(config, batch=1, max_len=64, dtype="bfloat16")
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (1, 64)), jnp.int32)
    _, got = kernel_step(config, params, tokens, cache, suffix_of(machine))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    _, exact = plain_step(config, wide, tokens, KVCache.empty(config, batch=1, max_len=64, dtype="float32"))
    for ours, truth in ((got.keys[0], exact.keys[0]), (got.values[0], exact.values[0])):
        assert float(jnp.mean(ours == truth.astype(jnp.bfloat16))) > 0.98


def borders(dtype) -> np.ndarray:
    """Float32 numbers at and beside the middle of two neighbours of a narrower type, and its extremes."""
    rng, narrow = np.random.default_rng(0), jnp.dtype(dtype)
    bits = np.concatenate([rng.integers(0, 1 << 16, 400), [0, 1, 2, 0x3FF, 0x400, 0x401, 0x7BFF, 0x7C00]])
    low, high = ((bits + n).astype(np.uint16).view(narrow).astype(np.float64) for n in (0, 1))
    with np.errstate(all="ignore"):
        middle = ((low + high) / 2).astype(np.float32)
        beside = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
        found = np.concatenate([middle, *beside, low.astype(np.float32)])
    extremes = [65504, 65519.996, 65520, -65520, 1e30, -1e38, np.inf, -np.inf, np.nan, 0, -0.0]
    found = np.concatenate([found, np.float32(extremes)])
    return np.where(np.abs(found) < 2.0**-126, np.float32(0), found)  # XLA's threads take these for 0


def values_of(numbers: np.ndarray, dtype) -> np.ndarray:
    """What a step keeps, in a cache of `dtype`, of tokens whose values are these numbers of the table."""
    sizes = dict(vocab_size=len(numbers), hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    heads = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=16)
    config = dataclasses.replace(BASE, norm_placement="post", **sizes, **heads)
    params = params_of(config)
    table, qkv = np.zeros((len(numbers), 32), numbers.dtype), np.zeros((1, 3, 16, 32), np.float32)
    table[:, 0], qkv[0, 2, :, 0] = numbers, 1
    layer = params.layers[0]
    attention = dataclasses.replace(layer.attention, qkv_proj=jnp.asarray(qkv))
    layers = (dataclasses.replace(layer, attention=attention),)
    params = dataclasses.replace(params, embed_tokens=jnp.asarray(table), layers=layers)
    cache = KVCache.empty(config, batch=1, max_len=len(numbers), dtype=dtype)
    tokens = jnp.arange(len(numbers), dtype=jnp.int32)[None]
    _, got = kernel_step(config, params, tokens, cache, "", last_only=True)
    return np.asarray(got.values[0])[0, 0, :, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_narrowed_and_widened_as_numpy_does(dtype):
    skip_without_kernels()
    numbers = borders(dtype)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(jnp.dtype(dtype))
    for given, kept, wanted in ((numbers, dtype, narrow), (narrow, "float32", narrow.astype(np.float32))):
        values, known = values_of(given, kept), ~np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(values), ~known)
        np.testing.assert_array_equal(values[known], wanted[known])


@pytest.mark.parametrize("machine", [marked(name) for name in ("native", *aarch64.PROCESSORS)])
@pytest.mark.parametrize(("bits", "group", "offset"), FORMATS[1::2])
def test_step_with_quantised_weights(machine, bits, group, offset):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(BASE, intermediate_size=192)
    params = weights_like(
        random_params(config), rng, lambda shape: random_weight(rng, shape, bits, group, offset)
    )
    for lengths, T in (((7, 3), 1), ((2,), 9), ((2,), 40)):
        assert_same_step(config, params, lengths, T, 48, suffix_of(machine), rtol=2e-4)


@every_machine
def test_a_full_cache_drops_what_does_not_fit(machine):
    """And its logits are NaN, as those of `forward`."""
    params = random_params(BASE)
    assert_same_step(BASE, params, (6, 5, 2), 1, 6, suffix_of(machine))
    assert_same_step(BASE, params, (6, 5, 2), 3, 6, suffix_of(machine))
    narrow = dataclasses.replace(BASE, sliding_window=2)
    for T in (9, 70):  # the last ones look at nothing that is there
        assert_same_step(narrow, params, (3, 6), T, 6, suffix_of(machine))


@every_machine
def test_neighbours_change_nothing_and_an_unknown_token_is_nan(machine):
    params, rng = random_params(BASE), np.random.default_rng(0)
    cache = filled_cache(BASE, rng, (4, 9, 0, 2, 5), 16, "float32")
    first = kernel_step(
        BASE, params, jnp.asarray([[3], [1], [2], [5], [8]], jnp.int32), cache, suffix_of(machine)
    )[0]
    other = kernel_step(
        BASE, params, jnp.asarray([[3], [83], [9], [-1], [0]], jnp.int32), cache, suffix_of(machine)
    )[0]
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(
        np.isnan(np.asarray(other)).all(axis=(1, 2)), [False, True, False, True, False]
    )


@every_machine
@pytest.mark.parametrize("kind", [(8, 32, False), (4, 32, True), (6, 16, True)])
def test_a_quantised_text_is_the_same_numbers_among_few_and_many(machine, kind):
    """Bit for bit: 3 texts gate behind the product, 12 and 40 may in it, where the next one's blocks are
    made; where that one has none, they do not.
    """
    rng, config = np.random.default_rng(0), dataclasses.replace(BASE, sliding_window=9)
    given = random_params(config)
    kept = weights_like(given, rng, lambda shape: random_weight(rng, shape, *kind))
    mlp = dataclasses.replace(kept.layers[0].mlp, down_proj=given.layers[0].mlp.down_proj)
    mixed = dataclasses.replace(kept, layers=(dataclasses.replace(kept.layers[0], mlp=mlp), kept.layers[1]))
    cache = filled_cache(config, rng, rng.integers(0, 40, 40), 48, "float32")
    tokens = jnp.asarray(rng.integers(0, 83, (40, 1)), jnp.int32)
    for params, counts in ((cpu.prepare(kept), (3, 12)), (cpu.prepare(mixed), (20,))):
        every, _ = kernel_step(config, params, tokens, cache, suffix_of(machine))
        for count in counts:
            some = jax.tree.map(lambda leaf, n=count: leaf[:n], cache)
            few, _ = kernel_step(config, params, tokens[:count], some, suffix_of(machine))
            np.testing.assert_array_equal(few, every[:count])


@every_machine
def test_last_only_is_the_last_valid_token(machine):
    params, rng = random_params(BASE), np.random.default_rng(0)
    cache = filled_cache(BASE, rng, (4, 0, 1), 16, "float32")
    tokens, n_valid = jnp.asarray(rng.integers(0, 83, (3, 5)), jnp.int32), jnp.asarray([5, 2, 0], jnp.int32)
    every = kernel_step(BASE, params, tokens, cache, suffix_of(machine), n_valid=n_valid)[0]
    last = kernel_step(BASE, params, tokens, cache, suffix_of(machine), n_valid=n_valid, last_only=True)[0]
    wanted = every[jnp.arange(3), jnp.asarray([4, 1, 0])].at[2].set(0)
    # The head multiplies 3 rows instead of 15: on some machines its last columns are summed in another order.
    np.testing.assert_allclose(last[:, 0], wanted, atol=1e-6 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("T", [5, 40])
def test_the_last_row_alone_of_the_last_layer_is_what_it_is_among_all(T):
    """In a window, and where all of a text's tokens find the cache full or none counts. Bit for bit, but for
    the head's own sums of few rows and of many.
    """
    skip_without_kernels()
    config, rng = dataclasses.replace(BASE, sliding_window=7), np.random.default_rng(T)
    kept = weights_like(random_params(BASE), rng, lambda shape: random_weight(rng, shape, 4, 32, True))
    tokens = jnp.asarray(rng.integers(0, 83, (4, T)), jnp.int32)
    counts = [T, 0, 3, T - 1]
    for params, most in ((random_params(BASE), 1e-6), (cpu.prepare(kept), 0.0)):
        cache = filled_cache(config, rng, (6, 1, 48, 2), 48, str(params.norm.dtype))
        given = (config, params, tokens, cache, "")
        every, whole = kernel_step(*given, n_valid=jnp.asarray(counts, jnp.int32))
        last, got = kernel_step(*given, n_valid=jnp.asarray(counts, jnp.int32), last_only=True)
        ends = [(b, count - 1) for b, count in enumerate(counts) if count]
        places, every, last = np.asarray(ends).T, np.asarray(every), np.asarray(last)
        assert np.isnan(last[2]).all()
        wanted = every[tuple(places)]
        np.testing.assert_allclose(last[places[0], 0], wanted, rtol=0, atol=most * np.nanmax(np.abs(wanted)))
        for mine, theirs in zip(got.keys + got.values, whole.keys + whole.values, strict=True):
            np.testing.assert_array_equal(mine[0], theirs[0])


@every_machine
@pytest.mark.parametrize("T", [1, 5, 40, 70])
def test_what_pads_a_chunk_is_neither_computed_nor_kept(machine, T):
    """What counts is as it is beside rows that are all computed, bit for bit."""
    rng = np.random.default_rng(T)
    rope = Rope(llama_4_scaling_beta=0.3, original_max_position_embeddings=2)
    config = dataclasses.replace(BASE, rope=rope, norm_placement="both")  # each row has factors of its own
    counts, lengths = jnp.asarray([T, 0, min(T, 3), 0, max(T - 1, 1)], jnp.int32), (4, 2, 0, 1, 9)
    tokens = jnp.asarray(rng.integers(0, 83, (5, T)), jnp.int32)
    four, six = (
        weights_like(random_params(config), rng, lambda shape, k=kind: random_weight(rng, shape, *k))
        for kind in ((4, 32, True), (6, 16, True))
    )
    for params in (random_params(config, dtype="bfloat16"), cpu.prepare(four), cpu.prepare(six)):
        cache = filled_cache(config, rng, lengths, 96, str(params.norm.dtype))
        call = (config, params, tokens, cache, suffix_of(machine))
        logits, got = jax.tree.map(np.asarray, kernel_step(*call, n_valid=counts, last_only=True))
        every, whole = jax.tree.map(np.asarray, kernel_step(*call, n_valid=counts))
        for b, (count, length) in enumerate(zip(counts.tolist(), lengths, strict=True)):
            wanted, end = every[b, count - 1] if count else np.zeros_like(every[b, 0]), length + count
            np.testing.assert_allclose(logits[b, 0], wanted, atol=1e-2 * np.abs(wanted).max())
            for mine, theirs, before in zip(got.keys, whole.keys, map(np.asarray, cache.keys), strict=True):
                np.testing.assert_array_equal(mine[b, :, :end], theirs[b, :, :end])
                np.testing.assert_array_equal(mine[b, :, end:], before[b, :, end:])


@pytest.mark.parametrize("machine", [marked(name) for name in ("native", "plain_tiles", *aarch64.PROCESSORS)])
def test_any_number_of_threads_makes_the_same_numbers(machine, tmp_path, monkeypatch):
    """Bit for bit; the matrices that add to the residual stream have an odd number of 16 rows. Of nine texts'
    seven queries four and three look at keys together, unless five threads have too little to do so.
    """
    skip_without_kernels()
    for threads in ("1", "2", "3", "5"):
        monkeypatch.setenv("JLLAMA_THREADS", threads)
        register_copy(machine, tmp_path / f"{threads}.so", f"_{threads}_threads_{machine}")
    config, rng = dataclasses.replace(BASE, hidden_size=112), np.random.default_rng(0)
    dense = random_params(config, dtype="bfloat16")
    kept = weights_like(random_params(BASE), rng, lambda shape: random_weight(rng, shape, 4, 32, True))
    seven = dataclasses.replace(BASE, num_attention_heads=14)
    two, nine = (4, 9), (4, 63, 0, 15, 16, 31, 40, 47, 62)
    calls = [
        (shape, *of, two, T) for shape, *of in ((config, dense), (BASE, cpu.prepare(kept))) for T in (1, 40)
    ]
    calls += [(seven, random_params(seven, dtype=dtype), nine, 1) for dtype in ("bfloat16", "float32")]
    for shape, params, lengths, T in calls:
        cache = filled_cache(shape, rng, lengths, 64, str(params.norm.dtype))
        tokens = jnp.asarray(rng.integers(0, 83, (len(lengths), T)), jnp.int32)
        first, *others = (
            kernel_step(shape, params, tokens, cache, f"_{threads}_threads_{machine}")[0]
            for threads in (1, 2, 3, 5, 3, 5)
        )
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_a_loop_of_steps_copies_no_cache():
    skip_without_kernels()
    params, cache = random_params(BASE), KVCache.empty(BASE, batch=2, max_len=77, dtype="float32")

    def run(params, tokens, cache):
        def body(_, carry):
            logits, cache = kernel_step(BASE, params, carry[0], carry[1], "", last_only=True)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 9, body, (tokens, cache))

    tokens = jnp.asarray([[1], [2]], jnp.int32)
    program = jax.jit(run, donate_argnums=2).lower(params, tokens, cache).compile(AS_FOR_USERS)
    assert not re.search(r"f32\[2,2,77,16\]\S* copy\(", program.as_text())
    wanted, state = tokens, cache
    for _ in range(9):
        logits, state = plain_step(BASE, params, wanted, state)
        wanted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    np.testing.assert_array_equal(program(params, tokens, cache)[0], wanted)


def test_refusals():
    skip_without_kernels()
    params, cache = random_params(BASE), KVCache.empty(BASE, batch=1, max_len=4, dtype="float32")
    assert cpu.forward_refusal(BASE, params, cache) is None
    foreign = jax.tree.map(lambda leaf: leaf.astype(jnp.float8_e4m3fn), params)
    assert "float8" in str(cpu.forward_refusal(BASE, foreign, cache))
    narrow = random_weight(np.random.default_rng(0), (8, 96), 8, 8, False)
    assert "layout" in str(cpu.weight_refusal(narrow))
    assert cpu.prepare(narrow) is narrow
    last = dataclasses.replace(cache, values=(*cache.values[:-1], cache.values[-1].astype(jnp.float16)))
    assert "a cache of" in str(cpu.forward_refusal(BASE, params, last))
    mixed = dataclasses.replace(params, norm=params.norm.astype(jnp.bfloat16))
    assert "dtypes" in str(cpu.forward_refusal(BASE, mixed, cache))


def test_an_empty_cache_reads_as_zeros_where_memory_was_written_before():
    skip_without_kernels()
    for dtype, max_len in (("float32", 3), ("bfloat16", 4000), ("float16", 1111)):
        for _ in range(3):
            cache = cpu.empty_cache(BASE, batch=3, max_len=max_len, dtype=dtype)
            assert all(
                leaf.dtype == dtype and not np.asarray(leaf).any() for leaf in (*cache.keys, *cache.values)
            )
            used = jax.tree.map(lambda leaf: leaf + 1, (cache.keys, cache.values))  # of the same sizes
            jax.block_until_ready(used)
            del cache, used
    plain = KVCache.empty(BASE, batch=3, max_len=9, dtype="float32")
    cache = cpu.empty_cache(BASE, batch=3, max_len=9, dtype="float32")
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, plain)
    np.testing.assert_array_equal(cache.length, plain.length)
