"""What the GPU's kernels are handed: operands in their parameters' order, and how they are cut; no GPU."""

import dataclasses
import os
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import (
    batch,
    chunk_attention,
    decode,
    decode_attention,
    desk,
    exchange,
    launch,
    product,
    sample,
    stream,
)
from jllama.kernels.gpu.constants import Constants
from jllama.kernels.gpu.layout import Format
from jllama.layers.cache import KVCache
from jllama.layers.kind import LayerKind, ScoreRule
from jllama.layers.qtensor import QTensor
from jllama.layers.quantization import SCHEMES, quantize
from jllama.layers.rope import Rope
from jllama.layers.sampling import Sampling, TokenCounts
from tests.support.helpers import random_params

HALF = jnp.bfloat16


@pytest.fixture
def calls(monkeypatch):
    """Every launch: the kernel's shape, its name, operands, results, and how it is launched."""
    seen = []

    def call(source, name, operands, results, **how):
        seen.append(SimpleNamespace(shape=source, name=name, operands=operands, results=results, **how))
        return [jnp.zeros(result.shape, result.dtype) for result in results]

    monkeypatch.setattr(launch, "call", call)
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    for module, name in (
        *((product, "product_source"), (sample, "sample_source"), (exchange, "exchange_source")),
        *((chunk_attention, "chunk_source"), (decode_attention, "attention_source")),
        *((exchange, "pull_source"), (exchange, "exchange_norm_source"), (desk, "desk_source")),
        *((stream, "stream_source"), (stream, "norm_source")),
    ):
        monkeypatch.setattr(module, name, lambda *shape: shape[0] if len(shape) == 1 else shape)
    return seen


def are(operands, *wanted):
    assert len(operands) == len(wanted)
    assert [at for at, (a, b) in enumerate(zip(operands, wanted, strict=True)) if a is not b] == []


X, NORM = jnp.ones((3, 512), HALF), jnp.ones(512, HALF)
WEIGHT, BIAS, RESIDUAL = jnp.ones((64, 512), HALF), jnp.ones(64, HALF), jnp.ones((3, 64), HALF)


def test_a_product(calls):
    y = product.product(WEIGHT, X)
    product.product(WEIGHT, X, norm=NORM, eps=1e-5, offset=1.0, bias=BIAS, residual=RESIDUAL, by=0.5)
    product.product(WEIGHT.reshape(2, 32, 512), X, gated="gelu", wide=True)
    product.product(WEIGHT.astype(jnp.float16), X.astype(jnp.float16), norm=NORM)
    plain, full, _gated, _fp16 = calls
    assert (y.shape, y.dtype) == ((3, 64), HALF)
    are(plain.operands, X, WEIGHT, WEIGHT, WEIGHT, WEIGHT, WEIGHT, WEIGHT)
    are(full.operands, X, NORM, RESIDUAL, BIAS, WEIGHT, WEIGHT, WEIGHT)
    names = ("TOKENS", "ROWS", "COLUMNS", "NORM", "EPS", "AFTER", "WIDE", "FP16", "BIAS")
    names += ("NORM_OFFSET", "RESIDUAL_SCALE", "ACTIVATION")
    eps = "0.000000000e+00f"
    wanted = [
        (3, 64, 512, 0, eps, product.NOTHING, 0, 0, 0, "0", "1", 0),
        (
            3,
            64,
            512,
            1,
            "1.000000000e-05f",
            product.RESIDUAL,
            0,
            0,
            1,
            "1.000000000e+00f",
            "5.000000000e-01f",
            0,
        ),
        (3, 64, 512, 0, eps, product.GATED, 1, 0, 0, "0", "1", 2),
        (3, 64, 512, 1, eps, product.NOTHING, 0, 1, 0, "0", "1", 0),
    ]
    for each, values in zip(calls, wanted, strict=True):
        assert tuple(getattr(each.shape, name) for name in names) == values
        assert (each.name, each.grid) == ("jllama_product", each.shape.CL * each.shape.CLUSTERS)
        assert (each.threads, each.shared) == (32 * each.shape.WARPS, each.shape.shared)
    results = [(each.results[0].shape, each.results[0].dtype) for each in calls]
    assert results == [((3, 64), HALF), ((3, 64), HALF), ((3, 32), jnp.float32), ((3, 64), jnp.float16)]


