"""The CUDA kernel of a batch's attention against plain JAX: emulated on a CPU, on a GPU with `-m gpu`."""

import functools

import emulation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import decode_attention, launch
from jllama.layers.attention import attend


def distance(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture
def four_blocks(monkeypatch):
    if emulation.COMPILER is None:
        pytest.skip("no g++")
    monkeypatch.setattr(launch, "unavailable", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 4)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)


def attention_case(batch, kv_heads, group, head_dim, max_len, dtype):
    """Queries, a cache of noise with poison behind each row's end, and the ends: empty to full."""
    keys = jax.random.split(jax.random.key(3), 3)
    shape = (batch, kv_heads, max_len, head_dim)
    start = jnp.asarray(np.linspace(0, max_len - 1, batch), jnp.int32)
    live = (jnp.arange(max_len)[None] <= start[:, None])[:, None, :, None]
    q = jax.random.normal(keys[0], (batch, 1, kv_heads, group, head_dim)).astype(dtype)
    k, v = (jnp.where(live, jax.random.normal(key, shape), jnp.nan).astype(dtype) for key in keys[1:])
    return q, k, v, start


def check_attention(q, k, v, start, window, mixed) -> None:
    q, k, v = (jnp.nan_to_num(a).astype(jnp.float32) for a in (q, k, v))
    with jax.default_matmul_precision("highest"):
        exact = attend(q, k, v, start, window)
    assert distance(mixed, exact) < 5e-3


ATTENTION = [
    (3, 2, 4, 64, 300, "bfloat16", None),
    (2, 1, 16, 32, 520, "float16", 100),
    (2, 2, 3, 128, 70, "bfloat16", 33),
]


@pytest.mark.parametrize(("batch", "kv_heads", "group", "head_dim", "max_len", "dtype", "window"), ATTENTION)
@pytest.mark.parametrize("blocks", [1, 2])
def test_attention_emulated(
    four_blocks, tmp_path, batch, kv_heads, group, head_dim, max_len, dtype, window, blocks
):
    q, k, v, start = attention_case(batch, kv_heads, group, head_dim, max_len, dtype)
    sizes = (batch, kv_heads, group, head_dim, max_len, blocks, window or 0, dtype == "float16")
    kernel = emulation.Emulated(
        tmp_path,
        decode_attention.attention_source(*sizes),
        "jllama_attention",
        6,
        grid=batch * kv_heads * blocks,
        threads=decode_attention.WARPS * 32,
        shared=decode_attention.shared_bytes(group, head_dim),
    )
    arrays = [emulation.aligned(a) for a in (q, k, v, start)]
    shares = np.full((batch * kv_heads * blocks, group * (head_dim + 2)), np.nan, np.float32)
    results = [np.full_like(arrays[0], np.nan) for _ in range(2)]
    for mixed in results:
        kernel([*arrays, mixed, shares])
    np.testing.assert_array_equal(*results)
    check_attention(q, k, v, start, window, results[0])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch", "kv_heads", "group", "head_dim", "max_len", "dtype", "window"),
    [*ATTENTION, (32, 4, 8, 64, 1024, "bfloat16", None), (128, 4, 8, 64, 1000, "bfloat16", None)],
)
def test_attention(batch, kv_heads, group, head_dim, max_len, dtype, window):
    q, k, v, start = attention_case(batch, kv_heads, group, head_dim, max_len, dtype)
    assert decode_attention.attention_supported(group, head_dim, dtype) is None
    run = jax.jit(functools.partial(decode_attention.attend_cached, window=window))
    mixed = run(q, k, v, start)
    for _ in range(3):
        np.testing.assert_array_equal(run(q, k, v, start), mixed)
    check_attention(q, k, v, start, window, mixed)
