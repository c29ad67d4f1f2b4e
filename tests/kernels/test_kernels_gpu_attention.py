"""The CUDA kernel of a batch's attention against plain JAX: emulated on a CPU, on a GPU with `-m gpu`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import decode_attention, launch
from jllama.kernels.gpu.constants import constants
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule
from jllama.layers.rope import Rope, rope_tables
from tests.support import emulation
from tests.support.placed import gathered, scattered

attend = jax.jit(append_and_attend, static_argnums=3)
rotations = jax.jit(rope_tables, static_argnums=(0, 1))


@pytest.fixture
def multiprocessors(monkeypatch):
    """How many there are in the emulation; set `count[0]`."""
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    count = [4]
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: count[0])
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    return count


def attention_case(batch, kv_heads, group, head_dim, max_len, dtype, part=1.0):
    """A product q·k·v, a cache of noise with poison behind each row's end, the ends from empty to full.

    `part`: of each head, which is rotated.
    """
    length = np.linspace(0, max_len, batch).astype(np.int32)
    qkv, cache = drawn_case(1, length, kv_heads, group, head_dim, max_len, dtype, 3)
    turn = Rope(partial_rotary_factor=part)
    rope = rotations(turn, head_dim, length[:, None], length + 1) if part else None
    return qkv, rope, cache


def drawn_case(tokens, length, kv_heads, group, head_dim, max_len, dtype, seed):
    """q·k·v of so many tokens, and a cache, by NumPy: a program for each shape would take longer."""
    generator, rows = np.random.default_rng(seed), len(length)
    live = (np.arange(max_len) < length[:, None])[:, None, :, None]
    qkv = generator.standard_normal((rows, tokens, kv_heads, group + 2, head_dim), np.float32)
    keys, values = generator.standard_normal((2, rows, kv_heads, max_len, head_dim), np.float32)
    keys, values = (jnp.asarray(np.where(live, a, np.nan).astype(dtype)) for a in (keys, values))
    return jnp.asarray(qkv.astype(dtype)), LayerCache(keys=keys, values=values, length=jnp.asarray(length))


def widened(a):
    """In float32, without the poison."""
    return jnp.asarray(np.nan_to_num(np.asarray(a, np.float32)))


def check(qkv, rope, cache, scores, mixed, new: LayerCache) -> None:
    """The mixed values of float32 arithmetic; the new token in its place, all else untouched, poison too."""
    wide = [widened(a) for a in (qkv, cache.keys, cache.values)]
    start = dataclasses.replace(cache, keys=wide[1], values=wide[2])
    with jax.default_matmul_precision("highest"):
        exact, _ = attend(wide[0], start, rope, scores, None)
    mixed, exact = (np.asarray(a, np.float64) for a in (mixed, exact))
    np.testing.assert_array_equal(np.isnan(mixed), np.isnan(exact))  # a full cache, out of a window of one
    assert np.linalg.norm(np.nan_to_num(mixed - exact)) < 5e-3 * np.linalg.norm(np.nan_to_num(exact))
    _, twin = attend(qkv, cache, rope, scores, None)
    for ours, theirs in ((new.keys, twin.keys), (new.values, twin.values)):
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=2**-7, atol=1e-6
        )


# batch, kv heads, group, head_dim, max_len, dtype, scores, the part of a head that is rotated
CASES = [
    (5, 2, 4, 64, 300, "bfloat16", ScoreRule(), 1.0),
    (3, 1, 16, 32, 520, "float16", ScoreRule(100), 1.0),
    (3, 2, 3, 128, 70, "bfloat16", ScoreRule(33), 1.0),
    (4, 1, 8, 96, 40, "bfloat16", ScoreRule(1), 1.0),
    (3, 1, 4, 256, 300, "bfloat16", ScoreRule(90, 0.1), 1.0),
    (2, 2, 9, 64, 200, "bfloat16", ScoreRule(None, 0.3, 5.0), 0.0),
    (2, 1, 2, 128, 150, "float16", ScoreRule(), 0.75),
    (2, 1, 12, 160, 100, "float16", ScoreRule(None, None, 2.0), 0.2),
]
CASE = ("batch", "kv_heads", "group", "head_dim", "max_len", "dtype", "scores", "part")
# Multiprocessors: heads share one; one each; several for each head. A case has those that change its kernel.
FEW, EQUAL, MANY = 1, 8, 30
COUNTS = [(FEW, EQUAL, MANY), *[(FEW, MANY)] * 6, (MANY,)]


@pytest.mark.parametrize(
    (*CASE, "count"),
    [(*case, count) for case, counts in zip(CASES, COUNTS, strict=True) for count in counts],
)
def test_attention_emulated(
    multiprocessors, tmp_path, batch, kv_heads, group, head_dim, max_len, dtype, scores, part, count
):
    multiprocessors[0] = count
    case = attention_case(batch, kv_heads, group, head_dim, max_len, dtype, part)
    emulated_attention(tmp_path, case, scores)


def emulated_attention(tmp_path, case, scores) -> None:
    """The kernel for a case, run twice."""
    qkv, rope, cache = case
    batch, kv_heads, width, head_dim = qkv.shape[0], *qkv.shape[2:]
    group = width - 2
    sizes = (batch, kv_heads, group, head_dim, cache.max_len, scores.window, qkv.dtype)
    shape = decode_attention.make_shape(*sizes, constants(scores, rope))
    kernel = emulation.Emulated(
        tmp_path,
        decode_attention.attention_source(shape),
        "jllama_attention",
        10 + (shape.P > 1),
        grid=batch * kv_heads * shape.P,
        threads=shape.WARPS * 32,
        shared=shape.shared,
    )
    results, apart = [], scattered(cache)
    for _ in range(2):
        arrays = (qkv, *(rope or (cache.length,) * 2), cache.length, apart.places, apart.keys, apart.values)
        operands = [np.array(a) for a in arrays]
        mixed = np.full(qkv[:, :, :, :-2].shape, np.nan, qkv.dtype)
        shares = np.full((batch * kv_heads * shape.P, group * (head_dim + 2)), np.nan, np.float32)
        kernel([*operands, mixed, *operands[5:], shares][: 10 + (shape.P > 1)])
        results.append((mixed, *operands[5:]))
    for first, again in zip(*results, strict=True):
        np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(again, np.float32))
    mixed, keys, values = results[0]
    check(*case, scores, mixed, gathered(dataclasses.replace(apart, keys=keys, values=values), apart))


def test_a_shape_fits_its_share_of_a_multiprocessor(multiprocessors):
    multiprocessors[0] = 132
    for batch in (1, 2, 8, 16, 32, 33, 64, 128, 512):
        for group, head_dim in ((8, 64), (4, 128), (16, 32), (16, 128), (4, 256), (16, 256)):
            shape = decode_attention.make_shape(batch, 4, group, head_dim, 768, None, jnp.bfloat16)
            assert shape.STAGES >= 2
            assert shape.RESIDENT * (shape.shared + 1024) <= 232448 + 1024


@pytest.mark.gpu
@pytest.mark.parametrize(
    CASE,
    [
        *CASES,
        (2, 4, 8, 64, 2048, "bfloat16", ScoreRule(), 1.0),
        (32, 4, 8, 64, 1024, "bfloat16", ScoreRule(), 1.0),
        (128, 4, 8, 64, 1000, "bfloat16", ScoreRule(), 1.0),
        (40, 8, 4, 128, 600, "float16", ScoreRule(300), 1.0),
        (64, 1, 4, 256, 600, "bfloat16", ScoreRule(512, 0.0625, 50.0), 1.0),
        (1, 1, 4, 256, 2048, "bfloat16", ScoreRule(), 1.0),
    ],
)
def test_attention(batch, kv_heads, group, head_dim, max_len, dtype, scores, part):
    case = attention_case(batch, kv_heads, group, head_dim, max_len, dtype, part)
    assert decode_attention.attention_refusal(group, head_dim, dtype) is None
    run = jax.jit(functools.partial(decode_attention.decode_attend, scores=scores))
    qkv, rope, cache = case
    mixed, new = run(qkv, cache, rope=rope)
    for _ in range(3):
        again, _ = run(qkv, cache, rope=rope)
        # In float32: NumPy does not know that a bfloat16 may be no number.
        np.testing.assert_array_equal(np.asarray(again, np.float32), np.asarray(mixed, np.float32))
    check(*case, scores, mixed, new)
    apart = scattered(cache)
    again, new = run(qkv, apart, rope=rope)
    np.testing.assert_array_equal(np.asarray(again, np.float32), np.asarray(mixed, np.float32))
    check(*case, scores, again, gathered(new, apart))
