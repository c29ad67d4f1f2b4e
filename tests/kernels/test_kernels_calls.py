"""Which kernel a call goes to and with what, what the CPU's refuse, and how CUDA is compiled; none is run."""

import ctypes
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.kernels.cpu import build, step
from jllama.kernels.gpu import launch
from jllama.kernels.target import Target
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope, rope_frequencies
from jllama.layers.shards import Shards
from tests.support.helpers import random_params

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
CPU, GPU = Target("cpu"), Target("gpu")


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


# Who is called.


class Called(Exception):  # noqa: N818
    """A kernel, or the plain model, with these arguments."""


@pytest.fixture
def calls(monkeypatch):
    """Everything raises `Called`; nothing is refused."""

    def raising(name):
        def call(*given, **options):
            raise Called(name, given, options)

        return call

    monkeypatch.setattr(kernels.model, "forward", raising("plain"))
    monkeypatch.setattr(kernels.cpu, "forward", raising("cpu"))
    monkeypatch.setattr(kernels.gpu, "decode_step", raising("decode"))
    monkeypatch.setattr(kernels.gpu, "batch_step", raising("batch"))
    monkeypatch.setattr(kernels, "gpu_attention", lambda *given: ("attention", given[4]))
    monkeypatch.setattr(kernels, "refusal", lambda *given: None)
    return monkeypatch


def called(params, target, B=1, T=1, **options):
    cache = KVCache.empty(CONFIG, batch=B, max_len=16, dtype="float32")
    tokens, n_valid = jnp.zeros((B, T), jnp.int32), jnp.full((B,), T, jnp.int32)
    with pytest.raises(Called) as call:
        kernels.forward(CONFIG, params, tokens, cache, n_valid=n_valid, target=target, **options)
    return call.value.args


@pytest.mark.parametrize(
    ("target", "B", "T", "name"),
    [
        (GPU, 1, 1, "decode"),
        (GPU, 2, 1, "batch"),
        (CPU, 1, 1, "cpu"),
        (CPU, 2, 3, "cpu"),
    ],
)
def test_the_kernel_of_a_whole_call(calls, params, target, B, T, name):
    found, given, options = called(params, target, B, T)
    assert found == name
    assert given[:2] == (CONFIG, params)
    if name == "cpu":
        assert options == {"last_only": True}
        assert called(params, target, B, T, last_only=False)[2] == {"last_only": False}
        (cosines, _), *_ = given[4][CONFIG.rope]
        assert cosines.shape == (B, T, CONFIG.head_dim // 2)


def test_a_few_texts_go_through_the_kernel_of_one(calls, params):
    calls.setattr(kernels.gpu, "decode_refusal", lambda *given: None)
    name, given, _ = called(params, GPU, B=3)
    assert name == "decode"
    assert given[4].shape == (3, CONFIG.head_dim // 2)
    assert given[6].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("target", "fresh", "attend"),
    [
        (CPU, True, append_and_attend),
        (GPU, True, ("attention", True)),
        (GPU, False, ("attention", False)),
    ],
)
def test_the_plain_model_gets_the_gpu_s_attention_there_alone(calls, params, target, fresh, attend):
    calls.setattr(kernels, "refusal", lambda *given: "no")
    name, _, options = called(params, target, fresh=fresh, last_only=False)
    assert (name, options["attend_fn"], options["last_only"]) == ("plain", attend, False)
    assert options["context"] is None
    assert options["n_valid"].tolist() == [1]
    whole = jnp.array([9], jnp.int32)
    assert called(params, target, fresh=fresh, context=whole)[2]["context"] is whole
    calls.setattr(kernels, "gpu_attention", lambda *given: None)
    assert called(params, target, fresh=fresh)[2]["attend_fn"] is append_and_attend


@pytest.mark.parametrize(
    ("target", "B", "few"), [(GPU, 1, False), (GPU, 2, True), (GPU, 2, False), (CPU, 2, False)]
)
def test_what_a_kernel_has_read_is_valid_behind_it(calls, params, target, B, few):
    twins = ((kernels.cpu, "forward"), (kernels.gpu, "decode_step"), (kernels.gpu, "batch_step"))
    for module, name in twins:
        calls.setattr(module, name, lambda *given, **_: ("logits", given[3]))
    calls.setattr(kernels.gpu, "decode_refusal", lambda *_: None if few else "many")
    cache = KVCache.empty(CONFIG, batch=B, max_len=16, dtype="float32").holding(np.full(B, 3, np.int32))
    n_valid = np.array([1, 0], np.int32)[:B]
    given = (CONFIG, params, jnp.zeros((B, 1), jnp.int32), cache)
    logits, cache = kernels.forward(*given, n_valid=n_valid, target=target)
    assert (logits, cache.length.tolist()) == ("logits", [4, 3][:B])


GROWING = Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=4)


