"""Which attention a GPU's call takes, and that a cache which holds anything is never begun anew."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.engine.decoder import read_prompt
from jllama.kernels.target import Target
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.kind import LayerKind, ScoreRule
from tests.support.decoding import as_on_a_gpu, empty_slots, short_chunks


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one that takes every shape."""
    monkeypatch.setattr(kernels.gpu, "attention_refusal", lambda *_: None)
    monkeypatch.setattr(kernels.gpu, "prefill_refusal", lambda *_: None)
    monkeypatch.setattr(kernels.gpu, "chunk_refusal", lambda *_: None)


def chosen(config, params, *, T, fresh, use=True, max_len=16, dtype="float32"):
    cache = KVCache.empty(config, batch=2, max_len=max_len, dtype=dtype)
    return kernels.gpu_attention(
        config, params, jnp.zeros((2, T), jnp.int32), cache, fresh, Target("gpu", use)
    )


def test_attention_of_a_call(gpu, tiny_config, tiny_params, monkeypatch):
    take = functools.partial(chosen, tiny_config, tiny_params)
    assert take(T=1, fresh=False) is take(T=1, fresh=True) is kernels.gpu.decode_attend
    assert take(T=16, fresh=True) is take(T=16, fresh=True, max_len=15) is kernels.gpu.first_chunk_attend
    assert take(T=16, fresh=False) is kernels.gpu.chunk_attend
    assert take(T=16, fresh=True, dtype="bfloat16") is take(T=1, fresh=False, dtype="bfloat16") is None
    assert take(T=1, fresh=False, use=False) is take(T=16, fresh=False, use=False) is None
    monkeypatch.setattr(kernels.gpu, "chunk_refusal", lambda *_: "an older GPU")
    assert take(T=16, fresh=True) is kernels.gpu.prefill_attend
    assert take(T=16, fresh=False) is take(T=16, fresh=True, max_len=15) is None


@pytest.mark.parametrize("only", [None, [3, 0]])
@pytest.mark.parametrize("scores", [ScoreRule(), ScoreRule(scale=0.7, window=3)], ids=str)
def test_a_prompt_that_nothing_precedes_by_cudnn(monkeypatch, scores, only):
    """As the plain attention, with XLA's in cuDNN's place: what each token sees, and the scale."""
    exact = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *given, implementation, **how: exact(*given, **how)
    )
    random, shape = (
        np.random.default_rng(0),
        SimpleNamespace(num_hidden_layers=1, num_key_value_heads=2, head_dim=4),
    )
    qkv = jnp.asarray(random.normal(size=(2, 5, 2, 4, 4)), jnp.float32)
    rope = tuple(jnp.asarray(random.normal(size=(2, 5, 2)), jnp.float32) for _ in range(2))
    cache = KVCache.empty(shape, batch=2, max_len=7, dtype="float32").layer(0)
    only = None if only is None else jnp.asarray(only, jnp.int32)
    ours, theirs = (
        jax.jit(attend, static_argnums=3)(qkv, cache, rope, scores, only)
        for attend in (kernels.gpu.prefill_attend, append_and_attend)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("slots", [1, 2])
def test_what_a_slot_holds_is_gone_on_with(tiny_config, tiny_params, monkeypatch, slots):
    """Only the beginning of a single text is read as one that nothing precedes."""
    short_chunks(monkeypatch)
    as_on_a_gpu(monkeypatch)
    text = np.array([1, 2, 3, 7, 8], np.int32)
    made, whole = (empty_slots(tiny_config, tiny_params, slots, max_len=32) for _ in range(2))
    assert [made.fresh(start) for start in (0, 3)] == [slots == 1, False]
    read_prompt(made, text[:3])
    ours, wanted = read_prompt(made, text, 3), read_prompt(whole, text)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


def test_attention_of_every_family(gpu, tiny_config, tiny_params):
    """What lies outside of the attention is XLA's, what lies inside constants of the kernels' source."""
    turns = dict(partial_rotary_factor=0.5, llama_4_scaling_beta=0.1, original_max_position_embeddings=16)
    rope = dataclasses.replace(tiny_config.rope, **turns)
    config = dataclasses.replace(
        tiny_config,
        rope=rope,
        attention_out_bias=False,
        layer_kinds=(LayerKind(7, rope), LayerKind(None, None)),
        norm_placement="both",
        norm_offset=1.0,
        qk_norm="head",
        attention_multiplier=0.1,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=8.0,
    )
    assert chosen(config, tiny_params, T=1, fresh=False) is kernels.gpu.decode_attend
    assert chosen(config, tiny_params, T=16, fresh=False) is kernels.gpu.chunk_attend
