"""`forward`: one answer, however the text is cut, padded, batched or transformed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import model
from jllama.config import LayerKind, ModelConfig
from jllama.layers.attention import attention
from jllama.layers.cache import KVCache
from jllama.layers.kind import ScoreRule
from jllama.layers.mlp import mlp
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope, rope_tables
from jllama.model import Params, forward
from tests.support import reference
from tests.support.checkpoint_generator import random_tensors
from tests.support.helpers import full_logits, params_from, random_params
from tests.support.small_models import SMALL_MODELS

LENGTH = 24
SHAPES = ("gqa3", "all_biases_tied", "mistral_window", "dynamic", "yarn", "head_dim_26")
# The same sums in another order: a few float32 roundings of logits that reach about 5.
SAME = 2e-5
DTYPES = ("float32", "bfloat16")

jitted = jax.jit(forward, static_argnums=0, static_argnames="last_only")


def ints(*values: int) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


def make(name: str) -> tuple[ModelConfig, Params]:
    config = ModelConfig.from_hf(SMALL_MODELS[name] | {"max_position_embeddings": 16})
    return config, random_params(config)


def text(batch: int = 1, length: int = LENGTH, seed: int = 5) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 97, (batch, length)), jnp.int32)


def empty(config: ModelConfig, batch: int = 1, max_len: int = 40) -> KVCache:
    return KVCache.empty(config, batch=batch, max_len=max_len, dtype="float32")


def step(config: ModelConfig, params: Params, tokens: jax.Array, cache: KVCache, valid, context):
    """One call whose shapes many tests share, so that it compiles once for each length."""
    return jitted(config, params, tokens, cache, n_valid=ints(*valid), context=ints(*context))


def truth(name: str, tokens: jax.Array) -> np.ndarray:
    """Logits `[B, T, V]` of the float64 reference."""
    keys = SMALL_MODELS[name] | {"max_position_embeddings": 16}
    tensors = random_tensors(keys)
    return np.stack([reference.model(keys, tensors, row) for row in np.asarray(tokens)])


@pytest.mark.parametrize("name", SHAPES)
def test_prefill_and_decode_equal_one_forward(name):
    """However the text is cut; for `dynamic`, as long as each call is told how long it will be."""
    config, params = make(name)
    tokens = text(batch=3)
    whole = truth(name, tokens)
    for sizes in ([8, 8] + [1] * 8, [8, 8, 8]):
        cache, at = empty(config, 3), 0
        for size in sizes:
            new = tokens[:, at : at + size]
            logits, cache = step(config, params, new, cache, [size] * 3, [LENGTH] * 3)
            np.testing.assert_allclose(logits, whole[:, at : at + size], rtol=0, atol=SAME)
            at += size
        assert at == LENGTH


@pytest.mark.parametrize("length", [10, 24])
def test_dynamic_without_context_uses_the_text_so_far(length):
    """As one Hugging Face forward over the text that the call completes."""
    config, params = make("dynamic")
    tokens = text(length=length)
    logits, _ = jitted(config, params, tokens, empty(config))
    np.testing.assert_allclose(logits, truth("dynamic", tokens), rtol=0, atol=SAME)


@pytest.mark.parametrize("name", SHAPES)
def test_padding_changes_nothing(name):
    """Neither this call's logits nor the next call's, with rows of different lengths."""
    config, params = make(name)
    tokens, valid, more = text(batch=3, length=16), np.array([3, 8, 5]), np.array([8, 2, 7])
    total = valid + more
    padded = jnp.where(jnp.arange(8)[None] < valid[:, None], tokens[:, :8], -1)
    first, cache = step(config, params, padded, empty(config, 3), valid, total)
    np.testing.assert_array_equal(cache.length, valid)
    rest = jnp.stack([tokens[row, n : n + 8] for row, n in enumerate(valid)])
    second, cache = step(config, params, rest, cache, more, total)
    np.testing.assert_array_equal(cache.length, total)
    for row, (n, end) in enumerate(zip(valid, total, strict=True)):
        alone = truth(name, tokens[row : row + 1, :end])[0]
        np.testing.assert_allclose(first[row, :n], alone[:n], rtol=0, atol=SAME)
        np.testing.assert_allclose(second[row, : end - n], alone[n:], rtol=0, atol=SAME)


def test_a_row_without_new_tokens_stays_as_it_was():
    config, params = make("gqa3")
    tokens = text(batch=3, length=17)
    _, cache = step(config, params, tokens[:, :8], empty(config, 3), [6, 6, 6], [6, 6, 6])
    _, idle = step(config, params, tokens[:, 8:16], cache, [0, 2, 8], [6, 8, 14])
    np.testing.assert_array_equal(idle.length, [6, 8, 14])
    logits, _ = step(config, params, tokens[:, 16:], idle, [1, 1, 1], [7, 9, 15])
    alone = truth("gqa3", jnp.concatenate([tokens[:1, :6], tokens[:1, 16:]], axis=1))
    np.testing.assert_allclose(logits[0, 0], alone[0, -1], rtol=0, atol=SAME)


def test_neighbours_and_the_cache_length_change_nothing():
    config, params = make("gqa3")
    tokens = text(batch=3)
    together = full_logits(config, params, tokens)
    alone = [full_logits(config, params, tokens[row : row + 1], max_len=33)[0] for row in range(3)]
    np.testing.assert_allclose(np.stack(alone), together, rtol=0, atol=SAME)


def test_last_only_is_the_last_valid_token():
    config, params = make("gqa3")
    tokens, n_valid = text(batch=3), ints(1, 24, 10)
    everything, whole = jitted(config, params, tokens, empty(config, 3), n_valid=n_valid)
    last, cache = jitted(config, params, tokens, empty(config, 3), n_valid=n_valid, last_only=True)
    assert last.shape == (3, 1, config.vocab_size)
    for row, n in enumerate((1, 24, 10)):
        np.testing.assert_allclose(last[row, 0], everything[row, n - 1], rtol=0, atol=SAME)
    np.testing.assert_array_equal(cache.length, n_valid)
    for ours, theirs in zip(cache.keys + cache.values, whole.keys + whole.values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_eager_equals_jitted(dtype):
    config = dataclasses.replace(make("gqa3")[0], num_hidden_layers=1)
    params, cache = random_params(config, dtype=dtype), KVCache.empty(config, batch=3, max_len=8, dtype=dtype)
    eager, after = forward(config, params, text(3, 3), cache)
    compiled, _ = jitted(config, params, text(3, 3), cache)
    assert eager.dtype == jnp.float32
    assert after.keys[0].dtype == after.values[0].dtype == dtype
    # XLA fuses away roundings between operations.
    bound = {"bfloat16": 0.2, "float16": 0.03}[dtype]
    np.testing.assert_allclose(eager, compiled, rtol=0, atol=bound)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 3])
def test_bfloat16_of_every_shape(batch, length):
    """XLA's CPU backend has bfloat16 products for some layouts only: each of ours must be one of those."""
    config = dataclasses.replace(make("gqa3")[0], num_hidden_layers=1)
    wide, narrow = (
        full_logits(config, random_params(config, dtype=d), text(batch, length), d) for d in DTYPES
    )
    np.testing.assert_allclose(narrow, wide, rtol=0, atol=0.3)


