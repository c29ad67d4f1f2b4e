"""Sums over GPUs by kernels of their own, emulated as in `test_kernels_gpu_peers.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import model
from jllama.kernels.gpu import exchange, peers, wide_batch
from jllama.layers.attention import append_and_attend
from jllama.layers.linear import linear
from jllama.layers.norm import rms_norm
from tests.kernels.test_kernels_gpu import KINDS, begun, distance, shape, weights
from tests.kernels.test_kernels_gpu import four_blocks as four_blocks
from tests.kernels.test_kernels_gpu_peers import small_boxes as small_boxes
from tests.support import emulation


@pytest.mark.usefixtures("small_boxes")
def test_a_gpu_that_never_comes(tmp_path, monkeypatch):
    shape = exchange.Shape(gpus=2, NUMBERS=64, D=64)
    alone = emulation.Emulated(
        tmp_path, exchange.exchange_source(shape), "jllama_exchange", 6,
        grid=shape.blocks, threads=exchange.BLOCK_SIZE, shared=16,
    )  # fmt: skip
    boxes = [np.zeros(peers.places(2)["BOX_END"], np.uint64) for _ in range(2)]
    addresses, x = np.zeros(2, np.int64), np.ones(64, np.float32)
    monkeypatch.setenv("FAR_SECONDS", "0")
    with pytest.raises(AssertionError, match=r"block 0 thread \d+ waits for another GPU for ever"):
        alone([addresses, np.array([0], np.int32), x, x, x, x.copy()], [(addresses, boxes)])


SUMS = [
    dict(gpus=2, NUMBERS=2 * 90, D=90),
    dict(gpus=3, NUMBERS=4060, D=70, BIAS=1, RESIDUAL=1, WIDE=0, RESIDUAL_SCALE="0.5f"),
]


@pytest.mark.parametrize("sizes", SUMS, ids=["sum", "residual"])
@pytest.mark.usefixtures("small_boxes")
def test_sums_in_one_order_emulated(tmp_path, sizes):
    shape = exchange.Shape(**sizes)
    gpus, count = shape.gpus, shape.NUMBERS
    kernel = emulation.Emulated(
        tmp_path, exchange.exchange_source(shape), "jllama_exchange", 6,
        grid=shape.blocks, threads=exchange.BLOCK_SIZE, shared=16, gpus=gpus,
    )  # fmt: skip
    random = np.random.default_rng(3)
    boxes = [np.zeros(peers.places(gpus)["BOX_END"], np.uint64) for _ in range(gpus)]
    addresses = np.zeros(gpus, np.int64)
    residual = random.normal(size=count).astype(jnp.bfloat16)
    bias = random.normal(size=shape.D).astype(jnp.bfloat16)
    for _ in range(3):
        parts = random.normal(size=(gpus, count)).astype(np.float32)
        results = [np.full(count, np.nan, np.float32 if shape.WIDE else jnp.bfloat16) for _ in range(gpus)]
        given = [
            [addresses, np.array([r], np.int32), parts[r], residual, bias, results[r]] for r in range(gpus)
        ]
        kernel([a for one in given for a in one], [(addresses, boxes)])
        total = parts[0]
        for more in parts[1:]:
            total = total + more
        if shape.BIAS:
            total = (total + np.tile(bias, count // shape.D).astype(np.float32)) * np.float32(0.5)
        if shape.RESIDUAL:
            total = (total + residual.astype(np.float32)).astype(jnp.bfloat16)
        for result in results:
            np.testing.assert_array_equal(result, total)


@pytest.mark.parametrize(("gpus", "rows", "slices"), [(1, 2, 3), (2, 3, 1), (3, 1, 2)])
@pytest.mark.usefixtures("small_boxes")
def test_sums_and_their_norm_emulated(tmp_path, gpus, rows, slices):
    D = 2060
    how = dict(EPS="1e-5f", NORM_OFFSET="1.0f", BIAS=1, RESIDUAL_SCALE="0.5f")
    shape = exchange.NormShape(gpus, rows, D, slices, **how)
    kernel = emulation.Emulated(
        tmp_path, exchange.exchange_norm_source(shape), "jllama_exchange_norm", 8,
        grid=rows, threads=exchange.NORM_SIZE, shared=64, gpus=gpus,
    )  # fmt: skip
    random = np.random.default_rng(4)
    boxes = [np.zeros(peers.places(gpus)["BOX_END"], np.uint64) for _ in range(gpus)]
    addresses = np.zeros(gpus, np.int64)
    residual, weight, bias = (random.normal(size=s).astype(jnp.bfloat16) for s in ((rows, D), D, D))
    for _ in range(2):
        parts = random.normal(size=(gpus, slices, rows, D)).astype(np.float32)
        out, normed = np.zeros((2, gpus, rows, D), jnp.bfloat16)
        given = [
            [addresses, np.array([r], np.int32), parts[r], residual, weight, bias, out[r], normed[r]]
            for r in range(gpus)
        ]
        kernel([a for one in given for a in one], [(addresses, boxes)])
        total = np.zeros((rows, D), np.float32)
        for own in parts:
            own_sum = np.zeros((rows, D), np.float32)
            for one in own:
                own_sum = own_sum + one
            total = total + (own_sum if gpus == 1 else own_sum.astype(jnp.bfloat16).astype(np.float32))
        added = (total + bias.astype(np.float32)) * np.float32(0.5) + residual.astype(np.float32)
        np.testing.assert_array_equal(out, [added.astype(jnp.bfloat16)] * gpus)
        np.testing.assert_array_equal(normed, [normed[0]] * gpus)
        exact = rms_norm(jnp.asarray(weight, jnp.float32), jnp.asarray(out[0], jnp.float32), 1e-5, 1.0)
        np.testing.assert_allclose(normed[0].astype(np.float32), exact, rtol=2**-8)


@pytest.mark.parametrize(
    ("stored", "peers", "more"),
    [("bf16", None, {}), ("int8", None, KINDS), ("int4", None, {}), ("bf16", "all", KINDS)],
)
def test_a_wide_step_is_the_models(monkeypatch, stored, peers, more):
    """Its order of products, sums and norms; with XLA's sums of one device in the kernels' place."""
    biases = dict(attention_bias=True, mlp_bias=True)
    config = shape(64, 96, 2, 4, 2, 32, vocab=50, residual_multiplier=0.5, **biases, **more)
    params, tokens = weights(config, stored), jnp.array([[3], [7], [9]], jnp.int32)

    def sums(peers, x, residual, weight, *, eps, offset, bias, by):
        added = (jnp.sum(x, axis=0) + bias.astype(jnp.float32)[None]) * by + residual.astype(jnp.float32)
        added = added.astype(residual.dtype)
        return added, rms_norm(weight, added, eps, offset)

    def streamed(weight, x, *, bias=None, peers=None):
        made = linear(weight, x, bias).reshape(len(x), -1)
        return [made] if peers is None else [made, "turn"]

    def taken(peers, x, turn, *given, **how):
        assert (peers, turn) == ("all", "turn")
        return sums(peers, x[None].astype(jnp.float32), *given, **how)

    monkeypatch.setattr(wide_batch, "exchanged_norm", None if peers else sums)
    monkeypatch.setattr(wide_batch, "streamed", streamed)
    monkeypatch.setattr(wide_batch, "taken_norm", taken)
    monkeypatch.setattr(wide_batch, "decode_attend", lambda *given: append_and_attend(*given, None))
    cache = begun(config)
    places = model.places(config, cache.length[:, None], cache.length + 1)
    logits, new = wide_batch.wide_step(config, params, tokens, cache, places, peers)
    twin, twin_cache = model.forward(config, params, tokens, cache)
    assert distance(logits, twin) < 0.01
    for ours, its in zip(new.keys + new.values, twin_cache.keys + twin_cache.values, strict=True):
        assert distance(ours, its) < 0.01


def test_who_adds_up_long_prompts(monkeypatch):
    """Two GPUs read each other's parts; more of them, or other dtypes, have XLA's all-reduce."""
    monkeypatch.setattr(exchange, "pulled", lambda peers, part: "pulled")
    monkeypatch.setattr(exchange, "exchanged", lambda peers, part: "words")
    monkeypatch.setattr(exchange.Shards, "total", lambda self, part: "psum")
    long = jax.ShapeDtypeStruct((2048, 4096), jnp.bfloat16)
    two, four = (exchange.Peers(count=n, addresses=jnp.zeros((n, 2), jnp.int32)) for n in (2, 4))
    assert two.total(long) == "pulled"
    assert two.total(jax.ShapeDtypeStruct((3, 6), jnp.bfloat16)) == four.total(long) == "psum"
    assert two.total(jax.ShapeDtypeStruct((2048, 4096), jnp.float32)) == "psum"
    assert two.total(jax.ShapeDtypeStruct((64, 4096), jnp.float32)) == "words"
    assert two.total(jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)) == "pulled"  # words are of float32


@pytest.mark.usefixtures("small_boxes")
def test_two_gpus_read_each_other_emulated(tmp_path):
    count, blocks = 8 * (2 * 512 * 5 + 3), 2
    kernel = emulation.Emulated(
        tmp_path, exchange.pull_source(count, blocks, False), "jllama_pull", 4,
        grid=blocks, threads=exchange.PULL_SIZE, shared=16, gpus=2,
    )  # fmt: skip
    boxes = [np.zeros(peers.places(2)["BOX_END"], np.uint64) for _ in range(2)]
    addresses, random = np.zeros(2, np.int64), np.random.default_rng(5)
    for _ in range(2):
        x = random.normal(size=(2, count)).astype(jnp.bfloat16)
        totals = [np.zeros(count, jnp.bfloat16) for _ in range(2)]
        given = [[addresses, np.array([rank], np.int32), x[rank], totals[rank]] for rank in range(2)]
        kernel([a for one in given for a in one], [(addresses, boxes)])
        for total in totals:
            np.testing.assert_array_equal(total, (x[0].astype(np.float32) + x[1]).astype(jnp.bfloat16))
