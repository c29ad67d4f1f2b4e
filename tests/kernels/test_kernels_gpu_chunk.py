"""The CUDA kernels of a chunk's attention against plain JAX: emulated on a CPU, on a GPU with `-m gpu`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import chunk_attention, launch
from jllama.kernels.gpu.constants import constants
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule
from jllama.layers.rope import Rope
from tests.kernels.test_kernels_gpu_attention import attend, drawn_case, rotations, widened
from tests.support import emulation
from tests.support.placed import gathered, scattered


def chunk_case(tokens, lengths, kv_heads, group, head_dim, max_len, dtype, part=1.0):
    """A product q·k·v, a cache of noise with poison behind each row's end.

    `part`: of each head, which is rotated.
    """
    length = np.array(lengths, np.int32)
    qkv, cache = drawn_case(tokens, length, kv_heads, group, head_dim, max_len, dtype, tokens)
    positions = length[:, None] + np.arange(tokens, dtype=np.int32)
    rope = rotations(Rope(partial_rotary_factor=part), head_dim, positions, length + tokens) if part else None
    return qkv, rope, cache


def check(qkv, rope, cache, scores, mixed, new: LayerCache) -> None:
    """The values of float32 arithmetic; the new tokens in their places, all else untouched, poison too."""
    wide = [widened(a) for a in (qkv, cache.keys, cache.values)]
    start = dataclasses.replace(cache, keys=wide[1], values=wide[2])
    with jax.default_matmul_precision("highest"):
        exact, _ = attend(wide[0], start, rope, scores, None)
    mixed, exact = (np.asarray(a, np.float64) for a in (mixed, exact))
    fits = np.asarray(cache.length)[:, None] + np.arange(qkv.shape[1]) < cache.max_len
    assert np.isfinite(mixed[fits]).all()
    bound = 1e-3 if qkv.dtype == jnp.float16 else 6e-3
    assert np.linalg.norm((mixed - exact)[fits]) < bound * np.linalg.norm(exact[fits])
    _, twin = attend(qkv, cache, rope, scores, None)
    for ours, theirs in ((new.keys, twin.keys), (new.values, twin.values)):
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=2**-7, atol=1e-6
        )


# tokens, lengths, kv heads, group, head_dim, max_len, dtype, scores, the part of a head that is rotated
CASES = [
    (37, (0, 500), 1, 4, 64, 700, "bfloat16", ScoreRule(), 1.0),
    (50, (130,), 2, 3, 128, 170, "float16", ScoreRule(), 1.0),  # passes the end
    (20, (0, 590), 1, 8, 32, 700, "bfloat16", ScoreRule(500), 1.0),
    (70, (3,), 1, 1, 96, 300, "float16", ScoreRule(1), 1.0),
    (9, (600,), 1, 16, 96, 800, "float16", ScoreRule(30), 1.0),
    (5, (255, 256), 1, 2, 80, 261, "bfloat16", ScoreRule(), 1.0),
    (20, (0, 150), 1, 4, 256, 300, "bfloat16", ScoreRule(70, 0.1), 1.0),
    (18, (140,), 2, 3, 64, 200, "float16", ScoreRule(None, 0.3, 5.0), 0.0),
    (35, (90,), 1, 2, 128, 170, "bfloat16", ScoreRule(), 0.75),
    (21, (60,), 1, 2, 144, 170, "float16", ScoreRule(None, None, 2.0), 0.34),
]
CASE = ("tokens", "lengths", "kv_heads", "group", "head_dim", "max_len", "dtype", "scores", "part")


FEW, MANY = 1, 14  # multiprocessors: no rows, some rows are shared
SHARED = (0, 2)  # the cases whose rows many multiprocessors share: the others run alike on few


@pytest.mark.parametrize(
    ("count", *CASE), [*((FEW, *CASES[at]) for at in SHARED), *((MANY, *case) for case in CASES)]
)
def test_chunk_emulated(
    monkeypatch, tmp_path, count, tokens, lengths, kv_heads, group, head_dim, max_len, dtype, scores, part
):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: count)
    case = chunk_case(tokens, lengths, kv_heads, group, head_dim, max_len, dtype, part)
    qkv, rope, cache = case
    sizes = (*qkv.shape[:3], group, head_dim, max_len, scores.window, qkv.dtype)
    shape = chunk_attention.make_shape(*sizes, source=constants(scores, rope))
    append, chunk = emulated(tmp_path, shape)
    results, apart = [], scattered(cache)
    for _ in range(2):
        arrays = (qkv, *(rope or (cache.length,) * 2), cache.length, apart.places, apart.keys, apart.values)
        operands = [np.array(a) for a in arrays]
        append([*operands, *operands[5:]])
        mixed = np.full(qkv[:, :, :, :-2].shape, np.nan, qkv.dtype)
        shares = [np.full(size, np.nan, np.float32) for size in shape.results[1:]]
        chunk([*operands, mixed, *shares])
        results.append((mixed, *operands[5:]))
    for first, again in zip(*results, strict=True):
        np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(again, np.float32))
    mixed, keys, values = results[0]
    check(*case, scores, mixed, gathered(dataclasses.replace(apart, keys=keys, values=values), apart))


def emulated(directory, shape):
    source = chunk_attention.chunk_source(shape)
    append = chunk_attention.append_launch(shape)
    chunk = dict(grid=shape.blocks, threads=shape.threads, shared=shape.shared)
    kernels = (
        emulation.Kernel("jllama_append", 9, **append, shared=16),
        emulation.Kernel("jllama_chunk", 7 + len(shape.results), **chunk),
    )
    return emulation.Emulated.several(directory, source, kernels)


@pytest.mark.gpu
@pytest.mark.parametrize(
    CASE,
    [
        *CASES,
        (512, (700, 0, 3), 4, 8, 64, 2048, "bfloat16", ScoreRule(), 1.0),
        (300, (1500,), 8, 4, 128, 2048, "bfloat16", ScoreRule(500), 1.0),
        (2048, (0,), 8, 4, 128, 2304, "float16", ScoreRule(), 1.0),
        (1, (900, 5), 2, 4, 128, 1000, "bfloat16", ScoreRule(), 1.0),
        (600, (700, 0), 1, 4, 256, 2048, "bfloat16", ScoreRule(512, 0.0625, 50.0), 1.0),
        (2048, (0,), 4, 2, 256, 2304, "float16", ScoreRule(), 1.0),
    ],
)
def test_chunk(tokens, lengths, kv_heads, group, head_dim, max_len, dtype, scores, part):
    case = chunk_case(tokens, lengths, kv_heads, group, head_dim, max_len, dtype, part)
    assert chunk_attention.chunk_refusal(head_dim, dtype) is None
    run = jax.jit(functools.partial(chunk_attention.chunk_attend, scores=scores))
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