def test_an_old_cache_stays_valid():
    """Two continuations from one cache: forking a conversation costs nothing."""
    config, params = make("gqa3")
    _, cache = jitted(config, params, text(length=8), empty(config))
    before = jax.tree.map(np.array, cache)
    left, _ = jitted(config, params, text(length=4, seed=1), cache)
    jitted(config, params, text(length=4, seed=2), cache)
    again, _ = jitted(config, params, text(length=4, seed=1), cache)
    np.testing.assert_array_equal(left, again)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, cache))


def test_rewinding_forgets():
    config, params = make("gqa3")
    tokens = text()
    _, cache = jitted(config, params, tokens[:, :20], empty(config))
    logits, _ = jitted(config, params, tokens[:, 12:], cache.rewind(ints(12)))
    np.testing.assert_allclose(logits, truth("gqa3", tokens)[:, 12:], rtol=0, atol=SAME)


@pytest.mark.parametrize("token", [-1, 97, 2**30])
def test_a_token_outside_the_vocabulary_is_nan_for_its_row_alone(token):
    config, params = make("gqa3")
    tokens = text(batch=2, length=4).at[0, 2].set(token)
    logits, _ = jitted(config, params, tokens, empty(config, 2))
    assert np.isnan(np.asarray(logits[0, 2:])).all()
    np.testing.assert_allclose(logits[1:], truth("gqa3", tokens[1:]), rtol=0, atol=SAME)


def test_vmap_over_texts():
    config, params = make("gqa3")
    tokens = text(batch=6).reshape(3, 2, LENGTH)

    def one(tokens: jax.Array) -> jax.Array:
        return forward(config, params, tokens, empty(config, 2))[0]

    mapped = jax.vmap(one)(tokens).reshape(6, LENGTH, -1)
    np.testing.assert_allclose(mapped, full_logits(config, params, tokens.reshape(6, -1)), rtol=0, atol=SAME)