@pytest.mark.parametrize("offsets", [False, True])
def test_a_product_with_a_quantised_weight(calls, offsets):
    scales, more = jnp.ones((64, 16), jnp.float16), jnp.zeros((64, 16), jnp.float16)
    w = QTensor(
        values=jnp.ones((64, 256), jnp.uint8),
        scales=scales,
        offsets=more if offsets else None,
        shape=(64, 512),
        bits=4,
    )
    product.product(w, X)
    (made,) = calls
    are(made.operands, X, w.values, w.values, w.values, w.values, scales, more if offsets else w.values)
    shape = made.shape
    assert (4, 32, 2, int(offsets)) == (shape.BITS, shape.GROUP, shape.SCALE_BYTES, shape.OFFSETS)
    assert (shape.ROWS, shape.COLUMNS) == (64, 512)


@pytest.mark.parametrize("tokens", [2, 16, 17, 32])
@pytest.mark.parametrize("columns", [2048, 8192, 32768])
def test_how_blocks_share_long_rows(calls, tokens, columns):
    """As few as have room for the activations; of four or eight a fifth of the GPU is left over."""
    shape = product.make_shape(tokens, 100_000, columns, Format(16, 0, 0), product.NOTHING)
    assert shape.WARPS in ((8,) if tokens > 16 else (8, 16))
    few = product.make_shape(tokens, 2064, 512, Format(16, 0, 0), product.NOTHING)
    assert (8 if tokens > 16 else 16) == few.WARPS
    assert 132 * (8 if shape.CL > 2 else 10) // (10 * shape.CL) == shape.CLUSTERS
    padded = -(-tokens // 8) * 8
    least = next(n for n in (1, 2, 4, 8) if padded * (2 * columns // n + 64) <= product.X_BYTES or n == 8)
    assert least <= shape.CL
    tiles = -(-100_000 // 16)
    assert shape.MT * shape.CLUSTERS * -(-tiles // (shape.MT * shape.CLUSTERS)) >= tiles


def test_sampling(calls):
    B, V = 3, 50
    logits, counts = (
        jnp.zeros((B, V)),
        TokenCounts.of_prompt(jnp.zeros((B, 1), jnp.int32), jnp.zeros(B, jnp.int32), V),
    )
    s = Sampling.build(batch=B, vocab_size=V)
    rows = sample.Rows(
        token=jnp.zeros(B, jnp.int32),
        generated=jnp.ones(B, jnp.int32),
        done=jnp.zeros(B, bool),
        healthy=jnp.ones(B, bool),
    )
    keys, limit, stops = jnp.zeros((B, 2), jnp.uint32), jnp.ones(B, jnp.int32), jnp.ones((B, 4), jnp.int32)
    new, counted = sample.sample_rows(logits, s, counts, rows, keys=keys, limit=limit, stop_ids=stops)
    (made,) = calls
    changed = (rows.token, rows.generated, rows.done, rows.healthy, counts.answer)
    numbers = (s.temperature, s.top_k, s.top_p, s.min_p)
    penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
    read = (logits, *numbers, *penalties, s.logit_bias, s.biased, counts.prompt, keys, limit, stops)
    are(made.operands, *read, *changed)
    assert made.aliases == {14 + at: at for at in range(5)}
    assert [(r.shape, r.dtype) for r in made.results] == [(a.shape, a.dtype) for a in changed]
    assert (made.shape.V, made.shape.STOPS) == (V, 4)
    assert (made.grid, made.threads, made.shared) == (
        B * made.shape.CLUSTER,
        made.shape.NT,
        made.shape.shared,
    )
    assert [new.done.dtype, new.generated.dtype, counted.answer.shape] == [bool, jnp.int32, (B, V)]
    assert counted.prompt is counts.prompt


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(exchange.Peers, "rank", lambda self: "rank")
    return exchange.Peers(count=2, addresses=jnp.zeros((2, 2), jnp.int32))


def test_a_sum_over_gpus(calls, pair):
    x, bias, residual = jnp.ones((3, 64)), jnp.ones(64, HALF), jnp.ones((3, 64), HALF)
    exchange.exchanged(pair, x)
    exchange.exchanged(pair, x, bias=bias, residual=residual, by=0.5)
    exchange.exchanged(pair, x, bias=bias.astype(jnp.float16))
    plain, full, fp16 = calls
    are(plain.operands, pair.addresses, "rank", x, x, x)
    are(full.operands, pair.addresses, "rank", x, residual, bias)
    assert plain.shape == exchange.Shape(2, 192, 64)
    assert full.shape == exchange.Shape(2, 192, 64, 1, 1, "5.000000000e-01f", 0, 0)
    assert fp16.shape == exchange.Shape(2, 192, 64, 1, 0, "1", 1, 1)
    assert [each.results[0].dtype for each in calls] == [jnp.float32, HALF, jnp.float32]
    assert [(each.grid, each.threads) for each in calls] == [(1, 256)] * 3


def test_a_sum_over_gpus_and_the_norm_behind_it(calls, pair):
    residual, weight, bias = (jnp.full(shape, 1.0, HALF) for shape in ((3, 8), 8, 8))
    x = jnp.ones((2, 3, 8), jnp.float32)  # two slices
    out, normed = exchange.exchanged_norm(pair, x, residual, weight, eps=1e-5, offset=1.0, bias=bias, by=0.5)
    halves = [a.astype(jnp.float16) for a in (residual, weight)]
    exchange.exchanged_norm(pair, x[:1], *halves, eps=1e-6)
    exchange.exchanged_norm(None, x, residual, weight, eps=1e-5)
    first, second, alone = calls
    are(first.operands, pair.addresses, "rank", x, residual, weight, bias)
    are(second.operands[3:], *halves, halves[1])
    are(alone.operands, weight, weight, x, residual, weight, weight)
    eps, half, one = "1.000000000e-05f", "5.000000000e-01f", "1.000000000e+00f"
    assert first.shape == exchange.NormShape(2, 3, 8, 2, eps, one, 1, half, 0)
    assert second.shape == exchange.NormShape(2, 3, 8, 1, "1.000000000e-06f", "0", 0, "1", 1)
    assert alone.shape == exchange.NormShape(1, 3, 8, 2, eps)
    assert (first.name, first.grid, first.threads, first.shared) == ("jllama_exchange_norm", 3, 512, 64)
    assert [result.dtype for result in second.results] == [jnp.float16] * 2
    assert out.shape == normed.shape == (3, 8)


def test_a_product_of_many_tokens(calls, pair):
    """Of 32 tokens and 4,096 rows 128 blocks; what is sent is told with its turn."""
    x, weight = jnp.ones((32, 512), HALF), jnp.ones((64, 64, 512), HALF)
    bias = jnp.ones((64, 64), HALF)
    (y,) = stream.streamed(weight, x, bias=bias)
    sums, turn = stream.streamed(
        weight.reshape(4096, 512).astype(jnp.float16), x.astype(jnp.float16), peers=pair
    )
    plain, sent = calls
    are(plain.operands, weight, weight, x, weight, bias)
    assert (plain.shape, plain.name) == (stream.Shape(32, 4096, 512, MT=4, BIAS=1), "jllama_stream")
    assert (plain.grid, plain.threads, plain.shared) == (128, 256, 8 * 3 * 6144 + 8192)
    assert (y.shape, y.dtype) == ((32, 4096), HALF)
    are(sent.operands[:2], pair.addresses, "rank")
    assert sent.shape == stream.Shape(32, 4096, 512, MT=4, GPUS=2, FP16=1)
    assert [(a.shape, a.dtype) for a in (sums, turn)] == [((32, 4096), jnp.float16), ((1,), jnp.uint32)]


@pytest.mark.parametrize(
    ("rows", "columns", "gpus", "cut"),
    [
        (4096, 2048, 2, dict(MT=2, CL=1, WARPS=16)),  # Llama-3.1-8B's o on two GPUs,
        (4096, 7168, 2, dict(MT=4)),  # down
        (3072, 4096, 1, dict(MT=3, STAGES=5)),  # and q·k·v, which sends nothing
        (2048, 1024, 2, dict(MT=2)),  # TinyLlama's o
        (2048, 2048, 1, dict(MT=2, STAGES=5)),  # what sends nothing has clusters, however short
    ],
)
def test_how_a_product_of_many_tokens_is_cut(calls, rows, columns, gpus, cut):
    assert stream.make_shape(32, rows, columns, GPUS=gpus) == stream.Shape(
        32, rows, columns, GPUS=gpus, **cut
    )


def test_products_that_are_left_to_others(calls):
    many, few = jnp.ones((33, 512), HALF), jnp.ones((32, 512), HALF)
    weight = jnp.ones((4096, 512), HALF)
    assert stream.streamed(weight, many) is None
    assert stream.streamed(quantize(weight, SCHEMES["int8"][0]), few) is None
    assert stream.streamed(weight[:, :480], few[:, :480]) is None  # columns
    assert stream.streamed(jnp.ones((4104, 512), HALF), few) is None  # rows that are no tiles
    assert stream.streamed(jnp.ones((3136, 512), HALF), few) is None  # 98 blocks of 132
    assert calls == []


def test_sums_that_were_sent(calls, pair):
    x, residual = (jnp.ones((3, 16), HALF) for _ in range(2))
    weight, bias, turn = jnp.ones(16, HALF), jnp.ones(16, HALF), jnp.ones(1, jnp.uint32)
    stream.taken_norm(pair, x, turn, residual, weight, eps=1e-5, offset=1.0, bias=bias, by=0.5)
    halves = [a.astype(jnp.float16) for a in (x, residual, weight)]
    out, normed = stream.taken_norm(pair, halves[0], turn, *halves[1:], eps=1e-6)
    first, second = calls
    are(first.operands, pair.addresses, "rank", turn, x, residual, weight, bias)
    are(second.operands[3:], *halves, halves[2])
    numbers = ("1.000000000e-05f", "1.000000000e+00f", 1, "5.000000000e-01f")
    assert first.shape == stream.NormShape(2, 16, *numbers)
    assert second.shape == stream.NormShape(2, 16, "1.000000000e-06f", FP16=1)
    assert (first.name, first.grid, first.threads, first.shared) == ("jllama_take_norm", 3, 512, 64)
    assert [a.dtype for a in (out, normed)] == [jnp.float16] * 2


@pytest.mark.parametrize("peers", [None, "peers"])
@pytest.mark.parametrize("normed", [False, True])
def test_what_a_layer_adds_is_of_the_run_dtype(monkeypatch, tiny_config, normed, peers):
    """Sums over several GPUs are float32; the bias and, unless a norm lies behind, the residual go along."""
    asked, post = [], jnp.ones(4, HALF) if normed else None

    def product(weight, y, *, wide=False, **ends):
        asked.append(("product", wide, ends))
        return y.astype(jnp.float32) if wide else y

    def exchanged(given, part, **ends):
        asked.append(("exchanged", given, part.dtype, ends))
        return part + 1.0

    monkeypatch.setattr(batch, "product", product)
    monkeypatch.setattr(batch, "exchanged", exchanged)
    x, y = jnp.zeros((1, 4), HALF), jnp.full((1, 4), 2.0, HALF)
    config = dataclasses.replace(tiny_config, residual_multiplier=0.5)
    added = batch._added(config, x, "weight", y, "bias", post, peers)
    ends = {"bias": "bias"} | ({} if normed else {"residual": x, "by": 0.5})
    if peers is None:
        assert asked == [("product", False, ends)]
    else:
        assert asked == [("product", True, {}), ("exchanged", "peers", jnp.float32, ends)]
    assert added.dtype == HALF
    wanted = 0.5 if normed else 2.0 if peers is None else 3.0
    np.testing.assert_allclose(added.astype(jnp.float32), wanted, rtol=1e-2)


@pytest.mark.parametrize(("numbers", "blocks"), [(8, 1), (4096, 1), (4104, 2), (8 * 512 * 500, 132)])
def test_two_gpus_read_each_others_numbers(calls, pair, numbers, blocks):
    x = jnp.zeros(numbers, jnp.float16)
    exchange.pulled(pair, x)
    (made,) = calls
    are(made.operands, pair.addresses, "rank", x)
    assert made.shape == (numbers, blocks, True)
    assert (made.grid, made.threads, made.shared) == (blocks, 512, 16)


QKV = jnp.zeros((2, 5, 2, 6, 64), HALF)  # B, T, K, G + 2, H


def layer():
    shape = SimpleNamespace(num_hidden_layers=1, num_key_value_heads=2, head_dim=64)
    made = KVCache.empty(shape, batch=2, max_len=300, dtype="bfloat16").layer(0)
    return dataclasses.replace(made, length=jnp.zeros(2, jnp.int32), rows=jnp.array([1, 0], jnp.int32))


def test_attention_of_a_chunk(calls):
    cache, rope = layer(), (jnp.zeros((2, 5, 24)), jnp.ones((2, 5, 24)))
    mixed, new = chunk_attention.chunk_attend(QKV, cache, rope, ScoreRule(40, 0.5, 30.0))
    append, attend = calls
    assert (append.name, attend.name) == ("jllama_append", "jllama_chunk")
    are(append.operands, QKV, *rope, cache.length, cache.rows, cache.keys, cache.values)
    are(attend.operands, QKV, *rope, cache.length, cache.rows, new.keys, new.values)
    assert append.shape == attend.shape
    shape = attend.shape
    assert (shape.B, shape.TOKENS, shape.K, shape.G, shape.H, shape.S) == (2, 5, 2, 4, 64, 300)
    told = (shape.WINDOW, shape.FP16, shape.ROTARY, shape.SCALE, shape.CAP)
    assert told == (40, 0, 48, "5.000000000e-01f", "3.000000000e+01f")
    assert mixed.shape == (2, 5, 2, 4, 64)
    assert append.aliases == {5: 0, 6: 1}
    assert (append.grid, append.threads) == (1, 256)
    assert (attend.grid, attend.threads, attend.shared) == (shape.blocks, shape.threads, shape.shared)
    chunk_attention.chunk_attend(QKV, cache, None, ScoreRule())
    are(calls[2].operands, QKV, *[cache.length] * 3, cache.rows, cache.keys, cache.values)
    assert calls[2].shape.ROTARY == 0


def test_attention_of_one_token(calls):
    one, cache, rope = QKV[:, :1], layer(), (jnp.zeros((2, 1, 32)), jnp.ones((2, 1, 32)))
    mixed, new = decode_attention.decode_attend(one, cache, rope, ScoreRule(40))
    (made,) = calls
    are(made.operands, one, *rope, cache.length, cache.rows, cache.keys, cache.values)
    assert made.aliases == {5: 1, 6: 2}
    shape = made.shape
    assert (shape.B, shape.K, shape.G, shape.H, shape.S, shape.WINDOW) == (2, 2, 4, 64, 300, 40)
    assert (made.grid, made.threads, made.shared) == (4 * shape.P, shape.WARPS * 32, shape.shared)
    assert (mixed.shape, new.keys.shape) == ((2, 1, 2, 4, 64), cache.keys.shape)
    long = dataclasses.replace(
        cache, keys=jnp.zeros((2, 2, 4096, 64), HALF), values=jnp.zeros((2, 2, 4096, 64), HALF)
    )
    decode_attention.decode_attend(one, long, rope, ScoreRule())
    shared = calls[1]
    assert shared.shape.P > 1
    assert shared.results[3].shape == (4 * shared.shape.P, 4 * 66)
    two = dataclasses.replace(cache, keys=long.keys[:, :, :512], values=long.values[:, :, :512])
    decode_attention.decode_attend(one, two, rope, ScoreRule())
    assert (calls[2].shape.P, len(calls[2].results), len(made.results)) == (2, 4, 3)


@pytest.mark.parametrize(("H", "warps", "resident"), [(64, 8, 4), (128, 8, 4), (160, 4, 2), (256, 4, 2)])
def test_wide_heads_have_fewer_warps_to_a_block(calls, H, warps, resident):
    assert warps == decode_attention.make_shape(1, 4, 4, H, 4096, None, HALF).WARPS
    assert resident >= decode_attention.make_shape(512, 4, 4, H, 4096, None, HALF).RESIDENT
    assert decode_attention.make_shape(512, 4, 4, 64, 4096, None, HALF).RESIDENT == 4
    told = Constants(H, "1.0f", "2.0f")
    shape = decode_attention.make_shape(1, 4, 4, H, 4096, None, HALF, told)
    assert (shape.ROTARY, shape.SCALE, shape.CAP) == (H, "1.0f", "2.0f")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_step_of_one_text(calls, pair, monkeypatch, tiny_config, tied, several):
    """Every array stands in its slot of the pointer table; the caches are their own results."""
    monkeypatch.setattr(decode, "_source", lambda plan, slots: slots)
    config = dataclasses.replace(tiny_config, vocab_size=64, tie_word_embeddings=tied)
    params = random_params(config, dtype="bfloat16")
    cache = KVCache.empty(config, batch=1, max_len=32, dtype="bfloat16")
    tokens, angles = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 4))
    logits, new = decode.decode_step(config, params, tokens, cache, angles, pair if several else None)
    (made,) = calls
    count = len(made.operands)
    slots = dict(zip(made.shape[:count], made.operands, strict=True))
    assert len(slots) == count
    wanted = {0: tokens, 1: cache.length, 2: angles, 5: params.norm, 7: params.embed_tokens}
    wanted |= {} if tied else {10: params.lm_head}
    wanted |= {decode.PEERS_SLOT: pair.addresses, decode.PEERS_SLOT + 1: "rank"} if several else {}
    for i, layer in enumerate(params.layers):
        a, m = layer.attention, layer.mlp
        own = {0: layer.attn_norm, 1: layer.ffn_norm, 2: cache.keys[i], 3: cache.values[i], 4: a.qkv_proj}
        own |= {7: a.o_proj, 10: m.gate_up_proj, 13: m.down_proj}
        wanted |= {16 + 16 * i + slot: array for slot, array in own.items()}
    assert slots.keys() == wanted.keys() | {4}
    assert [slot for slot, array in wanted.items() if slots[slot] is not array] == []
    assert slots[4].tolist() == [32, 0, 0]  # positions, the window, the cache's row
    assert made.shape[count:] == (decode.LOGITS_SLOT, *[-1] * 4)
    kept = (*cache.keys, *cache.values)
    assert {id(made.operands[at]): result for at, result in made.aliases.items()} == {
        id(array): 1 + at for at, array in enumerate(kept)
    }
    assert (logits.shape, len(new.keys), len(new.values)) == ((1, 1, 64), 2, 2)


# Refusals that depend on the plan, and the kernels that are kept.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(), None),
        (dict(slots=3, turn=1), None),
        (dict(slots=2, turn=1), "rows too long"),
        (dict(slots=4, turn=5), "rows too long"),
        (dict(slots=5, turn=5), None),
        (dict(head_rows=131), "odd number of rows"),
    ],
)
def test_a_plan_has_slots_for_a_turn(monkeypatch, tiny_config, changes, words):
    f = Format(16, 0, 0)
    made = dict(slots=8, turn=5, head_rows=130, embed=f, formats=((f,),) * 5, columns=(64,) * 5)
    made |= dict(row_bytes=1024)
    asked = []
    monkeypatch.setattr(
        decode, "make_plan", lambda *given: asked.append(given) or SimpleNamespace(**made | changes)
    )
    config = dataclasses.replace(tiny_config, hidden_size=64)
    params = SimpleNamespace(norm=jnp.zeros(1, HALF), layers=(1, 2))
    cache = KVCache.empty(config, batch=1, max_len=2, dtype="bfloat16")
    reason = decode._array_refusal(config, params, cache, 2, 1)
    assert asked == [(config, params, 2, 1)]
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(), None),
        (dict(gpus=2), "several GPUs"),
        (dict(packed=True), None),
        (dict(packed=True, texts=8), None),
        (dict(packed=True, texts=8, engine=False), "8 sequences with weights of fewer bits"),
        (dict(packed=True, engine=False), None),
        (dict(packed=True, recorded=True), "4 sequences with scales in records"),
        (dict(packed=True, recorded=True, texts=2), None),
        (dict(texts=8, blocks=64), None),
        (dict(texts=8, blocks=63), "more key heads than blocks"),
        (dict(blocks=31), "more key heads than blocks"),
        (dict(blocks=32), None),
        (dict(slots=11), "4 sequences of rows that leave weights no room"),
        (dict(config=SimpleNamespace(num_key_value_heads=8, hidden_size=8224)), "longer than 8192"),
    ],
)
def test_plans_for_several_texts(changes, words):
    config = SimpleNamespace(num_key_value_heads=8, hidden_size=8192)
    plan = dict(gpus=1, blocks=132, texts=4, packed=False, recorded=False, slots=12, slot=8192, config=config)
    plan |= dict(engine=True, shared_bytes=232448)
    reason = decode._several_refusal(SimpleNamespace(**plan | changes))
    assert reason is None if words is None else words in reason


