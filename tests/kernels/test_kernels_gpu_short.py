"""A short chunk by a batch's kernels is the plain model's: every family, with plain twins of the kernels."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.kernels import chunks
from jllama.kernels.gpu import batch, few_bits, launch, short_chunk, wide_batch
from jllama.kernels.gpu import wide_product as wide_products
from jllama.kernels.target import Target
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.norm import rms_norm
from tests.kernels.test_kernels_gpu import distance, shape, weights, wide
from tests.kernels.test_kernels_gpu_batch import CONFIGS, plain_product
from tests.kernels.test_kernels_gpu_families import family_weights
from tests.kernels.test_kernels_gpu_wide import FAMILY, KINDS
from tests.kernels.test_kernels_gpu_wide import plain_product as plain_wide_product

LENGTHS, VALID, T = (0, 21), (5, 3), 6
GPU = Target("gpu")


@pytest.fixture(autouse=True)
def plain_twins(monkeypatch):
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    monkeypatch.setattr(launch, "capability", lambda: (9, 0))
    monkeypatch.setattr(batch, "product", plain_product)
    monkeypatch.setattr(few_bits, "wide_product", plain_wide_product)
    for module in (few_bits, wide_batch):
        monkeypatch.setattr(module, "exchanged_norm", plain_sums)
    monkeypatch.setattr(short_chunk, "chunk_attend", lambda *call, fresh: append_and_attend(*call, None))


def plain_sums(peers, x, residual, weight, *, eps, offset, bias, by, arrangement=wide_products.PLAIN):
    added = jnp.sum(x, axis=0) + (0 if bias is None else bias.astype(jnp.float32)[None])
    added = (added * by + residual.astype(jnp.float32)).astype(residual.dtype)
    return added, wide_products.arranged(rms_norm(weight, added, eps, offset), arrangement)


def filled(config, dtype):
    key, count = jax.random.key(2), config.num_hidden_layers
    cache = KVCache.empty(config, batch=2, max_len=32, dtype=dtype)
    noise = [
        jax.random.normal(jax.random.fold_in(key, i), cache.keys[0].shape, dtype) for i in range(2 * count)
    ]
    return KVCache(
        keys=tuple(noise[:count]), values=tuple(noise[count:]), length=jnp.array(LENGTHS, jnp.int32)
    )


def tokens_of(config):
    return jax.random.randint(jax.random.key(5), (2, T), 0, config.vocab_size, jnp.int32)


def read(config, params, cache):
    valid = jnp.array(VALID, jnp.int32)
    return short_chunk.short_step(config, params, tokens_of(config), cache, valid, None, False)


def plain(config, params, cache):
    valid = jnp.array(VALID, jnp.int32)
    return jax.jit(model.forward, static_argnums=0, static_argnames="last_only")(
        config, params, tokens_of(config), cache, n_valid=valid, last_only=True
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("most", [16, 4], ids=["products", "wide"])
def test_a_familys_chunk_is_the_plain_models(monkeypatch, name, most):
    config = CONFIGS[name]
    params, cache = family_weights(config, "bf16"), filled(config, "bfloat16")
    monkeypatch.setattr(batch, "MAX_PLAIN", most)
    reason = kernels.short_refusal(config, params, tokens_of(config), cache, GPU)
    if most == 4 and config.norm_placement != "pre":
        assert "placed" in reason
        return
    assert reason is None
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with jax.default_matmul_precision("highest"):
        logits, new = read(config, exact, filled(config, "float32"))
        wanted, twin = plain(config, exact, filled(config, "float32"))
    np.testing.assert_allclose(logits, wanted, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(new.length, twin.length)
    for ours, theirs in zip(new.keys + new.values, twin.keys + twin.values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stored", "more"), [("int8", KINDS | dict(qk_norm="head")), ("int4", KINDS)])
@pytest.mark.parametrize("most", [16, 4], ids=["products", "few bits"])
def test_a_chunk_of_few_bits_is_the_plain_models(monkeypatch, stored, more, most):
    config = shape(128, 256, 3, 4, 2, 32, **FAMILY, **more)
    params, cache = weights(config, stored), filled(config, "bfloat16")
    monkeypatch.setattr(batch, "MAX_PLAIN", most)
    assert kernels.short_refusal(config, params, tokens_of(config), cache, GPU) is None
    logits, new = read(config, params, cache)
    near, twin = plain(config, params, cache)
    with jax.default_matmul_precision("highest"):
        wanted, exact = plain(config, wide(params), wide(cache))
    assert distance(logits, wanted) < 1.2 * distance(near, wanted) + 1e-3
    np.testing.assert_array_equal(new.length, twin.length)
    for ours, its, theirs in zip(*(c.keys + c.values for c in (new, twin, exact)), strict=True):
        assert distance(ours, theirs) < 1.2 * distance(its, theirs) + 1e-3


LLAMA = shape(128, 256, 2, 4, 2, 32, vocab=50)


def asked(config, params, rows, T, **more):
    cache = jax.eval_shape(lambda: KVCache.empty(config, batch=rows, max_len=64, dtype="bfloat16"))
    cache = dataclasses.replace(cache, **more)
    return kernels.short_refusal(config, params, jax.ShapeDtypeStruct((rows, T), jnp.int32), cache, GPU)


@pytest.mark.parametrize(
    ("stored", "rows", "T", "known"),
    [
        ("bf16", 1, 16, True),
        ("bf16", 4, 64, True),
        ("bf16", 1, 257, False),
        ("int8", 1, 32, True),
        ("int4", 2, 64, True),
        ("int8", 1, 129, False),
        ("bf16", 2, 1, False),  # a step
    ],
)
def test_how_many_tokens_are_known(stored, rows, T, known):
    reason = asked(LLAMA, weights(LLAMA, stored), rows, T)
    assert (reason is None) == known
    assert known or str(rows * T) in reason or T == 1


def test_what_a_short_chunk_does_not_know(monkeypatch):
    params = weights(LLAMA, "bf16")
    assert asked(LLAMA, params, 1, 16) is None
    assert "float32" in asked(LLAMA, params, 1, 16, keys=(jnp.zeros((1, 2, 64, 32)),) * 2)
    strange = dataclasses.replace(params.layers[0], ffn_post_norm=params.norm)
    assert asked(LLAMA, dataclasses.replace(params, layers=(strange, params.layers[1])), 1, 16) is None
    tokens, cache = tokens_of(LLAMA), filled(LLAMA, "bfloat16")
    for target in (Target("gpu", kernels=False), Target("cpu"), Target("gpu", mesh="two of them")):
        assert kernels.short_refusal(LLAMA, params, tokens, cache, target) is not None
    monkeypatch.setattr(launch, "capability", lambda: (8, 0))
    assert "8" in asked(LLAMA, params, 1, 16)


class TakenError(Exception):
    pass


@pytest.mark.parametrize(("last_only", "T", "taken"), [(True, 6, True), (False, 6, False), (True, 1, False)])
def test_only_the_last_tokens_logits_are_read_so(monkeypatch, last_only, T, taken):
    def raising(*given):
        raise TakenError

    monkeypatch.setattr(short_chunk, "short_step", raising)
    monkeypatch.setattr(kernels.gpu, "short_step", raising, raising=False)
    monkeypatch.setattr(kernels, "gpu_attention", lambda *_: None)
    monkeypatch.setattr(kernels, "refusal", lambda *_: "no step")
    tokens, params = tokens_of(LLAMA)[:, :T], weights(LLAMA, "bf16")
    how = dict(n_valid=jnp.ones(2, jnp.int32), target=GPU, last_only=last_only)
    with pytest.raises(TakenError) if taken else contextlib.nullcontext():
        kernels.forward(LLAMA, params, tokens, filled(LLAMA, "bfloat16"), **how)


@pytest.mark.parametrize(("most", "short"), [(16, (16,)), (32, (16, 32)), (64, (16,)), (8, ())])
def test_sizes_of_chunks(monkeypatch, most, short):
    """A GPU has short ones where they are known, which is asked once."""
    params = jax.tree.map(lambda leaf: leaf, weights(LLAMA, "bf16"))  # which nobody has asked for
    cache, asked = filled(LLAMA, "bfloat16"), []

    def refusal(config, params, cache, tokens):
        asked.append(tokens.shape)
        return None if tokens.shape[1] <= most else "too long"

    monkeypatch.setattr(kernels.gpu, "short_refusal", refusal, raising=False)
    for _ in range(3):
        assert kernels.chunk_sizes(LLAMA, params, cache, GPU) == (*short, *GPU.chunk_sizes)
    assert asked[:2] == [(1, 16), (1, 32)]
    count = len(asked)
    again = jax.tree.map(lambda leaf: leaf, params)
    kernels.chunk_sizes(LLAMA, again, cache, GPU)
    assert len(asked) == 2 * count == (6 if short else 4)
    known, name = len(chunks._FOUND), id(again)
    del again
    assert name not in chunks._FOUND
    assert len(chunks._FOUND) == known - 1
    cpu = Target("cpu")
    assert kernels.chunk_sizes(LLAMA, params, cache, cpu) == cpu.chunk_sizes
    plain = Target("gpu", kernels=False)
    assert kernels.chunk_sizes(LLAMA, params, cache, plain) == plain.chunk_sizes
    assert len(asked) == 2 * count