@pytest.mark.parametrize(("context", "length"), [(None, 8), (jnp.array([30], jnp.int32), 30)])
@pytest.mark.parametrize(("target", "T"), [(GPU, 1), (CPU, 1), (CPU, 4)])
def test_a_kernel_is_told_how_far_the_text_goes(calls, params, target, T, context, length):
    """What the cache holds and the tokens that count, unless the whole text is longer."""
    config = dataclasses.replace(CONFIG, rope=GROWING)
    cache = KVCache.empty(config, batch=1, max_len=64, dtype="float32").holding(np.int32([7]))
    tokens = jnp.zeros((1, T), jnp.int32)
    with pytest.raises(Called) as call:
        kernels.forward(config, params, tokens, cache, n_valid=np.int32([1]), context=context, target=target)
    name, given, _ = call.value.args
    angles = rope_frequencies(GROWING, config.head_dim, jnp.array([length], jnp.int32))
    if name == "decode":
        np.testing.assert_allclose(given[4], angles, rtol=1e-6)
        return
    cosines, _ = given[4][GROWING][0]
    positions = 7 + np.arange(T)[None, :, None]
    np.testing.assert_allclose(cosines, np.cos(positions * np.asarray(angles)[:, None]), rtol=1e-4, atol=1e-5)
    assert given[5].tolist() == [1]


@pytest.mark.parametrize(
    ("on_gpu", "use", "reach", "boxes"),
    [(True, True, None, 1), (True, True, "no", 0), (True, False, None, 0), (False, True, None, 0)],
)
def test_only_gpus_that_reach_each_other_get_mailboxes(params, monkeypatch, on_gpu, use, reach, boxes):
    class Mesh:
        size, devices = 2, np.array(["a", "b"], object)

    asked = []
    target = Target("gpu" if on_gpu else "cpu", use, Mesh())
    monkeypatch.setattr(kernels, "target_of", lambda tree: target)
    monkeypatch.setattr(kernels.gpu, "peers_refusal", lambda devices: asked.append(devices) or reach)
    monkeypatch.setattr(kernels.gpu, "mailboxes", lambda mesh: jnp.zeros((mesh.size, 2), jnp.int32))
    made = kernels.joined(params)
    assert (made is params, made.peers is not None) == (not boxes, bool(boxes))
    assert asked in ([], [["a", "b"]])
    kind = type(kernels.shards_of(made, target))
    assert kind is (kernels.gpu.Peers if boxes else Shards)
    assert kernels.shards_of(params, GPU) is None
    assert kernels.peers_refusal(GPU) is None


class TwoDevices:
    size = 2


@pytest.mark.parametrize(
    ("target", "refused", "asks"),
    [
        (GPU, None, True),
        (GPU, "no pinned memory", False),
        (CPU, None, False),
        (Target("gpu", False), None, False),
        (Target("gpu", True, TwoDevices()), None, False),
    ],
)
def test_which_programs_ask_for_masks(monkeypatch, target, refused, asks):
    monkeypatch.setattr(kernels.gpu, "desk_refusal", lambda: refused)
    assert kernels.asks_for_masks(target) is asks


@pytest.mark.parametrize(
    ("target", "refused", "skips"), [(CPU, None, True), (CPU, "no compiler", False), (GPU, None, False)]
)
def test_where_padding_costs_nothing(monkeypatch, target, refused, skips):
    asked = []
    monkeypatch.setattr(kernels, "refusal", lambda *given: asked.append(given) or refused)
    assert kernels.skips_padding(CONFIG, "params", "cache", target) is skips
    assert asked == [(CONFIG, "params", None, "cache", target)] * (target == CPU)


@pytest.mark.parametrize(
    ("target", "refused", "whose"),
    [
        (CPU, None, "the kernels'"),
        (CPU, "no compiler", "anyone's"),
        (Target("cpu", False), None, "anyone's"),
        (Target("cpu", True, TwoDevices()), None, "anyone's"),
        (GPU, None, "anyone's"),
    ],
)
def test_whose_memory_a_cache_begins_in(monkeypatch, target, refused, whose):
    monkeypatch.setattr(kernels, "target_of", lambda tree: target)
    monkeypatch.setattr(kernels.cpu, "refusal", lambda: refused)
    monkeypatch.setattr(kernels.cpu, "empty_cache", lambda *given, **room: ("the kernels'", given, room))
    monkeypatch.setattr(kernels.sharding, "empty_cache", lambda *given, **room: ("anyone's", given, room))
    given = (CONFIG,) if whose == "the kernels'" else (CONFIG, "params")
    room = dict(batch=2, max_len=9)
    assert kernels.empty_cache(CONFIG, "params", **room) == (whose, given, room)