def test_a_kernel_has_room_for_more_texts_than_there_are():
    assert [decode.texts_of(rows) for rows in range(1, 9)] == [1, 2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([LayerKind(window) for window in range(1, 9)], None),
        ([LayerKind(window) for window in range(1, 10)], "9 kinds of layers"),
        ([LayerKind(None, None), LayerKind(None, Rope(partial_rotary_factor=0.5))], None),
        ([LayerKind(), LayerKind(None, Rope(partial_rotary_factor=0.5))], "elements turn"),
        ([LayerKind(None, Rope(partial_rotary_factor=0.25))], "rotated elements of a head"),
    ],
)
def test_kinds_of_layers_that_the_decode_kernel_knows(tiny_config, kinds, words):
    config = dataclasses.replace(tiny_config, num_hidden_layers=9, layer_kinds=tuple(kinds))
    reason = decode._kinds_refusal(config)
    assert reason is None if words is None else words in reason


def test_gpus_that_reach_each_other_take_more_rows_together(monkeypatch, tiny_config, pair):
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(batch, "weights_of", lambda params: [np.zeros((2, 4))])
    monkeypatch.setattr(batch, "refused_leaf", lambda *_: None)
    monkeypatch.setattr(batch, "wide_refusal", lambda *given: f"wide {given[3]}")
    params = SimpleNamespace(layers=[], embed_tokens=None, norm=None, peers=None)

    def reason(rows, shards):
        return batch.batch_refusal(tiny_config, params, None, np.zeros((rows, 1), np.int32), shards)

    assert reason(17, pair) == reason(17, None) == "wide 17"
    assert reason(33, pair) == "wide 33"
    assert "tokens have shape (33, 1)" in reason(33, None)
    assert "tokens have shape (1, 1)" in reason(1, pair)


