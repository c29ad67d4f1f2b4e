"""The CUDA kernels as compute capability 8 has them, without copy engine: emulated, forced with `-m gpu`."""

import jax
import jax.numpy as jnp
import pytest

from jllama.kernels.gpu import decode, decode_attention, launch, plan
from jllama.layers.kind import ScoreRule
from tests.kernels.test_kernels_gpu import (
    BLOCKS,
    HALVES,
    MANY_HEADS,
    NARROW,
    SLIDING,
    SMALL,
    STORED,
    TINYLLAMA,
    emulate,
    filled,
    jitted_step,
    shape,
    steps_agree,
    weights,
)
from tests.kernels.test_kernels_gpu import four_blocks as four_blocks
from tests.kernels.test_kernels_gpu_attention import attention_case, check, emulated_attention
from tests.kernels.test_kernels_gpu_attention import multiprocessors as multiprocessors
from tests.kernels.test_kernels_gpu_several import Emulated, all_agree, texts
from tests.kernels.test_kernels_gpu_several import eight_blocks as eight_blocks

WIDE = shape(512, 768, 1, 4, 1, 256)  # 32 tokens a turn where a block has little room
LARGE, SHARED = (8, 0), {(8, 0): 166912, (8, 6): 101376}  # bytes that a block may have


@pytest.fixture
def older(monkeypatch):
    """Called with a compute capability, what follows is made for it."""

    def make(capability=LARGE):
        monkeypatch.setattr(launch, "capability", lambda: capability)
        monkeypatch.setattr(launch, "shared_memory", lambda: SHARED[capability])

    return make


CASES = [
    ((8, 0), SMALL, "bf16", 300, (0, 128, 299, 300)),
    ((8, 6), SLIDING, "bf16", 200, (170,)),
    ((8, 0), SMALL, "int8", 40, (37,)),
    ((8, 0), NARROW, "q4", 40, (33,)),  # a tile's scales in one piece
    ((8, 6), BLOCKS, "q4_k_m", 40, (37,)),
    ((8, 0), MANY_HEADS, "q8", 320, (300,)),
    ((8, 6), WIDE, "bf16", 120, (100,)),
]


@pytest.mark.parametrize(("capability", "config", "stored", "max_len", "lengths"), CASES)
def test_decode_by_lanes_emulated(four_blocks, older, tmp_path, capability, config, stored, max_len, lengths):
    older(capability)
    params = weights(config, stored)
    cache = filled(config, max_len, 0)
    assert decode.decode_refusal(config, params, cache, jnp.array([[7]], jnp.int32)) is None
    assert not plan.make_plan(config, params).engine
    emulate(tmp_path, config, params, max_len, lengths)


@pytest.mark.parametrize(("stored", "room"), [("int4", 70000), ("q4_k_m", 60000)])
def test_decode_of_shorter_slices_emulated(four_blocks, older, monkeypatch, tmp_path, stored, room):
    older()
    monkeypatch.setattr(launch, "shared_memory", lambda: room)
    params = weights(BLOCKS, stored)
    assert plan.make_plan(BLOCKS, params).row_bytes == 512
    assert decode.decode_refusal(BLOCKS, params, filled(BLOCKS, 40, 0), jnp.array([[7]], jnp.int32)) is None
    emulate(tmp_path, BLOCKS, params, 40, (37,))


@pytest.mark.parametrize("capability", SHARED)
def test_several_texts_by_lanes_emulated(eight_blocks, older, tmp_path, capability):
    older(capability)
    lengths, params = (64, 300), weights(HALVES, "bf16")
    cache, tokens, runs = texts(HALVES, 320, lengths)
    logits, new = Emulated(tmp_path, HALVES, params, 2, 320)(cache, tokens, runs)
    all_agree(HALVES, params, tokens, cache, lengths, logits, new)


@pytest.mark.parametrize(("head_dim", "count"), [(64, 4), (256, 30)])
def test_attention_by_lanes_emulated(multiprocessors, older, tmp_path, head_dim, count):
    older()
    multiprocessors[0] = count
    case = attention_case(3, 1, 4, head_dim, 300, "bfloat16")
    emulated_attention(tmp_path, case, ScoreRule(90))


# On a GPU, whatever its own capability.


@pytest.mark.gpu
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("stored", [*STORED, "q4_k_m"])
def test_decode_by_lanes(older, capability, stored):
    older(capability)
    config, params, tokens = TINYLLAMA, weights(TINYLLAMA, stored), jnp.array([[7]], jnp.int32)
    assert decode.decode_refusal(config, params, filled(config, 2048, 0), tokens) is None
    step = jitted_step(config)
    for length in (0, 100, 1900, 2048):
        steps_agree(step, config, params, filled(config, 2048, length))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_attention_by_lanes(older, head_dim):
    older()
    qkv, rope, cache = attention_case(5, 2, 4, head_dim, 1000, "bfloat16")
    attend = jax.jit(decode_attention.decode_attend, static_argnums=3)
    mixed, new = attend(qkv, cache, rope, ScoreRule())
    check(qkv, rope, cache, ScoreRule(), mixed, new)