def test_vmap_over_parameters():
    config = make("tied")[0]
    several = [random_params(config, seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    mapped = jax.jit(jax.vmap(lambda p: forward(config, p, text(), empty(config))[0]))(stacked)
    for ours, params in zip(mapped, several, strict=True):
        np.testing.assert_allclose(ours, full_logits(config, params, text()), rtol=0, atol=SAME)


@pytest.mark.parametrize("name", ["all_biases_tied", "mistral_window", "yarn"])
def test_grad_against_differences_of_the_reference(name):
    """Along a random direction through all weights at once: one central difference in float64."""
    keys = SMALL_MODELS[name]
    config, tokens = ModelConfig.from_hf(keys), text(length=12)
    tensors, direction = random_tensors(keys), random_tensors(keys, seed=9)
    weigh = np.random.default_rng(2).normal(size=(12, config.vocab_size))

    def loss(params: Params) -> jax.Array:
        logits = forward(config, params, tokens, empty(config))[0][0]
        return jnp.sum(logits * jnp.asarray(weigh, jnp.float32))

    def reference_loss(step: float) -> float:
        moved = {key: tensors[key] + step * np.float64(direction[key]) for key in tensors}
        return float(np.sum(reference.model(keys, moved, np.asarray(tokens[0])) * weigh))

    params, along = (params_from(config, values) for values in (tensors, direction))
    gradient = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))
    ours = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
    truth = (reference_loss(1e-5) - reference_loss(-1e-5)) / 2e-5
    assert ours == pytest.approx(truth, rel=1e-4)


def test_quantised_weights_serve_everywhere():
    """int8 leaves in place of arrays: `forward` does not change, and equals its own dequantised weights."""
    config, params = make("gqa3")
    exact = jax.tree.map(jnp.round, jax.tree.map(lambda w: w * 50, params))

    def quantise(w: jax.Array) -> QTensor:
        rows = w.reshape(-1, w.shape[-1]).astype(jnp.int8)
        scales = jnp.full((rows.shape[0], w.shape[-1] // 8), 0.02, jnp.float32)
        return QTensor(values=rows, scales=scales, offsets=None, shape=w.shape, bits=8)

    def convert(leaf: jax.Array, function) -> jax.Array | QTensor:
        return function(leaf) if leaf.ndim > 1 else leaf * 0.02

    plain = jax.tree.map(lambda leaf: convert(leaf, lambda w: w * 0.02), exact)
    small = jax.tree.map(lambda leaf: convert(leaf, quantise), exact)
    ours, wanted = (full_logits(config, p, text()) for p in (small, plain))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=5e-5)


def by_hand(config, params, tokens, kinds):
    """The model's layers one after the other, each with the window and the rotation of its own kind."""
    cache = KVCache.empty(config, batch=len(tokens), max_len=tokens.shape[1], dtype="float32")
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x = model.embed(config, params, tokens)
    for layer, p in enumerate(params.layers):
        kind = kinds[layer % len(kinds)]
        rope = kind.rope and rope_tables(kind.rope, config.head_dim, positions, cache.length)
        normed = rms_norm(p.attn_norm, x, config.rms_norm_eps)
        x = (
            x
            + attention(p.attention, normed, cache.layer(layer), rope=rope, scores=ScoreRule(kind.window))[0]
        )
        x = x + mlp(p.mlp, rms_norm(p.ffn_norm, x, config.rms_norm_eps), config.hidden_act)
    return model.unembed(config, params, x)


KINDS = (LayerKind(window=4), LayerKind(rope=None), LayerKind(window=6, rope=Rope(rope_theta=100.0)))


def test_layers_of_several_kinds(tiny_config):
    config = dataclasses.replace(tiny_config, num_hidden_layers=5, layer_kinds=KINDS)
    params = random_params(config)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 16)), jnp.int32)
    cache = KVCache.empty(config, batch=2, max_len=16, dtype="float32")
    ours, cache = forward(config, params, tokens[:, :9], cache)
    more, _ = forward(config, params, tokens[:, 9:], cache)
    wanted = by_hand(config, params, tokens, KINDS)
    np.testing.assert_allclose(np.concatenate([ours, more], axis=1), wanted, rtol=0, atol=1e-4)
    for alike in ((KINDS[0],), (KINDS[1],), ()):
        other = by_hand(config, params, tokens, alike or (config.kind_of(0),))
        assert np.abs(other - wanted).max() > 1e-2


def test_a_kind_is_traced_once(tiny_config, monkeypatch):
    config = dataclasses.replace(tiny_config, num_hidden_layers=7, layer_kinds=KINDS, rms_norm_eps=3e-5)
    params, traced = random_params(config), []

    def seen(*args, scores, **more):
        traced.append(scores.window)
        return attention(*args, scores=scores, **more)

    monkeypatch.setattr(model, "attention", seen)
    cache = KVCache.empty(config, batch=1, max_len=8, dtype="float32")
    jax.eval_shape(functools.partial(forward, config), params, jnp.zeros((1, 3), jnp.int32), cache)
    assert sorted(traced, key=str) == [4, 6, None]
