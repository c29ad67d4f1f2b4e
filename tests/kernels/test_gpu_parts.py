"""Mailboxes, sums over GPUs and what tells a family: sizes, places and refusals; no GPU."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.kernels.gpu import batch, constants, desk, exchange, family, launch, peers, wide_batch
from jllama.kernels.gpu.constants import Constants
from jllama.layers.cache import KVCache
from jllama.layers.kind import LayerKind, ScoreRule
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.layers.shards import Shards

MOST = peers.MAX_SUMS


@pytest.mark.parametrize(
    ("count", "fit"), [(2, True), (3, False), (MOST, True), (MOST + 2, False), (MOST - 1, False)]
)
def test_an_even_number_that_fits_goes_as_words(count, fit):
    assert exchange.fits(count) is fit


def test_mailboxes_are_told_by_their_addresses():
    mesh = jax.make_mesh((1,), ("model",), devices=jax.devices()[:1])
    (box,) = peers._boxes(tuple(mesh.devices.flat))
    assert not np.asarray(box).any()
    told = np.asarray(peers.mailboxes(mesh))
    assert told.shape == (1, 2)
    assert told.view(np.int64).tolist() == [[box.unsafe_buffer_pointer()]]


@pytest.mark.parametrize(
    ("dtype", "count", "parts"),
    [
        ("bfloat16", MOST, "float32"),
        ("float16", MOST + 2, "float16"),
        ("bfloat16", 5, "bfloat16"),
        ("float32", MOST + 2, "float32"),
    ],
)
def test_in_which_numbers_parts_are_sent(dtype, count, parts):
    made = exchange.Peers(count=2, addresses=jnp.zeros((2, 2), jnp.int32))
    assert jnp.dtype(made.parts_dtype(jnp.dtype(dtype), count)) == parts


@pytest.mark.parametrize(
    ("numbers", "blocks", "each"),
    [(2, 1, 1), (512, 1, 1), (514, 2, 1), (65536, 128, 1), (65538, 128, 2), (131072, 128, 2), (MOST, 128, 4)],
)
def test_how_an_exchange_is_cut(numbers, blocks, each):
    shape = exchange.Shape(2, numbers, 64)
    assert (shape.blocks, shape.each) == (blocks, each)


@pytest.mark.parametrize(
    ("more_hidden", "more_vocab", "words"), [(0, 0, None), (2, 0, "too long"), (0, 2, "too long")]
)
def test_on_which_parts_of_a_model_kernels_work(more_hidden, more_vocab, words):
    sizes = dict(hidden_size=peers.MAX_ROW + more_hidden, vocab_size=peers.MAX_VOCABULARY + more_vocab)
    config, two = SimpleNamespace(**sizes), jnp.zeros((2, 2), jnp.int32)
    reason = exchange.refused_shards(config, exchange.Peers(count=2, addresses=two))
    assert reason is None if words is None else words in reason
    assert exchange.refused_shards(config, None) is None
    assert "do not reach" in exchange.refused_shards(config, Shards(count=2))
    assert [exchange.gpus_of(each) for each in (None, Shards(count=2))] == [1, 1]
    assert exchange.gpus_of(exchange.Peers(count=2, addresses=two)) == 2


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_parts_of_a_mailbox_lie_behind_one_another(gpus):
    found = peers.places(gpus)
    sizes = dict(
        BOX_O=gpus * found["MAX_ROW"],
        BOX_DOWN=gpus * found["MAX_ROW"],
        BOX_LOGITS=peers.MAX_VOCABULARY,
        BOX_PULL=4 * peers.MAX_BLOCKS,
        BOX_SUMS=2 * gpus * found["MAX_SUMS"],
        BOX_BARE=2 * gpus * found["MAX_SUMS"] // 4,
    )
    at = peers.HEAD
    for name, size in sizes.items():
        assert found[name] == at
        at += size
    assert found["BOX_END"] == at
    counters = [found[name] for name in ("BOX_EPOCH", "BOX_TURNS", "BOX_PULLS")]
    assert len(set(counters)) == 3
    assert max(counters) < peers.HEAD
    assert found["GPUS"] == gpus


@pytest.mark.parametrize(
    ("count", "process", "refusal", "unreachable", "words"),
    [
        (8, 0, None, None, None),
        (9, 0, None, None, r"9 GPUs \(at most 8"),
        (2, 1, None, None, "other processes"),
        (2, 0, "no GPU", None, "no GPU"),
        (2, 0, None, "no NVLink", "no NVLink"),
    ],
)
def test_which_gpus_reach_each_other(monkeypatch, count, process, refusal, unreachable, words):
    asked = []
    devices = [
        SimpleNamespace(process_index=process if n else 0, local_hardware_id=10 + n) for n in range(count)
    ]
    monkeypatch.setattr(launch, "refusal", lambda: refusal)
    monkeypatch.setattr(peers, "_unreachable", lambda numbers: asked.append(numbers) or unreachable)
    reason = peers.peers_refusal(devices)
    assert reason is None if words is None else re.search(words, reason)
    assert asked in ([], [tuple(range(10, 10 + count))])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([0, 0, 0, 0, 0, 0], None),
        ([0, 704, 0, 0, 704, 0], None),
        ([0, 0, 217, 0, 0, 0], "GPU 5 can't reach the memory of GPU 3"),
    ],
)
def test_every_gpu_is_made_to_reach_every_other(monkeypatch, answers, words):
    """From its own context each; the one that was there before is there again."""
    told, left = [], iter(answers)

    class Driver:
        def cuDeviceGet(self, device, number):  # noqa: N802
            told.append(("device", number))

        def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
            return 0

        def cuCtxGetCurrent(self, context):  # noqa: N802
            return 0

        def cuCtxSetCurrent(self, context):  # noqa: N802
            told.append("set")

        def cuCtxEnablePeerAccess(self, peer, flags):  # noqa: N802
            told.append("enable")
            return next(left)

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    reason = peers._unreachable.__wrapped__((3, 5, 9))
    assert reason is None if words is None else words in reason
    assert told[:3] == [("device", 3), ("device", 5), ("device", 9)]
    whole = ["set", "enable", "enable"]
    assert told[3:] == ([*whole * 3, "set"] if words is None else [*whole, "set", "enable", "set"])


@pytest.mark.parametrize(("codes", "words"), [((0, 0), None), ((2, 0), "error 2"), ((0, 801), "error 801")])
def test_memory_that_a_gpu_reaches(monkeypatch, codes, words):
    """Made in the GPU's own context; the one that was there before is there again, whatever comes of it."""
    told = []

    class Driver:
        def cuDeviceGet(self, device, number):  # noqa: N802
            device._obj.value = 10 + number

        def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
            context._obj.value = 100 + device.value

        def cuCtxGetCurrent(self, context):  # noqa: N802
            context._obj.value = 7

        def cuCtxSetCurrent(self, context):  # noqa: N802
            told.append(context.value)

        def cuMemHostAlloc(self, here, size, flags):  # noqa: N802
            told.append((size.value, flags.value))
            here._obj.value = 4096
            return codes[0]

        def cuMemHostGetDevicePointer_v2(self, there, here, flags):  # noqa: N802
            there._obj.value = here.value + 5
            return codes[1]

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    if words is None:
        assert desk._mapped(3, 640) == (4096, 4101)
    else:
        with pytest.raises(MemoryError, match=words):
            desk._mapped(3, 640)
    assert told == [113, (640, desk.PORTABLE | desk.MAPPED), 7]


