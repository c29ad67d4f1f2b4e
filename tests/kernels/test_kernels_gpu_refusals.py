"""Which models the GPU kernels take, and how compiled kernels are kept: nothing here needs a GPU."""

import dataclasses
import errno
import os

import jax.numpy as jnp
import pytest

from jllama.config import LayerKind
from jllama.kernels.gpu import decode, launch, plan
from jllama.layers.cache import KVCache
from jllama.layers.rope import Rope
from tests.kernels.test_kernels_gpu import SMALL, filled, weights


@pytest.fixture
def four_blocks(monkeypatch):
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 4)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)


TOKEN = jnp.zeros((1, 1), jnp.int32)
SCALED = Rope(llama_4_scaling_beta=0.1, original_max_position_embeddings=64)
HALF = Rope(partial_rotary_factor=0.5)
SHAPES = [
    (dict(qk_norm="full"), "qk_norm=full"),
    (dict(head_dim=40), "head_dim 40"),
    (dict(head_dim=288), "head_dim 288"),
    (dict(rope=Rope(llama_4_scaling_beta=0.1, original_max_position_embeddings=64)), "llama_4_scaling_beta"),
    (dict(layer_kinds=(LayerKind(rope=SCALED), LayerKind())), "llama_4_scaling_beta"),
    (
        dict(num_hidden_layers=2, layer_kinds=(LayerKind(), LayerKind(rope=HALF))),
        "now [16], now [32] elements turn",
    ),
    (dict(rope=dataclasses.replace(HALF, partial_rotary_factor=0.32)), "[10] rotated elements"),
    (dict(num_hidden_layers=9, layer_kinds=tuple(map(LayerKind, range(1, 10)))), "9 kinds of layers"),
    (dict(num_attention_heads=34, num_key_value_heads=2), "16 query heads"),
    (dict(hidden_size=272), "multiple of 32"),
    (dict(intermediate_size=720), "multiple of 32"),
    (dict(vocab_size=131), "odd vocabulary"),
    (dict(num_attention_heads=8, num_key_value_heads=8), "more key heads than blocks"),
    (dict(hidden_size=32800), "longer than 32768"),
]


@pytest.mark.parametrize(("changes", "words"), SHAPES, ids=str)
def test_shapes_that_the_kernel_does_not_know(four_blocks, changes, words):
    cache = KVCache.empty(SMALL, batch=1, max_len=64)
    config = dataclasses.replace(SMALL, **changes)
    assert words in str(decode.decode_refusal(config, weights(SMALL, "bf16"), cache, TOKEN))


@pytest.mark.parametrize(
    "changes",
    [
        dict(head_dim=256),
        dict(num_attention_heads=32, num_key_value_heads=2),
        dict(num_attention_heads=8, num_key_value_heads=4),  # of four blocks
        dict(hidden_size=288, intermediate_size=736),
        dict(hidden_size=32768),
        dict(intermediate_size=32768),
        dict(vocab_size=130),
        dict(rope=Rope(partial_rotary_factor=12 / 32)),
        dict(num_hidden_layers=9, layer_kinds=tuple(map(LayerKind, range(1, 9)))),
    ],
    ids=str,
)
def test_shapes_at_the_borders_are_taken(four_blocks, changes):
    assert SMALL.head_dim == 32
    assert decode._config_refusal(dataclasses.replace(SMALL, **changes)) is None


def test_arrays_that_the_kernel_does_not_know(four_blocks):
    cache, params = filled(SMALL, 64, 0), weights(SMALL, "bf16")
    assert decode.decode_refusal(SMALL, params, cache, TOKEN) is None
    assert "one token" in decode.decode_refusal(SMALL, params, cache, jnp.zeros((1, 2), jnp.int32))
    assert "one token" in decode.decode_refusal(SMALL, params, cache, jnp.zeros((9, 1), jnp.int32))
    assert "one token" not in str(decode.decode_refusal(SMALL, params, cache, jnp.zeros((8, 1), jnp.int32)))
    for narrow in ("float32", "float16"):
        reason = decode.decode_refusal(SMALL, params, filled(SMALL, 64, 0, narrow), TOKEN)
        assert f"bfloat16 with a cache of {narrow}" in reason
    wide = weights(SMALL, "bf16", "float32")
    assert "float32" in decode.decode_refusal(SMALL, wide, filled(SMALL, 64, 0, "float32"), TOKEN)


