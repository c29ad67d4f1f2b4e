"""Norm, projections, attention and feed-forward against the float64 reference."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.layers import pieces
from jllama.layers.attention import Attention, attend, attention, visible_positions
from jllama.layers.cache import KVCache
from jllama.layers.kind import ScoreRule
from jllama.layers.linear import linear
from jllama.layers.mlp import ACTIVATIONS, MLP, mlp
from jllama.layers.norm import rms_norm
from jllama.layers.qtensor import QTensor, dequantize, embed_rows
from jllama.layers.rope import Rope, rope_tables
from tests.support import reference

DTYPES = ("float32", "bfloat16", "float16")
# A few roundings of a result whose size is about 1: half a unit in the last place each.
ROUNDING = {"float32": 2e-6, "bfloat16": 6e-3, "float16": 8e-4}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def as_jax(x: np.ndarray, dtype: str = "float32") -> tuple[jax.Array, np.ndarray]:
    """The array in a dtype, and exactly what that dtype holds in float64."""
    array = jnp.asarray(x.astype(np.float32), dtype)
    return array, np.asarray(array, np.float64)


def assert_close(ours: jax.Array, truth: np.ndarray, dtype: str = "float32", roundings: float = 1) -> None:
    bound = ROUNDING[dtype] * roundings * max(1.0, float(np.abs(truth).max()))
    np.testing.assert_allclose(np.asarray(ours, np.float64), truth, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
def test_rms_norm(dtype, eps):
    x, x64 = as_jax(normal(2, 5, 26), dtype)
    weight, weight64 = as_jax(1 + normal(26, seed=1) / 4, dtype)
    ours = rms_norm(weight, x, eps)
    assert ours.dtype == dtype
    assert_close(ours, reference.rms_norm(x64, weight64, eps), dtype)


def test_rms_norm_of_small_rows_needs_its_epsilon():
    x, x64 = as_jax(normal(1, 3, 16) * 1e-3)
    ones = np.ones(16)
    assert_close(rms_norm(as_jax(ones)[0], x, 1e-6), reference.rms_norm(x64, ones, 1e-6))
    assert np.all(np.asarray(rms_norm(as_jax(ones)[0], x * 0, 1e-6)) == 0)


def test_rms_norm_rounds_once():
    """Rounded before the weight, a quarter of the numbers would be others."""
    x, weight = (as_jax(normal(64, 64, seed=seed), "bfloat16")[0] for seed in (0, 1))
    wide, scale = (np.asarray(a, np.float32) for a in (x, weight[0]))
    exact = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + np.float32(1e-6)) * scale
    differ = np.asarray(rms_norm(weight[0], x, 1e-6)) != exact.astype(jnp.bfloat16)
    assert differ.mean() < 0.02


def test_rms_norm_squares_in_float32():
    x = jnp.full((1, 8), 300.0, jnp.float16)  # 300² is beyond float16
    np.testing.assert_array_equal(rms_norm(jnp.ones(8, jnp.float16), x, 1e-6), np.ones((1, 8)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(1, 1), (3, 5)], ids=["one row", "many rows"])
@pytest.mark.parametrize("out", [(7,), (2, 7), (3, 4, 5)], ids=str)
def test_linear(dtype, rows, out):
    x, x64 = as_jax(normal(*rows, 40), dtype)
    weight, weight64 = as_jax(normal(*out, 40, seed=1) / 7, dtype)
    bias, bias64 = as_jax(normal(*out, seed=2), dtype)
    truth = np.tensordot(x64, weight64, axes=(-1, -1))
    for ours, wanted in (
        (linear(weight, x), truth),
        (linear(weight, x, bias), truth + bias64),
        (linear(weight, x, bias, dtype="float32"), truth + bias64),
    ):
        assert ours.shape == (*rows, *out)
        assert_close(ours, wanted, dtype if ours.dtype == dtype else "float32")
    assert linear(weight, x).dtype == dtype
    assert linear(weight, x, dtype="float32").dtype == "float32"


@pytest.mark.parametrize("rows", [1, 4])
def test_linear_accumulates_in_float32(rows):
    """256 + 512 halves: a bfloat16 sum stands still at 256."""
    x = jnp.ones((1, rows, 513), jnp.bfloat16)
    weight = jnp.concatenate([jnp.full((1, 1), 256.0), jnp.full((1, 512), 0.5)], axis=1).astype(jnp.bfloat16)
    assert np.all(np.asarray(linear(weight, x), np.float32) == 512)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("out", [(2, 3, 40), (96,), (97,), (1,), (3, 23)], ids=str)
@pytest.mark.parametrize("piece", [1 << 7, 1 << 10, 1 << 18])
def test_float16_by_pieces_is_the_whole_product(monkeypatch, rows, out, piece):
    """Exact numbers, subnormal ones too: a sum's order changes nothing."""
    monkeypatch.setattr(pieces, "PIECE", piece)
    rng = np.random.default_rng(0)
    weight = np.ldexp(rng.integers(-9, 10, (*out, 32)), rng.choice([-24, -20, -14])).astype(np.float16)
    x = rng.integers(-9, 10, (1, rows, 32)).astype(np.float16)
    got = jax.jit(partial(linear, dtype="float32"))(weight, x)
    wanted = np.tensordot(x.astype(np.float64), weight.astype(np.float64), ((2,), (weight.ndim - 1,)))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rows", [1, 3])