def test_without_a_driver_it_is_said(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert peers._unreachable.__wrapped__((0, 1)) == "libcuda.so.1 is missing"


# What the attention's source says.

COSINES = jnp.zeros((1, 1, 12))


@pytest.mark.parametrize(
    ("rule", "rope", "made"),
    [
        (ScoreRule(), (COSINES, COSINES), Constants(24, "rsqrtf((float)H)", "0")),
        (ScoreRule(7), None, Constants(0, "rsqrtf((float)H)", "0")),
        (ScoreRule(None, 0.25, 50.0), None, Constants(0, "2.500000000e-01f", "5.000000000e+01f")),
        (ScoreRule(None, None, 30.0), None, Constants(0, "rsqrtf((float)H)", "3.000000000e+01f")),
    ],
)
def test_constants_of_a_call(rule, rope, made):
    assert constants.constants(rule, rope) == made


def test_numbers_as_the_source_has_them():
    assert [constants.unless(value, 1) for value in (1.0, 0.5)] == ["1", "5.000000000e-01f"]
    assert constants.unless(0.0, 0) == "0"
    assert constants.ACTIVATIONS == ("silu", "gelu_pytorch_tanh", "gelu", "relu")
    assert constants.rotary_refusal([16, 64]) is constants.rotary_refusal([]) is None
    for odd in (8, 24, 40):
        assert f"{odd} rotated elements" in constants.rotary_refusal([64, odd])


HALF = Rope(partial_rotary_factor=0.5)


@pytest.fixture
def kinds(tiny_config):
    """Two kinds in turn: a window of 6 with half of each head turning, and all positions without any turn."""
    mixed = (LayerKind(6, HALF), LayerKind(None, None))
    return dataclasses.replace(tiny_config, num_hidden_layers=5, layer_kinds=mixed)


def test_kinds_of_layers_in_the_decode_kernel(kinds, tiny_config):
    assert family.distinct_kinds(kinds) == kinds.layer_kinds
    assert family.distinct_kinds(tiny_config) == (LayerKind(None, tiny_config.rope),)
    first, others = family.limits(kinds, 40)
    assert (first.tolist(), others.tolist(), first.dtype, others.dtype) == ([40, 6], [0], np.int32, np.int32)
    first, others = family.limits(tiny_config, 40)
    assert (first.tolist(), others.tolist()) == ([40, 0], [])
    assert (family.rotary_dim(kinds), family.rotary_dim(tiny_config)) == (4, 8)
    still = dataclasses.replace(kinds, layer_kinds=(LayerKind(None, None),))
    assert family.rotary_dim(still) == 8
    tables = family.decode_frequencies(kinds, jnp.array([3], jnp.int32))
    np.testing.assert_allclose(tables, [[1.0, 0.01], [0.0, 0.0]], rtol=1e-6)
    assert family.decode_frequencies(tiny_config, jnp.array([3], jnp.int32)).shape == (1, 4)
    slow = LayerKind(6, dataclasses.replace(HALF, rope_theta=16.0))
    three = dataclasses.replace(kinds, layer_kinds=(*kinds.layer_kinds, slow))
    tables = family.decode_frequencies(three, jnp.array([3, 4], jnp.int32))  # of both texts, kind by kind
    np.testing.assert_allclose(tables, [[1.0, 0.01]] * 2 + [[0.0, 0.0]] * 2 + [[1.0, 0.25]] * 2, rtol=1e-6)


def test_constants_of_a_family(kinds, tiny_config):
    plain = family.family_defines(tiny_config, "bfloat16", (), True)
    assert plain == {
        "KINDS": 1,
        "KINDS_OF_LAYERS": "{0, 0}",
        "ROTARY": 8,
        "ROPE_SCALE(kind)": "1.000000000e+00f",
        "LAYER_SLOTS": 16,
        "PRE": 1,
        "POST": 0,
        "QK_NORM": 0,
        "QKV_BIAS": "false",
        "O_BIAS": "false",
        "GU_BIAS": "false",
        "DOWN_BIAS": "false",
        "NORM_OFFSET": "0",
        "SCALE": "rsqrtf((float)H)",
        "CAP": "0",
        "FINAL_CAP": "0",
        "EMBED_SCALE": "1",
        "RESIDUAL_SCALE": "1",
        "LOGIT_SCALE": "1",
        "ACTIVATION": 0,
    }
    strange = dataclasses.replace(
        kinds,
        norm_offset=1.0,
        attention_multiplier=0.5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0,
        embedding_multiplier=8.0,
        residual_multiplier=0.25,
        logits_scaling=16.0,
        hidden_act="gelu",
    )
    made = family.family_defines(strange, "bfloat16", ("ffn_post_norm", "mlp.down_bias"), False)
    changed = {name: value for name, value in made.items() if value != plain[name]}
    assert changed == {
        "KINDS": 2,
        "KINDS_OF_LAYERS": "{0, 1, 0, 1, 0}",
        "ROTARY": 4,
        "ROPE_SCALE(kind)": "(kind == 0 ? 1.000000000e+00f : 1.000000000e+00f)",
        "LAYER_SLOTS": 24,
        "PRE": 0,
        "DOWN_BIAS": "true",
        "NORM_OFFSET": "1.000000000e+00f",
        "SCALE": "5.000000000e-01f",
        "CAP": "2.000000000e+00f",
        "FINAL_CAP": "4.000000000e+00f",
        "EMBED_SCALE": "8.000000000e+00f",
        "RESIDUAL_SCALE": "2.500000000e-01f",
        "LOGIT_SCALE": "6.250000000e-02f",
        "ACTIVATION": 2,
    }


def test_constants_of_what_only_some_families_have(tiny_config):
    """Each by itself: norms behind the layers, norms of heads, an attention factor of one kind of layer."""
    for extras, post, qk in (((), 0, 0), (family.EXTRAS[:2], 1, 0), (family.EXTRAS[2:4], 0, 1)):
        made = family.family_defines(tiny_config, "bfloat16", extras, True)
        assert (made["POST"], made["QK_NORM"]) == (post, qk)
    yarn = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.25)
    config = dataclasses.replace(tiny_config, layer_kinds=(LayerKind(None, yarn), LayerKind(None, None)))
    scale = family.family_defines(config, "bfloat16", (), True)["ROPE_SCALE(kind)"]
    assert scale == "(kind == 0 ? 1.250000000e+00f : 1.000000000e+00f)"


