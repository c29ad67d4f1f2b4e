"""A batch's step on a GPU is the plain model's: every family, with plain twins of the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.kernels.gpu import batch, launch
from jllama.kernels.target import of_platform
from jllama.layers.attention import append_and_attend
from jllama.layers.cache import KVCache
from jllama.layers.linear import linear
from jllama.layers.mlp import ACTIVATIONS
from jllama.layers.norm import rms_norm
from jllama.layers.rope import Rope
from tests.kernels.test_kernels_gpu import distance, shape, wide
from tests.kernels.test_kernels_gpu_families import FAMILIES, SHIPPED, family_weights, shipped

YARN = Rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.1)
CONFIGS = {name: config for name, (config, _) in FAMILIES.items()} | {
    "olmo2": shape(128, 192, 1, 4, 2, 32, norm_placement="post", qk_norm="full"),
    "ministral3": shape(128, 192, 1, 4, 2, 32, rope=YARN),
}
LENGTHS = (0, 21, 40)


def plain_product(
    weight, x, *, norm=None, eps=0.0, offset=0.0, bias=None, residual=None, by=1.0, gated=None, wide=False
):
    y = linear(weight, rms_norm(norm, x, eps, offset), bias, dtype=jnp.float32)
    y = ACTIVATIONS[gated](y[:, 0]) * y[:, 1] if gated else y.reshape(len(x), -1)
    y = y if residual is None else residual.astype(jnp.float32) + y * by
    return y if wide else y.astype(x.dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_familys_step_is_the_plain_models(monkeypatch, name):
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    config = CONFIGS[name]
    params = family_weights(config, "bf16")
    key, length = jax.random.key(2), jnp.array(LENGTHS, jnp.int32)
    cache = KVCache.empty(config, batch=3, max_len=48, dtype="bfloat16")
    tokens, ones = jnp.array([[3], [5], [7]], jnp.int32), jnp.ones(3, jnp.int32)
    assert batch.batch_refusal(config, params, cache, tokens) is None

    monkeypatch.setattr(batch, "product", plain_product)
    monkeypatch.setattr(batch, "decode_attend", lambda *call: append_and_attend(*call, None))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    noise = [jax.random.normal(jax.random.fold_in(key, i), cache.keys[0].shape) for i in range(6)]
    filled = KVCache(keys=tuple(noise[:3]), values=tuple(noise[3:]), length=length)
    count = config.num_hidden_layers
    filled = dataclasses.replace(filled, keys=filled.keys[:count], values=filled.values[:count])

    def step(params, cache):
        places = model.places(config, length[:, None], length + 1)
        return batch.batch_step(config, params, tokens, cache, ones, places)

    with jax.default_matmul_precision("highest"):
        logits, new = jax.jit(step)(wide, filled)
        wanted, twin = jax.jit(model.forward, static_argnums=0)(config, wide, tokens, filled)
    np.testing.assert_allclose(logits, wanted, rtol=2e-4, atol=2e-4)
    for ours, theirs in zip(new.keys + new.values, twin.keys + twin.values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


SHAPES = CONFIGS | {name: shipped(name, 7) for name in SHIPPED}


BATCHES = (3, 12, 20)  # in one kernel, products by our kernel, by cuBLAS


def plain_logits(config, params, chunks, dtype):
    """Those of the plain model behind each chunk of the same texts."""
    plain = jax.jit(model.forward, static_argnums=0, static_argnames="last_only")
    cache, found = KVCache.empty(config, batch=len(chunks[0]), max_len=160, dtype=dtype), []
    for tokens in chunks:
        logits, cache = plain(config, params, tokens, cache, last_only=True)
        found.append(logits)
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_prompts_and_steps_of_a_family(name):
    """A prompt, a second chunk of it and a token of each row, as near to float32 as the plain model is."""
    config, target = SHAPES[name], of_platform("gpu")
    params, most = family_weights(config, "bf16"), max(BATCHES)
    key, counts = jax.random.key(4), (70, 64, 1)
    keys = [jax.random.fold_in(key, number) for number in range(len(counts))]
    chunks = [
        jax.random.randint(key, (most, count), 0, config.vocab_size, jnp.int32)
        for key, count in zip(keys, counts, strict=True)
    ]
    near = plain_logits(config, params, chunks, "bfloat16")
    with jax.default_matmul_precision("highest"):
        exact = plain_logits(config, wide(params), chunks, "float32")
    run = jax.jit(kernels.forward, static_argnums=0, static_argnames=("target", "fresh"))
    for rows in BATCHES:
        cache = KVCache.empty(config, batch=rows, max_len=160, dtype="bfloat16")
        for tokens, twin, wanted in zip(chunks, near, exact, strict=True):
            valid, fresh = jnp.full((rows,), tokens.shape[1], jnp.int32), tokens is chunks[0]
            how = dict(n_valid=valid, target=target, fresh=fresh)
            logits, cache = run(config, params, tokens[:rows], cache, **how)
            bound = 1.5 * distance(twin[:rows], wanted[:rows]) + 1e-3
            assert distance(logits, wanted[:rows]) < bound, (rows, tokens.shape)
