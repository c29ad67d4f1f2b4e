"""The CUDA kernel of many tokens' products against plain JAX: emulated on a CPU, on a GPU with `-m gpu`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.kernels.gpu import decode_attention, exchange, few_bits, launch
from jllama.kernels.gpu import product as products
from jllama.kernels.gpu import wide_product as wide
from jllama.kernels.gpu.constants import PLAIN, Arrangement, constants
from jllama.kernels.gpu.plan import weight_format
from jllama.kernels.target import of_platform
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.kind import ScoreRule
from jllama.layers.linear import linear
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.norm import rms_norm
from tests.kernels.test_kernels_gpu import KINDS, begun, distance, shape, weights
from tests.kernels.test_kernels_gpu import wide as widened
from tests.kernels.test_kernels_gpu_attention import attention_case
from tests.kernels.test_kernels_gpu_product import LLAMA, More, bias_of, check, exact, product_case
from tests.support import emulation


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch, request):
    if "emulated" in request.node.name and emulation.COMPILER is None:
        pytest.skip("no g++")
    if "gpu" not in [mark.name for mark in request.node.iter_markers()]:
        monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
        monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
        monkeypatch.setattr(launch, "capability", lambda: (9, 0))


def unarranged(y, how, tokens):
    """`[B, C]` of activations that lie as `how` says."""
    columns = y.shape[0] * 64
    order = np.asarray(wide.arranged(jnp.arange(columns, dtype=jnp.int32)[None], Arrangement(how.bits, 1)))
    flat = np.empty((how.room, columns), np.float32)
    flat[:, order.reshape(-1)] = np.asarray(y, np.float32).transpose(2, 0, 1, 3).reshape(how.room, columns)
    return flat[:tokens]


# tokens, rows, columns, stored, dtype, gated, bits of the next weight, cut, what not every family has
CASES = [
    (19, 190, 512, "int8", "bfloat16", False, 0, dict(WM=2, X_STAGES=3), More(bias=True)),
    (32, 192, 512, "int8", "float16", False, 0, dict(WK=2, SLICES=2), More(bias=True)),
    (23, 130, 512, "int4", "bfloat16", False, 0, dict(WM=2, SLICES=3), LLAMA),
    (30, 512, 512, "int4", "bfloat16", True, 4, dict(WM=2, X_STAGES=3), More(gated="gelu")),
    (17, 256, 256, "int8", "bfloat16", True, 8, dict(WK=2), More(bias=True)),
    (30, 190, 384, "int8", "bfloat16", False, 0, dict(WM=1), LLAMA),
    (40, 320, 384, "int4", "float16", False, 0, dict(WK=2, SLICES=2), LLAMA),
    (60, 512, 384, "int4", "float16", True, 8, dict(WM=2), LLAMA),
    (20, 144, 128, "int8", "bfloat16", True, 0, dict(W_STAGES=5), LLAMA),
]
CASE = ("tokens", "rows", "columns", "stored", "dtype", "gated", "out_bits", "cut", "more")


@pytest.mark.parametrize(CASE, CASES)
def test_wide_product_emulated(tmp_path, tokens, rows, columns, stored, dtype, gated, out_bits, cut, more):
    weight, x, _, residual = product_case(tokens, rows, columns, stored, dtype)
    f = weight_format(weight)
    to = Arrangement(f.bits, -(-tokens // 8) * 8)
    how = dict(GATED=int(gated), OUT_BITS=out_bits, BIAS=int(more.bias), FP16=int(dtype == "float16"))
    shape = wide.make_shape(tokens, rows, columns, f, ACTIVATION=wide.ACTIVATIONS.index(more.gated), **how)
    same = dict(WM=1, WK=1, SLICES=1, W_STAGES=4, X_STAGES=4)
    shape = dataclasses.replace(shape, **same | cut)
    kernel = emulation.Emulated(
        tmp_path,
        wide.wide_source(shape),
        "jllama_wide_product",
        6,
        grid=shape.tiles * shape.SLICES,
        threads=shape.threads,
        shared=shape.shared,
    )
    arrays = [wide.arranged(x, to), bias_of(weight).astype(x.dtype), *products.weight_parts(weight)]
    results = []
    for _ in range(2):
        out = np.full(shape.result, np.nan, x.dtype if gated else np.float32)
        kernel([*(np.array(a) for a in arrays), out])
        results.append(np.asarray(out, np.float32))
    np.testing.assert_array_equal(*results)
    ours = results[0] if gated else results[0].sum(axis=0)
    if out_bits:
        ours = unarranged(ours, Arrangement(out_bits, to.room), tokens)
    follows = products.GATED if gated else products.NOTHING
    check(ours, exact(weight, x, None, residual, follows, more), dtype, stored, follows)


def test_products_fit():
    for stored in ("int8", "int4"):
        f = weight_format(product_case(1, 2, 256, stored, "bfloat16")[0])
        for rows, columns in ((2048, 5632), (4096, 14336), (28672, 4096), (128256, 2048)):
            for tokens in (17, 32, 33, 64, 128):
                for gated in (0, 1):
                    shape = wide.make_shape(tokens, rows, columns, f, GATED=gated)
                    assert shape.shared <= 232448 // (1 + gated)
                    assert min(shape.W_STAGES, shape.X_STAGES) >= 4
                    assert 1 + (shape.WK - 1) * (2 if f.bits == 4 else 1) < shape.X_STAGES


@pytest.mark.gpu
@pytest.mark.parametrize("stored", ["int8", "int4"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"),
    [(17, 2560, 2048), (33, 2048, 5632), (128, 11264, 2048), (100, 4096, 14336)],
)
def test_wide_product(tokens, rows, columns, stored, gated):
    weight, x, _, residual = product_case(tokens, rows, columns, stored, "bfloat16")
    how = wide.arrangement(weight, tokens)

    @jax.jit
    def run(weight, x):
        y = wide.wide_product(weight, wide.arranged(x, how), tokens, gated="silu" if gated else None)
        return y if gated else jnp.sum(y, axis=0)

    first = np.asarray(run(weight, x), np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(np.asarray(run(weight, x), np.float32), first)
    follows = products.GATED if gated else products.NOTHING
    check(first, exact(weight, x, None, residual, follows), "bfloat16", stored, follows)


@pytest.mark.gpu
@pytest.mark.parametrize("stored", ["int8", "int4"])
@pytest.mark.parametrize(("rows", "prompt"), [(20, 3), (33, 16), (128, 5)])
def test_prompts_and_steps_of_many_texts(stored, rows, prompt):
    """A prompt, a second chunk of it and a token of each row, as near to float32 as the plain model is."""
    config, target = shape(256, 512, 2, 4, 2, 64, vocab=300), of_platform("gpu")
    params = weights(config, stored)
    ours = twin = KVCache.empty(config, batch=rows, max_len=2 * prompt + 1, dtype="bfloat16")
    run = jax.jit(kernels.forward, static_argnums=0, static_argnames=("target", "fresh"))
    plain = jax.jit(model.forward, static_argnums=0, static_argnames="last_only")
    exact_cache = widened(twin)
    for number, count in enumerate((prompt, prompt, 1)):
        key = jax.random.fold_in(jax.random.key(4), number)
        tokens = jax.random.randint(key, (rows, count), 0, config.vocab_size, jnp.int32)
        valid = jnp.full((rows,), count, jnp.int32)
        logits, ours = run(config, params, tokens, ours, n_valid=valid, target=target, fresh=not number)
        near, twin = plain(config, params, tokens, twin, last_only=True)
        with jax.default_matmul_precision("highest"):
            wanted, exact_cache = plain(config, widened(params), tokens, exact_cache, last_only=True)
        assert distance(logits, wanted) < 1.5 * distance(near, wanted) + 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_attention_for_such_a_product_emulated(monkeypatch, tmp_path, bits):
    """The numbers are those of the plain order, each in its place."""
    monkeypatch.setattr(launch, "refusal", lambda: None)
    qkv, rope, cache = attention_case(5, 2, 2, 64, 40, "bfloat16")
    plain = decode_attention.make_shape(5, 2, 2, 64, 40, None, qkv.dtype, constants(ScoreRule(), rope))
    mixed = []
    parts = np.asarray(jax.random.normal(jax.random.key(5), (3, *qkv.shape)), np.float32)
    qkv = jnp.asarray(parts[0] + parts[1] + parts[2]).astype(qkv.dtype)
    for how, slices in ((PLAIN, 0), (Arrangement(bits, 8), 3)):
        shape = dataclasses.replace(plain, ARRANGED=how.bits, ROOM=how.room, SLICES=slices)
        kernel = emulation.Emulated(
            tmp_path,
            decode_attention.attention_source(shape),
            "jllama_attention",
            10 + (shape.P > 1),
            grid=10 * shape.P,
            threads=shape.WARPS * 32,
            shared=shape.shared,
        )
        given = parts if slices else qkv
        arrays = [np.array(a) for a in (given, *rope, cache.length, cache.places, cache.keys, cache.values)]
        out = np.full(how.shape(5, 256), np.nan, qkv.dtype)
        shares = np.full((10 * shape.P, 2 * 66), np.nan, np.float32)
        kernel([*arrays, out, *arrays[5:], shares][: 10 + (shape.P > 1)])
        mixed.append(out)
    np.testing.assert_array_equal(unarranged(mixed[1], how, 5), np.asarray(mixed[0], np.float32))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_norm_for_such_a_product_emulated(tmp_path, bits):
    rows, D, random = 3, 2176, np.random.default_rng(4)
    x = random.normal(size=(2, rows, D)).astype(np.float32)
    residual, weight = (random.normal(size=s).astype(jnp.bfloat16) for s in ((rows, D), D))
    found = []
    for how in (PLAIN, Arrangement(bits, 8)):
        shape = exchange.NormShape(1, rows, D, 2, "1e-5f", ARRANGED=how.bits, ROOM=how.room)
        kernel = emulation.Emulated(
            tmp_path, exchange.exchange_norm_source(shape), "jllama_exchange_norm", 8,
            grid=rows, threads=exchange.NORM_SIZE, shared=64,
        )  # fmt: skip
        out, normed = np.zeros((rows, D), jnp.bfloat16), np.zeros(how.shape(rows, D), jnp.bfloat16)
        kernel([weight, weight, x, residual, weight, weight, out, normed])
        found.append(normed)
    np.testing.assert_array_equal(unarranged(found[1], how, rows), np.asarray(found[0], np.float32))


def plain_product(weight, x, tokens, *, bias=None, gated=None, out=PLAIN, most=8):
    """The twin of `wide_product`: it finds every number in its place."""
    x = jnp.asarray(unarranged(x, wide.arrangement(weight, tokens), tokens), x.dtype)
    y = linear(weight, x, bias, dtype=jnp.float32)
    if gated is None:
        return y.reshape(1, tokens, -1)
    return wide.arranged((ACTIVATIONS[gated](y[:, 0]) * y[:, 1]).astype(x.dtype), out)


FAMILY = dict(vocab=50, attention_bias=True, mlp_bias=True, residual_multiplier=0.5, logits_scaling=2.0)


@pytest.mark.parametrize(("stored", "more"), [("int8", KINDS | dict(qk_norm="head")), ("int4", KINDS)])
def test_a_step_of_such_products_is_the_models(monkeypatch, stored, more):
    config = shape(128, 256, 2, 4, 2, 32, **FAMILY, **more)
    params, tokens = weights(config, stored), jnp.array([[3], [7], [9]], jnp.int32)

    def sums(peers, x, residual, weight, *, eps, offset, bias, by, arrangement):
        added = (jnp.sum(x, axis=0) + bias.astype(jnp.float32)[None]) * by + residual.astype(jnp.float32)
        added = added.astype(residual.dtype)
        return added, wide.arranged(rms_norm(weight, added, eps, offset), arrangement)

    def attend(y, *given, arrangement):
        given = (jnp.sum(y, axis=0).astype(jnp.bfloat16) if y.ndim == 6 else y, *given)
        mixed, cache = append_and_attend(*given, None)
        return wide.arranged(mixed.reshape(3, -1), arrangement), cache

    monkeypatch.setattr(few_bits, "exchanged_norm", sums)
    monkeypatch.setattr(few_bits, "decode_attend", attend)
    monkeypatch.setattr(few_bits, "wide_product", plain_product)
    cache = begun(config)
    places = model.places(config, cache.length[:, None], cache.length + 1)
    logits, new = few_bits.few_bits_step(config, params, tokens, cache, places)
    twin, twin_cache = model.forward(config, params, tokens, cache)
    assert distance(logits, twin) < 0.01
    for ours, its in zip(new.keys + new.values, twin_cache.keys + twin_cache.values, strict=True):
        assert distance(ours, its) < 0.01