# Many rows on several GPUs.


@pytest.mark.parametrize(
    ("changes", "rows", "dtype", "words"),
    [
        (dict(), 64, "bfloat16", None),
        (dict(), 64, "float32", "16 bits in both"),
        (dict(norm_placement="post"), 64, "bfloat16", "norms that are placed post"),
        (dict(hidden_size=34), 64, "bfloat16", "rows of 34"),
        (dict(), MOST // 32, "bfloat16", None),
        (dict(), MOST // 32 + 1, "bfloat16", "too many for words"),
    ],
)
def test_which_steps_of_many_rows_are_taken(monkeypatch, tiny_config, changes, rows, dtype, words):
    asked = []
    monkeypatch.setattr(wide_batch, "attention_refusal", lambda *given: asked.append(given))
    config = dataclasses.replace(tiny_config, **changes)
    params = SimpleNamespace(norm=jnp.zeros(1, dtype))
    cache = KVCache.empty(tiny_config, batch=1, max_len=2, dtype=dtype)
    reason = wide_batch.wide_refusal(config, params, cache, rows)
    assert reason is None if words is None else words in reason
    if words is None:
        assert asked == [(2, 8, jnp.dtype(dtype), [8])]


def test_a_cache_of_other_numbers_is_refused(monkeypatch, tiny_config):
    cache = KVCache.empty(tiny_config, batch=1, max_len=2, dtype="float16")
    params = SimpleNamespace(norm=jnp.zeros(1, jnp.bfloat16))
    assert "with a cache of float16" in wide_batch.wide_refusal(tiny_config, params, cache, 8)


@pytest.mark.parametrize(("columns", "slices"), [(32, 2), (48, 2), (24, 1)])
def test_the_columns_of_a_product_are_cut_into_whole_pieces_of_16_bytes(columns, slices):
    w, x = (np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) % 7 for rows in (5, 3))
    made = wide_batch._sliced(jnp.asarray(w), jnp.asarray(x))
    cut = columns // slices
    wanted = [x[:, i : i + cut] @ w[:, i : i + cut].T for i in range(0, columns, cut)]
    np.testing.assert_array_equal(made, wanted)


class Taken(Exception):  # noqa: N818
    """A way that a step goes."""


@pytest.mark.parametrize(
    ("rows", "few_bits", "peers", "way"),
    [
        (16, False, None, "product"),
        (17, False, None, "wide"),
        (16, True, None, "product"),
        (17, True, None, "few bits"),
        (17, True, "peers", "wide"),
    ],
)
def test_which_way_a_step_of_many_rows_goes(monkeypatch, tiny_config, rows, few_bits, peers, way):
    def raising(name):
        def call(config, params, tokens, *_):
            assert (tokens == 7).all()
            raise Taken(name)

        return call

    monkeypatch.setattr(batch, "knows_few_bits", lambda *_: few_bits)
    monkeypatch.setattr(batch, "most_products", lambda params, few: 16)
    for name, said in (("embed", "product"), ("wide_step", "wide"), ("few_bits_step", "few bits")):
        monkeypatch.setattr(batch, name, raising(said))
    monkeypatch.setattr(batch, "readable", lambda tokens, *_: tokens + 7)
    cache = SimpleNamespace(length=np.zeros(rows, np.int32), max_len=2)
    with pytest.raises(Taken, match=f"^{way}$"):
        batch.batch_step(tiny_config, None, np.zeros((rows, 1), np.int32), cache, None, {}, peers)


@pytest.mark.parametrize(
    ("placement", "weights", "known"),
    [
        ("pre", ["known", "known"], True),
        ("post", ["known", "known"], False),
        ("both", ["known", "known"], False),
        ("pre", ["known", "strange"], False),
        ("pre", ["known", np.zeros((2, 4))], False),
    ],
)
def test_where_weights_of_few_bits_are_known(monkeypatch, tiny_config, placement, weights, known):
    made = [
        QTensor(values=w, scales=0, offsets=None, shape=(2, 4), bits=8) if isinstance(w, str) else w
        for w in weights
    ]
    monkeypatch.setattr(batch, "weights_of", lambda params: made)
    bits = {"known": 8, "strange": 0}
    monkeypatch.setattr(batch, "arrangement", lambda w, rows: SimpleNamespace(bits=bits[w.values]))
    config = dataclasses.replace(tiny_config, norm_placement=placement)
    assert batch.knows_few_bits(config, None) is known