def test_no_whole_weight_of_float16_is_widened_on_a_cpu(rows):
    """XLA would, into new memory for each token: eight times as long."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float16) for shape in ((1024, 2048), (1, rows, 2048))]
    memory = jax.jit(linear).lower(*shapes).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 1024 * 2048 * 4 * 0.6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "width"), [(32, 5632), (128, 5632), (128, 2048), (2048, 2048)])
def test_linear_on_a_gpu_rounds_once(dtype, rows, width):
    """Half a unit in the last place at most, whatever way it splits the sum."""
    x, x64 = as_jax(normal(1, rows, width), dtype)
    weight, weight64 = as_jax(normal(2048, width, seed=1) / width**0.5, dtype)
    truth = x64 @ weight64.T
    ours, best = jax.jit(linear)(weight, x), jnp.asarray(truth.astype(np.float32), dtype)
    wrong = np.linalg.norm(np.asarray(ours, np.float64) - truth)
    assert wrong < 1.05 * np.linalg.norm(np.asarray(best, np.float64) - truth)


def quantized(bits: int, offsets: bool, group: int = 8, out=(2, 3), width: int = 32) -> QTensor:
    rng, rows = np.random.default_rng(3), int(np.prod(out))
    if bits == 8:
        values = jnp.asarray(rng.integers(-127, 128, (rows, width)), jnp.int8)
    else:
        values = jnp.asarray(rng.integers(0, 256, (rows, width // 2)), jnp.uint8)
    scales = jnp.asarray(rng.uniform(0.01, 0.1, (rows, width // group)), jnp.float16)
    offset = jnp.asarray(rng.normal(size=scales.shape), jnp.float16) if offsets else None
    return QTensor(values=values, scales=scales, offsets=offset, shape=(*out, width), bits=bits)


def unpacked(w: QTensor) -> np.ndarray:
    """Element by element, as GGUF's own documentation describes the layout."""
    rows, group, out = w.values.shape[0], w.group, np.zeros((w.values.shape[0], w.shape[-1]))
    values, scales = np.asarray(w.values, np.int64), np.asarray(w.scales, np.float64)
    for r in range(rows):
        for c in range(w.shape[-1]):
            block, place = divmod(c, group)
            if w.bits == 8:
                value = values[r, c]
            else:
                byte = values[r, block * group // 2 + place % (group // 2)]
                value = byte % 16 if place < group // 2 else byte // 16
            if w.offsets is None:
                out[r, c] = (value - (8 if w.bits == 4 else 0)) * scales[r, block]
            else:
                out[r, c] = value * scales[r, block] + float(w.offsets[r, block])
    return out.reshape(w.shape)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("group", [8, 32])
@pytest.mark.parametrize("rows", [1, 4])
def test_quantized_linear(bits, offsets, group, rows):
    w = quantized(bits, offsets, group)
    assert w.ndim == 3
    truth = unpacked(w)
    assert_close(dequantize(w), truth)
    x, x64 = as_jax(normal(1, rows, 32))
    bias, bias64 = as_jax(normal(2, 3))
    assert_close(linear(w, x, bias), np.tensordot(x64, truth, axes=(-1, -1)) + bias64, roundings=10)


@pytest.mark.parametrize("bits", [8, 4, None])
def test_embed_rows(bits):
    table = quantized(bits, True, out=(6,)) if bits else as_jax(normal(6, 32))[0]
    truth = unpacked(table) if bits else np.asarray(table, np.float64)
    ours = embed_rows(table, jnp.asarray([[5, 0], [3, 3]], jnp.int32), jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    assert_close(ours, truth[np.array([[5, 0], [3, 3]])], "bfloat16")
    strange = np.asarray(embed_rows(table, jnp.asarray([[-1, 6, 2]], jnp.int32), jnp.float32))
    assert np.isnan(strange[0, :2]).all()
    assert np.isfinite(strange[0, 2]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_mlp(activation, dtype, bias):
    D, F = 12, 20
    x, x64 = as_jax(normal(2, 3, D) * 2, dtype)
    arrays = {"gate_up_proj": normal(2, F, D, seed=1) / 3, "down_proj": normal(D, F, seed=2) / 4}
    if bias:
        arrays |= {"gate_up_bias": normal(2, F, seed=3), "down_bias": normal(D, seed=4)}
    pairs = {name: as_jax(array, dtype) for name, array in arrays.items()}
    wide = {name: pair[1] for name, pair in pairs.items()}
    tensors = {"down_proj.weight": wide["down_proj"]}
    tensors |= {f"{name}_proj.weight": wide["gate_up_proj"][i] for i, name in enumerate(("gate", "up"))}
    if bias:
        tensors |= {f"{name}_proj.bias": wide["gate_up_bias"][i] for i, name in enumerate(("gate", "up"))}
        tensors["down_proj.bias"] = wide["down_bias"]
    ours = mlp(MLP(**{name: pair[0] for name, pair in pairs.items()}), x, activation)
    assert ours.dtype == dtype
    assert_close(ours, reference.mlp(x64, activation, tensors, ""), dtype, roundings=6)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_ragged_rows(window, groups, dtype):
    """Each row stands at a position of its own, in a cache that is longer than what is filled."""
    T, K, S, H, start = 3, 2, 16, 6, np.array([0, 5, 13])
    q, q64 = as_jax(normal(3, T, K, groups, H), dtype)
    k, k64 = as_jax(normal(3, K, S, H, seed=1) * 2, dtype)
    v, v64 = as_jax(normal(3, K, S, H, seed=2), dtype)
    ours = attend(q, k, v, jnp.asarray(start, jnp.int32), ScoreRule(window))
    assert ours.dtype == dtype
    for b in range(3):
        for head in range(K):
            for g in range(groups):
                truth = reference.attend(q64[b, :, head, g], k64[b, head], v64[b, head], start[b], window)
                assert_close(ours[b, :, head, g], truth, dtype, roundings=3)


def test_visible_positions():
    ours = visible_positions(jnp.asarray([0, 2], jnp.int32), 2, 4, 2)
    np.testing.assert_array_equal(
        np.asarray(ours, int), [[[1, 0, 0, 0], [1, 1, 0, 0]], [[0, 1, 1, 0], [0, 0, 1, 1]]]
    )


def test_attend_masks_in_float32():
    """A score beyond float16's 65,504 must not become infinite."""
    q = jnp.full((1, 1, 1, 1, 4), 200.0, jnp.float16)
    k = jnp.asarray([[[[200.0] * 4, [-200.0] * 4]]], jnp.float16)
    v = jnp.asarray([[[[1.0] * 4, [2.0] * 4]]], jnp.float16)
    np.testing.assert_array_equal(
        attend(q, k, v, jnp.asarray([1], jnp.int32), ScoreRule()), np.ones((1, 1, 1, 1, 4))
    )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_layer(groups, bias):
    """Projections, interleaving, rotation, output: the whole layer on a fresh cache."""
    D, K, H, T = 10, 2, 6, 5
    keys = dict(num_attention_heads=K * groups, num_key_value_heads=K)
    shapes = {f"{n}_proj.weight": (K * (groups if n == "q" else 1) * H, D) for n in "qkv"}
    shapes["o_proj.weight"] = (D, K * groups * H)
    if bias:
        shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in list(shapes.items())}
    tensors = {n: as_jax(normal(*s, seed=i) / 2)[1] for i, (n, s) in enumerate(shapes.items())}
    x, x64 = as_jax(normal(1, T, D))
    truth = reference.attention(x64[0], keys, tensors, "", (reference_frequencies(H), 1.0))

    def merged(kind: str):
        parts = [tensors[f"{n}_proj.{kind}"].astype(np.float32) for n in "qkv"]
        parts = [part.reshape(K, -1, H, *part.shape[1:]) for part in parts]
        return jnp.asarray(np.concatenate(parts, axis=1))

    p = Attention(
        qkv_proj=merged("weight"),
        o_proj=as_jax(tensors["o_proj.weight"])[0],
        qkv_bias=merged("bias") if bias else None,
        o_bias=as_jax(tensors["o_proj.bias"])[0] if bias else None,
    )
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    rope = rope_tables(Rope(), H, positions, jnp.asarray([T], jnp.int32))
    cache = KVCache.empty(CACHE_SHAPE, batch=1, max_len=T, dtype="float32").layer(0)
    ours, cache = attention(p, x, cache, rope=rope)
    assert_close(ours[0], truth, roundings=5)
    assert int(cache.length[0]) == 0, "the caller advances"


def reference_frequencies(head_dim: int) -> np.ndarray:
    return reference.rope_frequencies({"rope_theta": 10000.0}, head_dim, 2048, 5)


@dataclasses.dataclass(frozen=True)
class Shape:
    num_hidden_layers: int = 2
    num_key_value_heads: int = 2
    head_dim: int = 6


CACHE_SHAPE = Shape()