@pytest.mark.parametrize(
    ("target", "layout"),
    [
        (CPU, "tiles"),
        (Target("cpu", True, TwoDevices()), "rows"),
        (Target("metal"), "rows"),
        (GPU, "records"),
        (Target("gpu", True, TwoDevices()), "records"),
    ],
)
def test_how_quantised_weights_lie_for_a_target(target, layout):
    assert target.layout == layout


@pytest.mark.parametrize("target", [CPU, GPU])
def test_what_does_not_fit_is_refused_before_a_kernel_runs(calls, params, target):
    cache = KVCache.empty(CONFIG, batch=1, max_len=2, dtype="float32")
    with pytest.raises(JllamaError, match="3"):
        kernels.forward(
            CONFIG, params, jnp.zeros((1, 3), jnp.int32), cache, n_valid=np.int32([3]), target=target
        )


# What the CPU's kernels refuse.


@pytest.fixture
def loaded(monkeypatch):
    monkeypatch.setattr(build, "load", lambda parts: object())


def refused(params, dtype="float32", **fields):
    cache = KVCache.empty(CONFIG, batch=1, max_len=16, dtype=dtype)
    return step.forward_refusal(CONFIG, params, dataclasses.replace(cache, **fields))


def test_what_a_library_that_is_not_there_says(monkeypatch, params):
    monkeypatch.setattr(build, "load", lambda parts: f"no compiler for {parts}")
    assert refused(params) == "no compiler for ['attention_float32', 'dense_float32']"


