"""How the GPU's kernels are cut and which calls they take, from both sides of each border; no GPU."""

import dataclasses
import functools
import math
from types import MappingProxyType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.checkpoint.random_params import random_params
from jllama.cli import ready_made
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.kernels.gpu import (
    batch,
    chunk_attention,
    decode,
    decode_attention,
    launch,
    plan,
    prefill,
    product,
    sample,
    stream,
    wide_product,
)
from jllama.kernels.gpu.constants import PLAIN, Arrangement
from jllama.kernels.gpu.layout import Activations, Format, Tile, attention_map, block_map, rounded
from jllama.kernels.target import Target
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import LayerCache
from jllama.layers.kind import ScoreRule
from jllama.layers.qtensor import QTensor

ROOM = 232448
CONFIG = ModelConfig.from_hf(
    dict(
        model_type="llama",
        vocab_size=128,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that launches anything."""
    made = SimpleNamespace(blocks=132, room=ROOM, capability=(9, 0))
    monkeypatch.setattr(launch, "memory_rate", lambda: 3.35e12)
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: made.blocks)
    monkeypatch.setattr(launch, "shared_memory", lambda: made.room)
    monkeypatch.setattr(launch, "capability", lambda: made.capability)
    return made


# Which machine.


def test_how_fast_a_memory_is(monkeypatch):
    def attribute(value, which, number):
        assert number.value == 13
        value._obj.value = {36: 2_619_000, 37: 5120}[which]

    def get(number, ordinal):
        number._obj.value = 10 + ordinal

    driver = SimpleNamespace(cuDeviceGet=get, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(launch.ctypes, "CDLL", {"libcuda.so.1": driver}.__getitem__)
    monkeypatch.setattr(launch, "device", lambda: SimpleNamespace(local_hardware_id=3))
    assert launch.memory_rate.__wrapped__() == pytest.approx(3.352e12, rel=1e-3)  # an H100's
    monkeypatch.setattr(launch, "device", lambda: None)
    assert launch.memory_rate.__wrapped__() == 0


@pytest.mark.parametrize(
    ("kind", "capability", "version", "nvrtc", "words"),
    [
        ("NVIDIA H100", "9.0", (0, 11, 0), object(), None),
        ("nvidia h100", "10.0", (0, 12, 1), object(), None),
        ("NVIDIA A100", "8.0", (0, 11, 0), object(), None),
        ("NVIDIA T4", "7.5", (0, 11, 0), object(), "compute capability 7.5; the kernels need 8.0"),
        ("NVIDIA H100", "9.0", (0, 10, 9), object(), "is older than 0.11.0"),
        ("NVIDIA H100", "9.0", (0, 11, 0), None, "libnvrtc is missing"),
        ("AMD", "9.0", (0, 11, 0), object(), "no NVIDIA GPU"),
        (None, "9.0", (0, 11, 0), object(), "no NVIDIA GPU"),
    ],
)
def test_on_which_machine_kernels_run(monkeypatch, kind, capability, version, nvrtc, words):
    found = SimpleNamespace(device_kind=kind, compute_capability=capability, core_count=132.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if kind else "cpu")
    monkeypatch.setattr(jax, "devices", lambda: [found])
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(launch, "_nvrtc", lambda: nvrtc)
    for function in (launch.device, launch.capability, launch.refusal):
        monkeypatch.setattr(launch, function.__name__, function.__wrapped__)
    reason = launch.refusal()
    assert reason is None if words is None else words in reason
    is_ours = "NVIDIA" in (kind or "").upper()
    assert launch.blocks_at_once() == (132 if is_ours else 0)
    assert launch.capability() == (tuple(map(int, capability.split("."))) if is_ours else (0, 0))


@pytest.mark.parametrize(
    ("capability", "room"),
    [
        *(((9, 0), 232448), ((10, 0), 232448), ((12, 0), 101376)),
        *(((8, 0), 166912), ((8, 6), 101376), ((8, 7), 166912), ((8, 9), 101376)),
    ],
)
def test_how_much_memory_a_block_may_share(monkeypatch, capability, room):
    monkeypatch.setattr(launch, "capability", lambda: capability)
    assert launch.shared_memory() == room
    assert launch.engine() == (capability >= (9, 0))


@pytest.mark.parametrize(
    ("own", "asked", "taken"),
    [
        ("9.0", "", (9, 0)),
        ("9.0", "9.0", None),
        ("9.0", "8.0", (8, 0)),
        ("9.0", "8.6", (8, 6)),
        ("8.6", "8.0", (8, 0)),
        ("8.6", "8.6", (8, 6)),
        ("10.0", "9.0", None),  # its code runs on no other GPU
        ("8.6", "8.9", None),
        ("9.0", "8.1", None),
        ("9.0", "8", None),
        ("9.0", " 8.0", None),
        ("7.5", "8.0", None),
    ],
)
def test_code_of_an_earlier_compute_capability_can_be_asked_for(monkeypatch, own, asked, taken):
    monkeypatch.setenv("JLLAMA_GPU_ARCH", asked)
    monkeypatch.setattr(launch, "device", lambda: SimpleNamespace(compute_capability=own))
    if taken is None:
        with pytest.raises(JllamaError, match=r"JLLAMA_GPU_ARCH='.*' is no compute capability"):
            launch.capability.__wrapped__()
    else:
        assert launch.capability.__wrapped__() == taken
    monkeypatch.setattr(launch, "device", lambda: None)
    assert launch.capability.__wrapped__() == (0, 0)


def test_a_kernel_is_called_with_its_sizes(monkeypatch):
    asked = []

    def ffi_call(name, results, **how):
        asked.append((name, results, how))
        return lambda *operands, **attributes: asked.append((operands, attributes)) or "out"

    monkeypatch.setattr(jax.ffi, "ffi_call", ffi_call)
    monkeypatch.setattr(launch, "compiled", lambda source: f"ptx of {source}")
    for grid, sizes in ((7, (7, 1, 1)), ((2, 3, 4), (2, 3, 4))):
        asked.clear()
        assert launch.call("src", "f", [1, 2], [3], grid=grid, threads=64, shared=5, aliases={1: 0}) == "out"
        (name, results, how), (operands, attributes) = asked
        assert (name, results, how["input_output_aliases"]) == ("__gpu$xla.gpu.ptx", [3], {1: 0})
        assert (operands, attributes["name"], attributes["kernel_data"]) == ((1, 2), "f", "ptx of src")
        assert tuple(int(attributes[f"grid_{axis}"]) for axis in "xyz") == sizes
        assert tuple(int(attributes[f"block_{axis}"]) for axis in "xyz") == (64, 1, 1)
        assert int(attributes["shared_mem_bytes"]) == 5
    asked.clear()
    launch.call("src", "f", [1], [2], grid=1, threads=32)
    assert (asked[0][2]["input_output_aliases"], int(asked[1][1]["shared_mem_bytes"])) == ({}, 0)


def test_a_source_is_its_sizes_and_its_files():
    assert launch.assemble("#define A 1\n", "primitives.cu").startswith("#define A 1\n")
    both = launch.assemble("", "primitives.cu", "sample.cu")
    assert both == launch.assemble("", "primitives.cu") + launch.assemble("", "sample.cu")


# What is refused.


@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype", "words"),
    [
        (16, 128, jnp.bfloat16, None),
        (4, 256, jnp.bfloat16, None),
        (1, 32, "float16", None),
        (17, 128, jnp.bfloat16, "more than 16 query heads"),
        (4, 288, jnp.bfloat16, "head_dim 288"),
        (4, 48, jnp.bfloat16, "head_dim 48"),
        (4, 64, "float32", "float32"),
    ],
)
def test_what_the_attention_of_one_token_takes(gpu, heads, head_dim, dtype, words):
    reason = decode_attention.attention_refusal(heads, head_dim, dtype)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("head_dim", "dtype", "capability", "words"),
    [
        (128, jnp.bfloat16, (9, 0), None),
        (16, "float16", (9, 0), None),
        (256, jnp.bfloat16, (9, 0), None),
        (272, jnp.bfloat16, (9, 0), "head_dim 272"),
        (40, jnp.bfloat16, (9, 0), "head_dim 40"),
        (64, "float32", (9, 0), "float32"),
        (64, jnp.bfloat16, (10, 0), "compute capability 10"),
    ],
)
def test_what_the_attention_of_a_chunk_takes(gpu, head_dim, dtype, capability, words):
    gpu.capability = capability
    reason = chunk_attention.chunk_refusal(head_dim, dtype)
    assert reason is None if words is None else words in reason


def test_what_part_of_a_head_may_turn(gpu):
    for rotary, fits in (((), True), ((96,), True), ((32, 128), True), ((128, 40), False)):
        for refusal in (
            decode_attention.attention_refusal(4, 128, jnp.bfloat16, rotary),
            chunk_attention.chunk_refusal(128, jnp.bfloat16, rotary),
        ):
            assert refusal is None if fits else "40 rotated elements" in refusal


@pytest.mark.parametrize(
    ("head_dim", "dtype", "tokens", "words"),
    [
        (128, jnp.bfloat16, 64, None),
        (8, "float16", 64, None),
        (136, jnp.bfloat16, 64, "head_dim 136"),
        (12, jnp.bfloat16, 64, "head_dim 12"),
        (64, "float32", 64, "float32"),
        (64, jnp.bfloat16, 63, "63 tokens"),
    ],
)
def test_what_cudnn_takes(head_dim, dtype, tokens, words):
    reason = prefill.prefill_refusal(head_dim, dtype, tokens)
    assert reason is None if words is None else words in reason
    if words is None:
        assert "attn_logit_softcapping" in prefill.prefill_refusal(head_dim, dtype, tokens, 50.0)


@pytest.mark.parametrize(
    ("bits", "group", "columns", "capability", "taken"),
    [
        (8, None, 64, 9, 8),
        (8, None, 96, 9, 0),  # whole panels
        (8, 32, 128, 9, 0),
        (4, 32, 128, 9, 4),
        (4, 32, 64, 9, 0),  # two panels
        (4, 64, 128, 9, 0),
        (8, None, 64, 8, 0),
        (8, None, 64, 10, 0),
        (16, None, 64, 9, 0),
    ],
)
def test_for_which_weights_activations_are_arranged(gpu, bits, group, columns, capability, taken):
    gpu.capability = (capability, 0)
    w = np.ones((2, columns), np.float16)
    if bits < 16:
        scales = np.ones((2, columns // (group or columns)), np.float16 if group else np.float32)
        offsets = scales if bits == 4 else None
        w = QTensor(values=0, scales=scales, offsets=offsets, shape=(2, columns), bits=bits)
    for tokens, room in ((1, 8), (8, 8), (9, 16)):
        wanted = Arrangement(taken, room) if taken else PLAIN
        assert wide_product.arrangement(w, tokens) == wanted


@pytest.mark.parametrize(
    ("rows", "most", "cut"),
    [
        (64 * 132, 8, dict(WM=1, WK=2, SLICES=1)),  # a tile for each multiprocessor
        (64 * 133, 8, dict(WM=2, WK=1, SLICES=1)),
        (64 * 66, 8, dict(WM=1, WK=2, SLICES=2)),
        (64 * 66, 1, dict(WM=1, WK=2, SLICES=1)),
        (64 * 4, 8, dict(WM=1, WK=2, SLICES=8)),
    ],
)
def test_how_a_product_of_arranged_activations_is_cut(gpu, rows, most, cut):
    shape = wide_product.make_shape(32, rows, 4096, Format(8, 0, 4), most)
    assert {name: getattr(shape, name) for name in cut} == cut
    assert shape.tiles == -(-rows // (64 * shape.WM))


@pytest.mark.parametrize(("tokens", "stages"), [(8, (16, 16)), (128, (9, 8))])
def test_as_much_is_on_its_way_as_there_is_room_for(gpu, tokens, stages):
    """Activations and weights by turns, sixteen stages of each at most."""
    shape = wide_product.make_shape(tokens, 64 * 200, 4096, Format(4, 32, 2))
    assert stages == (shape.X_STAGES, shape.W_STAGES)
    assert shape.shared <= ROOM
    assert tokens == 8 or dataclasses.replace(shape, W_STAGES=shape.W_STAGES + 1).shared > ROOM


@pytest.mark.parametrize(
    ("formats", "packed", "recorded"),
    [
        ([Format(16, 0, 0)], False, False),
        ([Format(16, 0, 0), Format(8, 0, 4)], True, False),
        ([Format(16, 0, 0), Format(4, 32, 0, True, 16)], True, True),
    ],
)
def test_what_a_plan_says_of_its_weights(formats, packed, recorded):
    made = SimpleNamespace(every_tile=[SimpleNamespace(format=f) for f in formats])
    assert plan.Plan.packed.fget(made) is packed
    assert plan.Plan.recorded.fget(made) is recorded


@pytest.mark.parametrize(
    ("f", "columns", "words"),
    [
        (Format(16, 0, 0), 4096, None),
        (Format(8, 0, 4), 4096, None),
        (Format(8, 32, 2), 4096, None),
        (Format(4, 32, 2, True), 4096, None),
        (Format(4, 128, 2), 4096, None),
        (Format(4, 0, 2), 4096, "4 bits in groups of 0"),
        (Format(8, 128, 2), 4096, "8 bits in groups of 128"),
        (Format(8, 32, 2, True), 4096, None),
        (Format(8, 16, 4), 4096, None),
        (Format(8, 0, 4, True), 4096, "8-bit weights whose rows have offsets"),
        (Format(8, 0, 2), 4096, "or float16 scales"),
        (Format(4, 32, 1, True), 4096, "two levels, but in records"),
        (Format(4, 32, 0, True, 16), 768, None),
        (Format(8, 16, 0, True, 32), 768, None),
        (Format(4, 32, 0, True, 16), 640, "rows of 640 weights of 4 bits"),
        (Format(8, 16, 0, True, 32), 640, "rows of 640 weights of 8 bits"),
        (Format(4, 128, 2), 384, "rows of 384 weights of 4 bits"),  # six bytes of scales
        (Format(4, 128, 2), 512, None),
        (Format(16, 0, 0), 4112, "rows of 4112 weights of 16 bits"),
        (Format(16, 0, 0), 32, None),
        (Format(16, 0, 0), 1 << 20, "too long for the shared memory"),
    ],
)
def test_what_a_product_takes(gpu, f, columns, words):
    reason = product.product_refusal(f, 256, columns)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("tokens", "quantised", "fits"),
    [
        ((1, 1), False, False),
        ((2, 1), False, True),
        ((16, 1), False, True),
        ((33, 1), False, False),
        ((32, 1), True, True),
        ((33, 1), True, False),
        ((2, 2), False, False),
    ],
)
def test_how_many_texts_a_step_takes(gpu, monkeypatch, tokens, quantised, fits):
    leaf = QTensor(values=0, scales=0, offsets=None, shape=(2, 4), bits=8) if quantised else np.zeros((2, 4))
    monkeypatch.setattr(batch, "weights_of", lambda params: [leaf])
    monkeypatch.setattr(batch, "refused_leaf", lambda *_: None)
    monkeypatch.setattr(batch, "_config_refusal", lambda *_: None)
    monkeypatch.setattr(batch, "weight_refusal", lambda w: None)
    params = SimpleNamespace(layers=[], embed_tokens=leaf, norm=leaf, peers=None)
    reason = batch.batch_refusal(CONFIG, params, None, np.zeros(tokens, np.int32))
    assert reason is None if fits else f"tokens have shape {tokens}" in reason
    if fits:
        monkeypatch.setattr(batch, "weight_refusal", lambda w: "too odd")
        assert batch.batch_refusal(CONFIG, params, None, np.zeros(tokens, np.int32)) == "too odd"


FORMATS = [
    (Format(16, 0, 0), 64, None),
    (Format(8, 0, 4), 64, None),
    (Format(8, 0, 2), 64, "or float16 scales"),
    (Format(8, 0, 4, True), 64, "8-bit weights whose rows have offsets"),
    (Format(8, 32, 2, True), 64, None),
    (Format(8, 16, 4), 64, None),
    (Format(4, 32, 1, True), 256, "two levels, but in records"),
    (Format(4, 32, 0, True, 16), 256, None),
    (Format(8, 16, 0, True, 32), 1280, None),
    (Format(8, 16, 0, True, 32), 1152, "rows of 1152 weights of 8 bits"),
    (Format(4, 32, 2, True), 64, None),
    (Format(4, 16, 2), 64, "4 bits in groups of 16"),
    (Format(16, 0, 0), 48, "rows of 48 weights"),
    (Format(4, 128, 2), 192, "rows of 192 weights"),
    (Format(8, 32, 2), 1024, None),
    (Format(8, 32, 2), 1056, "scales that are no multiple of 16 bytes"),
    (Format(8, 32, 2), 1280, None),
]


@pytest.mark.parametrize(("f", "width", "words"), FORMATS)
def test_which_rows_the_decode_kernel_reads(f, width, words):
    reason = decode._format_refusal(f, width, SimpleNamespace(row_bytes=1024))
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("vocab", "gpu_", "kernels_", "chosen"),
    [(100, True, True, True), (100, False, True, False), (100, True, False, False)],
)
def test_who_chooses_tokens(monkeypatch, vocab, gpu_, kernels_, chosen):
    monkeypatch.setattr(kernels.gpu, "sampling_refusal", lambda vocab: None)
    target = Target("gpu" if gpu_ else "cpu", kernels_)
    assert kernels.chooses_tokens(vocab, target) is chosen
    monkeypatch.setattr(kernels.gpu, "sampling_refusal", lambda vocab: "no")
    assert kernels.chooses_tokens(vocab, target) is False


@pytest.mark.parametrize(("vocab", "fits"), [(1 << 22, True), ((1 << 22) + 1, False)])
def test_how_large_a_vocabulary_is_sampled(gpu, vocab, fits):
    assert "shared memory" in sample.sampling_refusal(1 << 22)
    gpu.room = 1 << 30
    assert (sample.sampling_refusal(vocab) is None) == fits


@pytest.mark.parametrize(
    ("name", "value"), [("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg")]
)
def test_other_random_numbers_than_the_kernels_are_left_to_jax(gpu, monkeypatch, name, value):
    assert sample.sampling_refusal(1000) is None
    monkeypatch.setattr(sample.jax, "config", SimpleNamespace(values=jax.config.values | {name: value}))
    assert "random numbers" in sample.sampling_refusal(1000)


def test_why_no_kernel_runs_a_call(monkeypatch, tiny_config, tiny_params):
    cache = kernels.KVCache.empty(tiny_config, batch=2, max_len=8, dtype="float32")
    token = np.zeros((2, 1), np.int32)

    def reason(target, token=token):
        return kernels.refusal(tiny_config, tiny_params, token, cache, target)

    monkeypatch.setattr(kernels.gpu, "decode_refusal", lambda *_: "one")
    monkeypatch.setattr(kernels.gpu, "batch_refusal", lambda *_: "several")
    told = []
    monkeypatch.setattr(kernels.cpu, "forward_refusal", lambda *given, waits: told.append(waits) or "cpu's")
    assert reason(Target("gpu", False)) == reason(Target("cpu", False)) == "JLLAMA_KERNELS=0"
    assert (reason(Target("gpu")), reason(Target("gpu"), token=token[:1])) == ("several", "one")
    assert reason(Target("gpu"), token=np.zeros((1, 3), np.int32)) == "one"
    monkeypatch.setattr(kernels.gpu, "decode_refusal", lambda *_: None)
    assert reason(Target("gpu")) is None
    monkeypatch.setattr(kernels.gpu, "decode_refusal", lambda *_: "one")
    assert reason(Target("metal")) == "no kernels for metal"
    assert reason(Target("cpu")) == "cpu's"
    assert kernels.notice(tiny_config, tiny_params, "float32", Target("cpu")) == "cpu's"
    assert kernels.notice(tiny_config, tiny_params, "float32", Target("cpu", False)) is None
    assert kernels.decode_refusal(tiny_config, tiny_params, "float32", Target("cpu"), waits=False) == "cpu's"
    assert told == [True, True, False]


# How the work is cut.


@pytest.mark.parametrize(
    ("batch_size", "length", "splits", "resident"),
    [
        (1, 256, 1, 1),
        (1, 511, 1, 1),
        (1, 512, 2, 1),
        (1, 1 << 20, 32, 1),
        (8, 1 << 20, 4, 1),
        (33, 4096, 1, 1),
        (34, 4096, 1, 2),
        (99, 4096, 1, 3),
        (512, 4096, 1, 4),
    ],
)
def test_blocks_share_a_head_only_where_most_would_be_idle(gpu, batch_size, length, splits, resident):
    shape = decode_attention.make_shape(batch_size, 4, 4, 64, length, None, jnp.bfloat16)
    assert (splits, resident) == (shape.P, shape.RESIDENT)
    assert (8 if resident == 1 else 4, 0, 0) == (shape.WARPS, shape.WINDOW, shape.FP16)
    assert 3 <= shape.STAGES <= 8
    assert shape.RESIDENT * (shape.shared + 1024) <= ROOM + 1024
    assert decode_attention.make_shape(1, 4, 4, 64, 99, 7, jnp.float16).WINDOW == 7
    assert decode_attention.make_shape(1, 4, 4, 64, 99, 7, jnp.float16).FP16 == 1
    assert decode_attention.make_shape(32, 4, 4, 128, 768, None, jnp.bfloat16).STAGES == 2  # 128 KB


@pytest.mark.parametrize(
    ("batch_size", "head_dim", "cut"),
    [
        (512, 128, dict(RESIDENT=2, WARPS=4, STAGES=3)),  # four would have room for one stage each
        (1, 256, dict(RESIDENT=1, WARPS=4, STAGES=3)),  # all that there is room for
        (512, 256, dict(RESIDENT=1, WARPS=4, STAGES=3)),
        (1, 32, dict(RESIDENT=1, WARPS=8, STAGES=8)),
    ],
)
def test_wide_heads_leave_room_for_fewer_blocks(gpu, batch_size, head_dim, cut):
    shape = decode_attention.make_shape(batch_size, 4, 4, head_dim, 4096, None, jnp.bfloat16)
    assert {name: getattr(shape, name) for name in cut} == cut


@pytest.mark.parametrize(
    ("tokens", "head_dim", "length", "window", "fresh", "consumers", "splits"),
    [
        (16, 64, 4096, None, False, 3, 16),
        (16, 128, 4096, None, False, 2, 16),
        (16, 64, 511, None, False, 3, 1),
        (16, 64, 512, None, False, 3, 2),
        (16, 64, 4096, 240, False, 3, 1),
        (16, 64, 4096, 496, False, 3, 2),
        (16, 64, 4096, None, True, 3, 1),
        (512, 64, 4096, None, False, 3, 6),
        (4096, 64, 4096, None, False, 3, 1),
    ],
)
def test_how_a_chunk_is_cut(gpu, tokens, head_dim, length, window, fresh, consumers, splits):
    shape = chunk_attention.make_shape(1, tokens, 2, 4, head_dim, length, window, jnp.bfloat16, fresh)
    assert (consumers, splits) == (shape.CONSUMERS, shape.P)
    one = shape.blocks // shape.P
    assert one == 2 * math.ceil(tokens * 4 / (64 * consumers))
    assert shape.P == 1 or shape.blocks <= 132
    assert shape.shared <= ROOM
    assert shape.threads == 128 * (consumers + 1)
    assert len(shape.results) == (1 if splits == 1 else 2)
    assert shape.results[0] == (1, tokens, 2, 4, head_dim)
    how = chunk_attention.append_launch(shape)
    assert how["grid"] * how["threads"] >= tokens * 2 * head_dim // 16 > (how["grid"] - 1) * how["threads"]


def test_where_memory_is_small_fewer_warps_ask_further_ahead(gpu):
    gpu.room = 101376
    shape = decode_attention.make_shape(1, 4, 4, 128, 4096, None, jnp.bfloat16)
    assert (shape.WARPS, shape.STAGES, shape.RESIDENT) == (4, 3, 1)
    assert shape.shared <= gpu.room


def test_one_query_a_row_is_attended_to_as_by_the_plain_model(monkeypatch):
    """What a prompt's last token gives, behind whatever its row held before."""
    rng, (batch, tokens, keys, groups, width) = np.random.default_rng(0), (2, 3, 2, 2, 16)
    qkv = jnp.asarray(rng.standard_normal((batch, tokens, keys, groups + 2, width)), jnp.float32)
    held = rng.standard_normal((2, batch, keys, 9, width)).astype(np.float32)
    length, only = np.array([0, 4], np.int32), jnp.array([1, 2], jnp.int32)
    cache = LayerCache(keys=jnp.asarray(held[0]), values=jnp.asarray(held[1]), length=jnp.asarray(length))
    angles = rng.standard_normal((batch, tokens, width // 2)).astype(np.float32)
    rope = (jnp.cos(angles), jnp.sin(angles))
    wanted, appended = append_and_attend(qkv, cache, rope, ScoreRule(), only)
    monkeypatch.setattr(launch, "call", lambda *_, **__: (appended.keys, appended.values))
    monkeypatch.setattr(chunk_attention, "chunk_source", lambda shape: "")
    ours, left = chunk_attention.chunk_attend(qkv, cache, rope, ScoreRule(), only)
    np.testing.assert_array_equal(ours, wanted)
    np.testing.assert_array_equal(left.keys, appended.keys)
    nothing = dataclasses.replace(cache, length=jnp.zeros(2, jnp.int32))
    for index in (only, jnp.zeros(2, jnp.int32)):
        ours, left = prefill.prefill_attend(qkv, nothing, rope, ScoreRule(2), index)
        wanted, appended = append_and_attend(qkv, nothing, rope, ScoreRule(2), index)
        np.testing.assert_array_equal(ours, wanted)
        np.testing.assert_array_equal(left.keys, appended.keys)


def test_a_chunk_has_fewer_stages_where_memory_is_small(gpu):
    whole = chunk_attention.make_shape(1, 64, 2, 4, 128, 4096, None, jnp.bfloat16).shared
    for room, stages in ((ROOM, 3), (whole, 3), (whole - 1, 2), (101376, 1)):
        gpu.room = room
        shape = chunk_attention.make_shape(1, 64, 2, 4, 128, 4096, None, jnp.bfloat16)
        assert shape.shared <= room
        assert stages >= shape.STAGES
        more = dataclasses.replace(shape, STAGES=shape.STAGES + 1)
        assert shape.STAGES == 4 or more.shared > room


@pytest.mark.parametrize("rows", [16, 2048, 2064, 128256])
@pytest.mark.parametrize("tokens", [2, 8, 9, 16, 17, 32])
@pytest.mark.parametrize("f", [Format(16, 0, 0), Format(8, 0, 4), Format(4, 32, 2, True)])
def test_every_row_of_a_product_has_a_block(gpu, rows, tokens, f):
    shape = product.make_shape(tokens, rows, 4096, f, product.NOTHING, eps=1e-5, wide=True, fp16=True)
    sums = shape.padded // 8 * 4  # of a tile, in a thread's registers
    assert (shape.MT - 1) * sums < product.SUMS
    assert shape.shared <= ROOM
    assert shape.STAGES == 12 or dataclasses.replace(shape, STAGES=shape.STAGES + 1).shared > ROOM
    assert shape.padded % 8 == 0
    assert 0 <= shape.padded - tokens < 8
    tiles = -(-rows // 16)
    assert shape.CL * shape.CLUSTERS <= 132
    assert tiles >= shape.CLUSTERS
    assert (shape.NORM, shape.WIDE, shape.FP16, shape.EPS) == (1, 1, 1, "1.000000000e-05f")
    assert product.result_shape(shape) == (tokens, rows)
    assert product.result_shape(dataclasses.replace(shape, AFTER=product.GATED)) == (tokens, rows // 2)
    plain = product.make_shape(tokens, rows, 4096, f, product.RESIDUAL)
    assert (plain.NORM, plain.WIDE, plain.FP16, plain.AFTER) == (0, 0, 0, product.RESIDUAL)


@pytest.mark.parametrize(
    ("batch_size", "vocab", "cluster", "threads"),
    [
        (1, 1024, 1, 512),
        (1, 2047, 1, 512),
        (1, 2048, 2, 512),
        (1, 128256, 8, 1024),
        (66, 128256, 4, 1024),
        (67, 32000, 1, 1024),
        (200, 8192, 1, 512),
        (200, 8193, 1, 1024),
        (1, 65536, 8, 512),
        (1, 65537, 8, 1024),
    ],
)
def test_how_many_blocks_sample_a_row(gpu, batch_size, vocab, cluster, threads):
    shape = sample.make_shape(batch_size, vocab, 3)
    assert (cluster, threads, 3, vocab) == (shape.CLUSTER, shape.NT, shape.STOPS, shape.V)
    assert shape.shared <= ROOM


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("qwen3-0.6b", dict(chunk=64, joined=4, team=1, groups=4, row_bytes=1024)),
        ("gemma-3-1b", dict(chunk=64, joined=5, team=1, groups=4, row_bytes=1152)),
        ("gemma-3-270m", dict(chunk=64, joined=5, team=1, groups=2, row_bytes=1280)),
        ("qwen2.5-0.5b", dict(chunk=128, joined=5, team=1, groups=2, row_bytes=2048)),
        ("smollm3-3b", dict(chunk=64, joined=4, team=2, groups=2, row_bytes=1024)),
        ("tinyllama-1.1b", dict(chunk=128, joined=4, team=2, groups=2, row_bytes=1024)),
    ],
)
def test_small_layers_are_cut_for_their_waits(gpu, name, cut):
    made = plan_of(name)
    assert {field: getattr(made, field) for field in cut} == cut
    assert made.slots % made.groups == 0 or made.slots >= made.groups + made.lag
    assert made.slots >= made.turn  # else a block would wait for values that have no slot
    assert all(min(tile.slices, made.groups) * made.warps // made.groups % 4 == 0 for tile in made.every_tile)


def plan_of(name: str) -> plan.Plan:
    config = dataclasses.replace(ModelConfig.from_hf(ready_made.shape(name)), num_hidden_layers=2)
    return plan.make_plan(config, jax.eval_shape(functools.partial(random_params, config)))


EIGHT, FOUR = Format(8, 32, 2), Format(4, 32, 2, offsets=True)
RECORDS = Format(4, 32, 0, offsets=True, record=16)


@pytest.mark.parametrize(
    ("head", "texts", "joined"),
    [(EIGHT, 1, 4), (EIGHT, 2, 2), (FOUR, 1, 1), (FOUR, 2, 1), (FOUR, 4, 1), (RECORDS, 2, 1)],
)
def test_parts_beside_4_bits_are_joined_by_one_block(gpu, head, texts, joined):
    made = plan_of("tinyllama-1.1b")
    assert dataclasses.replace(made, formats=(*made.formats[:4], (head,)), texts=texts).joined == joined


@pytest.mark.parametrize(("head", "texts", "slots"), [(FOUR, 1, 8), (EIGHT, 1, 11), (FOUR, 2, 9)])
def test_one_text_with_4_bits_leaves_a_ninth_slot_out(gpu, head, texts, slots):
    made = plan_of("tinyllama-1.1b")
    each = tuple((head,) for _ in made.formats)
    made = dataclasses.replace(made, formats=each, stored=((0,) * 4,) * 2, texts=texts)
    assert made.slots == slots


def test_four_texts_of_narrow_rows_join_their_parts_whatever_the_bits(gpu):
    made = plan_of("qwen2.5-0.5b")  # 896 columns of o
    formats = (*made.formats[:4], (FOUR,))
    assert [dataclasses.replace(made, formats=formats, texts=n).joined for n in (2, 4, 8)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("qwen3-0.6b", dict(producers=4, team=2, groups=4, in_flight=65536)),
        ("tinyllama-1.1b", dict(producers=4, team=4, groups=4, in_flight=65536)),
        ("smollm3-3b", dict(producers=4, team=4, groups=2, in_flight=65536)),
    ],
)
def test_a_fast_memory_is_asked_by_more_warps(gpu, monkeypatch, name, cut):
    slow = plan_of(name)
    assert slow.producers == 2
    monkeypatch.setattr(launch, "memory_rate", lambda: 4.9e12)
    made = plan_of(name)
    assert {field: getattr(made, field) for field in cut} == cut
    assert made.slots >= made.groups + made.lag


@pytest.mark.parametrize(("capability", "room"), [((8, 0), 166912), ((8, 6), 101376), ((8, 9), 101376)])
@pytest.mark.parametrize("name", ["tinyllama-1.1b", "qwen3-0.6b", "gemma-3-1b", "smollm3-3b", "llama-3.1-8b"])
def test_a_plan_without_copy_engine_fits_its_card(gpu, name, capability, room):
    gpu.capability, gpu.room, gpu.blocks = capability, room, 82
    config = dataclasses.replace(ModelConfig.from_hf(ready_made.shape(name)), num_hidden_layers=2)
    params = jax.eval_shape(functools.partial(random_params, config))
    cache = jax.eval_shape(lambda: kernels.KVCache.empty(config, batch=1, max_len=64, dtype="bfloat16"))
    assert decode.decode_refusal(config, params, cache, np.zeros((1, 1), np.int32)) is None
    made = plan.make_plan(config, params)
    assert (made.engine, made.producers) == (False, 4)
    assert made.shared <= room < made.map(made.slots + made.groups)[1]
    assert made.slots >= made.turn
    assert "copy_pieces" in plan.source(made, [0])
    assert "copy_pieces" not in plan.source(dataclasses.replace(made, engine=True), [0])


@pytest.mark.parametrize("batch_size", [2, 8, 9, 16, 32])
def test_without_clusters_a_product_takes_what_a_block_has_room_for(gpu, monkeypatch, batch_size):
    gpu.capability, gpu.room = (8, 0), 166912
    f, most = Format(16, 0, 0), 8
    shape = product.make_shape(batch_size, 2048, 5632, f, product.NOTHING)
    fits = product.product_refusal(f, 2048, 5632, batch_size) is None
    assert shape.CL == 1
    assert fits == (batch_size <= most) == (shape.shared <= gpu.room)
    weight = jax.ShapeDtypeStruct((2048, 5632), jnp.bfloat16)
    monkeypatch.setattr(batch, "weights_of", lambda params: [weight])
    assert batch.most_products(None) == most
    gpu.capability = (9, 0)
    assert batch.most_products(None) == product.MAX_PLAIN


# Where things lie.


def product_shape(**sizes):
    plain = dict(TOKENS=3, ROWS=64, COLUMNS=512, MT=1, CL=1, CLUSTERS=4, WARPS=16, STAGES=4, BITS=16, GROUP=0)
    plain |= dict(SCALE_BYTES=0, OFFSETS=0, RECORD=0, NORM=0, EPS="0", AFTER=0, WIDE=0, FP16=0)
    return product.Shape(**plain | sizes)


def wide_shape(**sizes):
    plain = dict(TOKENS=33, ROWS=64, COLUMNS=512, BITS=8, GROUP=0, SCALE_BYTES=4, OFFSETS=0, GATED=0)
    return wide_product.Shape(**plain | dict(OUT_BITS=0, BIAS=0, ACTIVATION=0, FP16=0) | sizes)


FEW = dict(BITS=4, GROUP=32, SCALE_BYTES=2, OFFSETS=1)
ROWS_OF = dict(SCALE="1", CAP="0", ROTARY=0, FP16=0, WINDOW=0)
SHARED = [
    (product_shape(), 8 * (1024 + 64) + 16 * (512 + 4 * 1024) + 4 * 16),
    (product_shape(TOKENS=9, MT=2, WARPS=8), 16 * (1024 + 64) + 8 * (2 * 1024 + 4 * 1024) + 4 * 16),
    (product_shape(TOKENS=17, WARPS=8, STAGES=5), 24 * (1024 + 64) + 8 * (1536 + 5 * 1024) + 4 * 24),
    (product_shape(COLUMNS=2048, CL=4, **FEW), 8 * (1024 + 32) + 16 * (512 + 4 * (1024 + 512)) + 4 * 16),
    (product_shape(BITS=8, GROUP=32), 8 * (1024 + 16) + 16 * (512 + 4 * (1024 + 256)) + 4 * 16),
    (product_shape(BITS=8, GROUP=16, RECORD=32), 8 * (1024 + 16) + 16 * (512 + 4 * (1024 + 512)) + 4 * 16),
    (wide_shape(), 4 * 40 * 128 + 4 * 4 * 1024 + 16 * 4),
    (wide_shape(WM=2, X_STAGES=5), 5 * 40 * 128 + 4 * 2 * 4 * 1024 + 16 * 5),
    (wide_shape(WK=2, W_STAGES=3, **FEW), 4 * 40 * 128 + 4 * 2 * 3 * 1536 + 40 * 256 * 2 + 16 * 4),
    (stream.Shape(20, 64, 512, MT=2, STAGES=5), 8 * 5 * (2 * 1024 + 24 * 64) + 24 * 16 * 2 * 4),
    (stream.Shape(20, 64, 512, MT=2, CL=1, WARPS=16), 16 * 3 * (2 * 1024 + 24 * 64)),
    (
        decode_attention.Shape(B=1, K=2, G=4, H=64, S=99, P=1, WARPS=8, STAGES=5, RESIDENT=1, **ROWS_OF),
        8 * (5 * (4096 + 8) + 128) + 6 * 64 * 2 + 16,
    ),
    (
        chunk_attention.Shape(B=1, TOKENS=9, K=2, G=4, H=96, S=99, CONSUMERS=2, STAGES=3, P=1, **ROWS_OF),
        256 * (64 * 2 + 2 * 3 * 128) + 4 * 3 * 8 + 16,
    ),
    (
        chunk_attention.Shape(B=1, TOKENS=9, K=2, G=4, H=256, S=99, CONSUMERS=2, STAGES=1, P=1, **ROWS_OF),
        512 * (64 * 2 + 2 * 64) + 4 * 8 + 16,
    ),
    (
        sample.Shape(V=1001, CLUSTER=2, NT=512, STOPS=4),
        2016 + (2048 * 16 + 1024 * 16 + 8192) + (16 + 4) * 16 + 96 + 3 * 128 * 16 + 16 + 48,
    ),
    (
        sample.Shape(V=1001, CLUSTER=1, NT=512, STOPS=4, APART=1),
        16 + (2048 * 16 + 2048 * 16 + 8192) + (16 + 2) * 16 + 96 + 2 * 128 * 16 + 16 + 48,
    ),
]


@pytest.mark.parametrize(("shape", "size"), SHARED)
def test_bytes_that_a_kernel_shares(shape, size):
    """Rings of weights and activations, sums, barriers: as the sources lay them out."""
    assert shape.shared == size


@pytest.mark.parametrize(("size", "unit", "whole"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16)])
def test_a_size_is_rounded_up(size, unit, whole):
    assert rounded(size, unit) == whole


def test_parts_of_shared_memory_lie_one_behind_another():
    places, total = block_map(slots=3, slot=1000, x=129, kept=8, H=64, L=2, warps=4)
    assert places["OFF_RING"] == 0
    assert places["OFF_X"] == 3000
    assert places["OFF_PART"] == 3000 + 256
    assert places["OFF_RES"] == places["OFF_PART"] + 512 * 4
    assert places["OFF_ROPE"] == places["OFF_RES"] + 16
    assert places["OFF_RED"] == places["OFF_ROPE"] + 64 * 4
    assert places["OFF_BAR"] == places["OFF_MAX"] + 4 * 4 + 16
    assert places["OFF_TABLE"] == places["OFF_BAR"] + 2 * 3 * 8
    assert places["OFF_PAST"] == places["OFF_TABLE"] + (16 + 2 * 16) * 8
    assert total == places["OFF_PAST"] + 64
    many, total = block_map(3, 1000, 129, 8, 64, 2, 4, per_layer=24, kinds=3, post=True, texts=8)
    assert many["OFF_RES"] == many["OFF_PART"] + 8 * (512 * 4 // 2 + 16)
    assert many["OFF_RED"] == many["OFF_ROPE"] + 3 * 64 * 4
    assert many["OFF_BAR"] == many["OFF_MAX"] + 4 * 4 + 8 * 4  # a scale of each text behind the warps'
    assert many["OFF_PAST"] == many["OFF_TABLE"] + (16 + 2 * 24) * 8
    assert (many["OFF_POST"], total) == (many["OFF_PAST"] + 3 * 64, many["OFF_POST"] + 4 * 4)
    inner, total = attention_map(H=64, G=4, chunk=128, warps=8)
    assert (inner["QS"], inner["TW"], inner["AW"]) == (144, 16, 8)
    assert total == inner["A_S"] + 2 * 8 * (128 + 8) * 4
    assert attention_map(H=64, G=9, chunk=128, warps=8)[1] == inner["A_S"] + 2 * 16 * (128 + 8) * 4
    assert attention_map(H=64, G=4, chunk=64, warps=8)[0]["TW"] == 8


@pytest.mark.parametrize(
    ("f", "columns", "size"),
    [
        (Format(16, 0, 0), 100, 200),
        (Format(8, 0, 4), 128, 3 * 192),
        (Format(8, 32, 2), 128, 2 * 192 + 4 * 8),
        (Format(8, 0, 4), 129, 3 * 320),
    ],
)
def test_activations_take_limbs(f, columns, size):
    made = Activations(f, columns)
    assert (made.size, made.of(1)) == (size, size)
    assert made.text == rounded(size, 128) + (32 if f.group else 64)  # another bank for each text
    assert made.of(3) == 3 * made.text
    floats = Activations(f, columns, floats=True)
    assert floats.text == rounded(floats.size, 128) + 64


@pytest.mark.parametrize(("bits", "columns", "rows"), [(16, 256, 16), (16, 264, 8), (8, 5632, 16)])
def test_short_rows_lie_by_sixteen(bits, columns, rows):
    assert Tile(Format(bits, 0, 4), columns, 1024, 2).rows == rows


@pytest.mark.parametrize(
    "f",
    [
        *(Format(16, 0, 0), Format(8, 0, 4), Format(8, 32, 2), Format(4, 32, 2, True), Format(4, 64, 2)),
        *(Format(4, 32, 0, True, 16), Format(8, 16, 0, True, 32)),
    ],
)
@pytest.mark.parametrize("columns", [256, 2048, 5632])
def test_a_tile_holds_its_rows_and_scales(f, columns):
    tile = Tile(f, columns, 1024, 2)
    assert tile.row == columns * f.bits // 8
    assert tile.rows in (8, 16)
    assert tile.stride >= min(tile.row, tile.units * 64)
    assert tile.stride % 128 in (16, 64)
    assert tile.units % 4 == 0 or not f.group
    assert tile.size >= tile.rows * tile.stride
    assert (tile.size > tile.rows * tile.stride) == bool(f.group)
    pieces = -(-tile.row // (64 * tile.units))
    assert not f.group or tile.row <= 1024 or pieces % 2 == 0 or tile.units % 4 == 0
    sizes = f.record * columns // 256 if f.record else columns // f.group * f.scale_bytes if f.group else 0
    assert f.row_scales(columns) == sizes
    assert f.lists == (0 if not f.group else 1 if f.record or not f.offsets else 2)
    assert f.unit == (f.group * f.bits // 2 if f.group else 64)


@pytest.mark.parametrize(
    ("f", "columns", "texts", "lies"),
    [
        (Format(16, 0, 0), 256, 1, (16, 8, 1, 576, 0, 9216)),
        (Format(16, 0, 0), 2048, 4, (8, 16, 4, 1088, 0, 8704)),
        (Format(8, 0, 4), 5632, 2, (16, 15, 6, 1088, 0, 17408)),
        (Format(8, 32, 2), 2048, 1, (16, 16, 2, 1040, 0, 17920)),  # slices that both groups share
        (Format(4, 32, 2, True), 2048, 1, (16, 16, 1, 1088, 0, 22016)),  # or one, whole
        (Format(4, 32, 2, True), 2048, 4, (16, 16, 1, 1040, 0, 21248)),  # by words, with offsets
        (Format(4, 32, 2), 5632, 1, (16, 12, 4, 832, 0, 15104)),  # four, though three would do
        (Format(4, 128, 2), 256, 1, (16, 4, 1, 144, 64, 2432)),  # 4 bytes of scales: copied in one piece
        (Format(8, 16, 0, True, 32), 2304, 1, (16, 12, 3, 832, 0, 15104)),
        (Format(4, 32, 2), 2080, 1, (16, 12, 2, 832, 1072, 15456)),
        (Format(8, 64, 2), 2304, 1, (16, 12, 3, 784, 608, 13760)),  # 72 bytes: no multiple of 16
    ],
)
def test_how_a_tile_lies(f, columns, texts, lies):
    """Rows, units of 64 bytes, slices of a row, bytes between rows, where the up rows' scales begin, size."""
    tile = Tile(f, columns, 1024, 2, texts)
    assert (tile.rows, tile.units, tile.slices, tile.stride, tile.second, tile.size) == lies
    scales = f.row_scales(columns)
    assert tile.scale_stride == (scales if tile.second else f.row_scales(tile.units * 512 // f.bits) + 16)


def test_parts_are_smaller_from_five_texts_on():
    """And a text's begins on another bank than the one before."""
    sizes = {}
    for texts in (1, 2, 4, 5, 8):
        places, _ = block_map(3, 1000, 129, 8, 64, 2, 4, texts=texts)
        sizes[texts] = places["OFF_RES"] - places["OFF_PART"]
    assert sizes == {1: 2048, 2: 2 * 2064, 4: 4 * 2064, 5: 5 * 1040, 8: 8 * 1040}


def test_every_pointer_is_stored_once():
    text = plan._load_table([0, -1, 7, 8, -1, 9, 3], tied=True, warps=3)
    stores = sorted(part.split(";")[0] for part in text.split("T[")[1:])
    assert stores == sorted(
        [
            "0] = (u64)a0",
            "7] = (u64)a2",
            "8] = (u64)a3",
            "9] = (u64)a5",
            "3] = (u64)a6",
            "10] = (u64)a2",
            "11] = (u64)a3",
            "12] = (u64)a5",
        ]
    )
    assert text.count("case ") == 3
    assert "10]" not in plan._load_table([0, 7], tied=False, warps=3)


@pytest.mark.parametrize(
    ("leaf", "f"),
    [
        (np.zeros((2, 4), np.float16), Format(16, 0, 0)),
        (
            QTensor(values=0, scales=np.zeros((2, 1), np.float32), offsets=None, shape=(2, 64), bits=8),
            Format(8, 0, 4),
        ),
        (
            QTensor(values=0, scales=np.zeros((2, 2), np.float16), offsets=None, shape=(2, 64), bits=8),
            Format(8, 32, 2),
        ),
        (
            QTensor(values=0, scales=np.zeros((2, 1), np.float16), offsets=0, shape=(2, 64), bits=4),
            Format(4, 64, 2, True),
        ),
        (
            QTensor(values=0, scales=0, offsets=None, shape=(2, 256), bits=4, layout="records"),
            Format(4, 32, 0, True, 16),
        ),
        (
            QTensor(values=0, scales=0, offsets=None, shape=(2, 256), bits=8, layout="records"),
            Format(8, 16, 0, True, 32),
        ),
    ],
)
def test_how_a_weight_is_stored(leaf, f):
    assert plan.weight_format(leaf) == f


# What is written where it lies.


def test_the_caches_are_written_where_they_lie(gpu, monkeypatch):
    seen = []

    def call(source, name, operands, results, *, aliases=MappingProxyType({}), **sizes):
        at = {operand: results[result] for operand, result in aliases.items()}
        for operand, result in at.items():
            assert (operands[operand].shape, operands[operand].dtype) == (result.shape, result.dtype)
        seen.append({id(operands[operand]) for operand in at})
        return [jnp.zeros(result.shape, result.dtype) for result in results]

    monkeypatch.setattr(launch, "call", call)
    cache = kernels.KVCache.empty(CONFIG, batch=1, max_len=64, dtype="bfloat16")
    params, half = random_params(CONFIG), CONFIG.head_dim // 2
    arrays = {id(array) for array in (*cache.keys, *cache.values)}
    decode.decode_step(CONFIG, params, jnp.zeros((1, 1), jnp.int32), cache, jnp.ones((1, half)))
    assert seen == [arrays]
    qkv = jnp.zeros((1, 1, 2, 6, CONFIG.head_dim), jnp.bfloat16)
    layer, rope = cache.layer(0), (jnp.zeros((1, 1, half)),) * 2
    decode_attention.decode_attend(qkv, layer, rope, ScoreRule())
    assert seen[1] == {id(layer.keys), id(layer.values)}
    qkv, rope = jnp.zeros((1, 16, 2, 6, CONFIG.head_dim), jnp.bfloat16), (jnp.zeros((1, 16, half)),) * 2
    chunk_attention.chunk_attend(qkv, layer, rope, ScoreRule())
    assert seen[2] == {id(layer.keys), id(layer.values)}