def test_what_is_said_at_a_desk(calls):
    addresses, token, told = (jnp.ones(size, jnp.int32) for size in (4, 3, (3, 3)))
    line = desk.Line(addresses=addresses, turn=jnp.int32(7), last=jnp.int32(9), steps=4)
    logits = jnp.ones((3, 65))
    assert desk.tell(line, told, token).shape == (3,)
    assert desk.hear(line.after(jnp.int32(2)), logits).shape == (3, 3)
    tell, hear = calls
    assert (tell.name, tell.shape, tell.grid, hear.name, hear.shape, hear.grid) == (
        *("jllama_tell", (3, 0), 1),
        *("jllama_hear", (3, 3), 3),
    )
    assert [call.operands[1].tolist() for call in calls] == [[7, 9], [9, 9]]
    are([*tell.operands[:1], *tell.operands[2:]], addresses, told, token)
    are([*hear.operands[:1], *hear.operands[2:]], addresses, logits)
    assert (tell.results[0].dtype, hear.results[0].dtype) == (jnp.int32, jnp.int32)


def test_a_kernel_in_use_is_young_again(monkeypatch, tmp_path):
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "capability", lambda: (9, 0))
    monkeypatch.setattr(launch, "_nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(launch, "_compile", lambda source, options: "// code")
    launch.compiled.__wrapped__("source")
    (path,) = (tmp_path / "kernels").iterdir()
    os.utime(path, (0, 0))
    assert launch.compiled.__wrapped__("source") == "// code"
    assert path.stat().st_mtime > 10**9