def test_what_a_model_is_refused_for(loaded, params, monkeypatch):
    assert [refused(params, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")] == [None] * 3
    assert refused(params, keys=(jnp.zeros(1, jnp.int8),) * 2) == "a cache of int8"
    mixed = KVCache.empty(CONFIG, batch=1, max_len=16, dtype="float16").values
    assert refused(params, values=mixed) == "a cache of float32"
    with monkeypatch.context() as patch:
        patch.delitem(step.ACTIVATIONS, "silu")
        assert refused(params) == "the activation silu"
    odd = dataclasses.replace(params, norm=params.norm.astype(jnp.float16))
    assert refused(odd) == "norms and biases of several dtypes"
    strange = jax.tree.map(lambda leaf: leaf.astype(jnp.float8_e4m3fn), params)
    assert refused(strange) == "norms of float8_e4m3fn"
    weights = dataclasses.replace(params, embed_tokens=params.embed_tokens.astype(jnp.int8))
    assert refused(weights) == "weights of int8"
    head = dataclasses.replace(params, lm_head=params.lm_head.astype(jnp.int16))
    assert refused(head) == "weights of int16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_plain_weights_of_each_width(dtype):
    assert step.weight_refusal(jnp.zeros((2, 2), dtype)) is None


def quantised(bits=8, group=32, layout="tiles", scales="float16", offsets=None):
    def half(dtype):
        return None if dtype is None else jnp.zeros((1, 64 // group, 16), dtype)

    values = jnp.zeros((1, 16, 16, 4), jnp.int8 if bits == 8 else jnp.uint8)
    return QTensor(
        values=values, scales=half(scales), offsets=half(offsets), shape=(16, 64), bits=bits, layout=layout
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(), None),
        (dict(bits=4), None),
        (dict(group=64), None),
        (dict(scales="float32", offsets="float32"), None),
        (dict(scales="float16", offsets="float16"), None),
        (dict(layout="rows"), "quantised weights in the layout 'rows'; kernels.cpu.prepare makes tiles"),
        (dict(bits=2), "2-bit weights in groups of 32"),
        (dict(group=16), None),
        (dict(group=8), "8-bit weights in groups of 8"),
        (dict(bits=4, group=16), "4-bit weights in groups of 16"),
        (dict(scales="int8"), "scales of int8"),
        (dict(scales="float32", offsets="float16"), "scales of float16, float32"),
        (dict(scales="bfloat16"), "scales of bfloat16"),
    ],
)
def test_quantised_weights(changes, words):
    assert step.weight_refusal(quantised(**changes)) == words


def test_what_a_kernel_is_told_of_its_operands():
    plain, packed, offset = (
        jnp.zeros((2, 3, 4), "bfloat16"),
        quantised(4),
        quantised(8, 64, offsets="float32"),
    )
    offset = dataclasses.replace(offset, scales=offset.scales.astype("float32"))
    units = jnp.zeros((1, 1, 16), "float16")
    two = dataclasses.replace(quantised(8, 16, scales="int8", offsets="int8"), scale_units=units)
    two = dataclasses.replace(two, offset_units=units)
    operands = step.Operands(jnp.zeros(1))
    for weight in (plain, packed, offset, two):
        operands.weight(weight)
    assert operands.spec == [
        *(1, 6, 4, 0, 0, 1, -1, -1, -1, -1),
        *(4, 16, 64, 32, 1, 2, 3, -1, -1, -1),
        *(3, 16, 64, 64, 0, 4, 5, 6, -1, -1),
        *(3, 16, 64, 16, 2, 7, 8, 9, 10, 11),
    ]
    assert len(operands.arrays) == 12
    assert operands.add(None) == -1


@pytest.mark.parametrize("last_only", [True, False])
def test_the_numbers_of_a_call(params, last_only):
    config = dataclasses.replace(CONFIG, sliding_window=5, hidden_act="gelu")
    cache = KVCache.empty(config, batch=3, max_len=16, dtype="float16")
    positions = jnp.tile(jnp.arange(2), (3, 1))
    places = kernels.model.places(config, positions, jnp.full(3, 2))
    made = step._operands(config, params, jnp.zeros((3, 2), jnp.int32), cache, places, jnp.ones(3), last_only)
    sizes, rest = made.spec[:14], made.spec[14:]
    assert sizes == [2, 3, 2, 32, 2, 2, 8, 48, 64, 16, 1, 0, 2, int(last_only)]
    factors = np.array(rest[:8]).view(np.float64).tolist()
    assert factors == [config.rms_norm_eps, 0.0, 1.0, 1.0, 8**-0.5, 0.0, 1.0, 0.0]
    assert made.arrays[3].tolist() == [0, 1, 2]  # without rows of its own each text has the cache's
    kinds = rest[8 + 10 * 10 : -1]  # of two layers
    assert [kinds[0], kinds[len(kinds) // 2]] == [5, 5]
    assert rest[-1] == len(made.arrays) - 1  # the last norm


# How CUDA becomes machine code.


class Library:
    """NVRTC as far as it is used."""

    def __init__(self, fails=0, unread=0):
        self.fails, self.unread, self.said = fails, unread, []

    def nvrtcCreateProgram(self, program, source, *rest):  # noqa: N802
        self.said.append(("create", source))

    def nvrtcCompileProgram(self, program, count, flags):  # noqa: N802
        self.said.append(("compile", [flags[i] for i in range(count)]))
        return self.fails

    def nvrtcGetPTXSize(self, program, size):  # noqa: N802
        ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t))[0] = 5

    def nvrtcGetPTX(self, program, buffer):  # noqa: N802
        buffer.value = b"code"
        return self.unread

    nvrtcGetProgramLogSize = nvrtcGetPTXSize  # noqa: N815

    def nvrtcGetProgramLog(self, program, buffer):  # noqa: N802
        buffer.value = b"line"
        return 0

    def nvrtcDestroyProgram(self, program):  # noqa: N802
        self.said.append("destroy")


@pytest.mark.parametrize(
    ("library", "words"),
    [(Library(), None), (Library(fails=6), "NVRTC: line"), (Library(unread=1), "NVRTC: no PTX")],
)
def test_a_program_is_compiled_and_given_back(monkeypatch, library, words):
    monkeypatch.setattr(launch, "_nvrtc", lambda: library)
    if words is None:
        assert launch._compile("source", ("-a", "-b")) == "code"
    else:
        with pytest.raises(RuntimeError, match=words):
            launch._compile("source", ("-a", "-b"))
    assert library.said == [("create", b"source"), ("compile", [b"-a", b"-b"]), "destroy"]


def test_without_a_compiler_it_is_said(monkeypatch):
    monkeypatch.setattr(launch, "_nvrtc", lambda: None)
    assert launch._nvrtc_version() == (0, 0)
    with pytest.raises(RuntimeError, match="libnvrtc is missing"):
        launch._compile("source", ())


def test_the_newest_compiler_that_jax_brings_comes_first(monkeypatch, tmp_path):
    names = [f"{package}/lib/libnvrtc.so.{n}" for package, n in (("cu12", 12), ("cu13", 13), ("cu13", 9))]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tried = []

    def load(name):
        tried.append(str(name).removeprefix(f"{tmp_path}/"))
        raise OSError("not here")

    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found if name == "nvidia" else None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert launch._nvrtc.__wrapped__() is None
    system = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    assert tried == ["cu13/lib/libnvrtc.so.13", "cu12/lib/libnvrtc.so.12", *system]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tried.clear()
    assert launch._nvrtc.__wrapped__() is None
    assert tried == system