def test_every_layer_must_have_the_weights_of_the_first(four_blocks):
    config = dataclasses.replace(SMALL, num_hidden_layers=2, norm_placement="both", qk_norm="head")
    params, cache = weights(config, "bf16"), KVCache.empty(config, batch=1, max_len=64)
    assert decode.decode_refusal(config, params, cache, TOKEN) is None

    def refusal(change, layers=(0, 1)):
        own = [change(layer) if i in layers else layer for i, layer in enumerate(params.layers)]
        return decode.decode_refusal(config, dataclasses.replace(params, layers=tuple(own)), cache, TOKEN)

    def without(layer, *names):
        return dataclasses.replace(layer, **dict.fromkeys(names))

    def one_sided(layer):
        return dataclasses.replace(layer, attention=without(layer.attention, "k_norm"))

    assert refusal(lambda layer: without(layer, "attn_post_norm", "ffn_post_norm")) is None
    assert refusal(lambda layer: without(layer, "attn_norm", "ffn_norm")) is None
    assert "one norm of two" in refusal(lambda layer: without(layer, "ffn_post_norm"))
    assert "one norm of two" in refusal(one_sided)
    for name in ("ffn_norm", "attn_norm"):
        assert "different weights" in refusal(lambda layer, name=name: without(layer, name))
    assert "different weights" in refusal(lambda layer: without(layer, "attn_norm", "ffn_norm"), layers=(1,))
    assert "different weights" in refusal(one_sided, layers=(1,))


def test_layers_may_be_stored_in_a_few_ways(four_blocks):
    config = dataclasses.replace(SMALL, num_hidden_layers=5)
    stored = ("bf16", "int8", "q8", "int4", "q4")
    each = [weights(SMALL, kind).layers[0] for kind in stored]
    cache = KVCache.empty(config, batch=1, max_len=64)

    def made(layers):
        return dataclasses.replace(weights(SMALL, "bf16"), layers=tuple(layers))

    params = made([each[0], each[1], each[3], each[1], each[0]])
    assert decode.decode_refusal(config, params, cache, TOKEN) is None
    cut = plan.make_plan(config, params)
    assert cut.stored == tuple((which,) * 4 for which in (0, 1, 2, 1, 0))
    assert [len(formats) for formats in cut.formats] == [3, 3, 3, 3, 1]
    assert plan._formats_of_layers(cut) == "{0, 85, 170, 85, 0}"
    untied = dataclasses.replace(params, lm_head=weights(SMALL, "int8").layers[0].mlp.down_proj)
    assert plan.make_plan(config, untied).head_rows == SMALL.hidden_size
    assert plan.make_plan(config, untied).formats[4] == cut.formats[3][1:2]
    assert "in more than 4 ways" in decode.decode_refusal(config, made(each), cache, TOKEN)


def test_every_group_of_warps_has_as_many_slots_as_the_others(four_blocks):
    made = plan.make_plan(SMALL, weights(SMALL, "bf16"))
    for slots in range(2, 9):
        one = dataclasses.replace(made, shared_bytes=made.map(slots)[1])
        assert (one.groups, one.slots) == (2, slots // 2 * 2)
        assert one.shared <= one.shared_bytes


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (dict(), 40),
        (dict(hidden_size=64), 32),
        (dict(intermediate_size=64), 32),
        (dict(num_attention_heads=1, num_key_value_heads=1, head_dim=22), 33),
    ],
    ids=str,
)
def test_no_block_is_without_work_in_any_stage(monkeypatch, changes, count):
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 40)
    sizes = dict(hidden_size=256, intermediate_size=256, num_attention_heads=8, num_key_value_heads=2)
    assert plan.blocks(dataclasses.replace(SMALL, **{**sizes, "head_dim": 32, **changes})) == count


def test_a_kernel_that_cannot_be_kept_is_used_all_the_same(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "_compile", lambda source, options: "// code")
    monkeypatch.setattr(os, "replace", full)
    assert launch.compiled.__wrapped__("source") == "// code"
    assert list((tmp_path / "kernels").iterdir()) == []


def test_a_compiled_kernel_is_kept_for_its_source_gpu_and_compiler(tmp_path, monkeypatch):
    compiled = []

    def compile_(source, options):
        compiled.append((source, options[0]))
        return f"// {len(compiled)}"

    gpu, version = [(9, 0)], [(13, 1)]
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "capability", lambda: gpu[0])
    monkeypatch.setattr(launch, "_nvrtc_version", lambda: version[0])
    monkeypatch.setattr(launch, "_compile", compile_)

    def code(source):
        launch.compiled.cache_clear()
        return launch.compiled(source)

    assert [code("a"), code("a"), code("b"), code("a")] == ["// 1", "// 1", "// 2", "// 1"]
    gpu[0] = (10, 0)
    assert code("a") == "// 3"
    version[0] = (13, 2)
    assert code("a") == "// 4"
    names = [option for _, option in compiled]
    assert names == [f"--gpu-architecture=compute_{number}a" for number in (90, 90, 100, 100)]
    kept = [path for path in (tmp_path / "kernels").rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in kept if path.suffix == ".ptx") == [
        f"// {n}" for n in range(1, 5)
    ]
    assert all(path.suffix == ".ptx" for path in kept)
    launch.compiled.cache_clear()
