"""The C++ step and every field that tells families apart, against `forward` in float32 and transformers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels
from jllama.checkpoint import load_params, read_config
from jllama.hub.references import resolve
from jllama.kernels import cpu
from jllama.layers.cache import KVCache
from jllama.layers.kind import LayerKind
from jllama.layers.rope import Rope
from jllama.model import forward, places
from tests.support import aarch64
from tests.support.checkpoint_generator import random_tokens
from tests.support.decoding import CPU
from tests.support.family_files import GOLDENS, write_hf
from tests.support.family_models import BASE as FAMILY_BASE
from tests.support.family_models import FAMILY_MODELS, LENGTH
from tests.support.kernels_cpu import (
    BASE,
    FORMATS,
    every_machine,
    filled_cache,
    kernel_step,
    machines,
    marked,
    params_of,
    random_weight,
    skip_without_kernels,
    suffix_of,
    weights_like,
)
from tests.support.placed import gathered, scattered

plain_step = jax.jit(forward, static_argnums=0)
chosen_step = jax.jit(partial(kernels.forward, target=CPU), static_argnums=0, static_argnames="last_only")
PARTIAL = Rope(partial_rotary_factor=0.8)
SCALED = Rope(llama_4_scaling_beta=0.4, original_max_position_embeddings=4, rope_type="yarn", factor=4.0)
KINDS = (LayerKind(window=4), LayerKind(rope=None), LayerKind(window=6, rope=PARTIAL), LayerKind(rope=SCALED))
CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
FACTORS = dict(
    embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.1, logits_scaling=8.0
)
ALL = dict(
    norm_placement="both",
    norm_offset=1.0,
    attention_bias=True,
    attention_out_bias=False,
    mlp_bias=True,
    hidden_act="gelu_pytorch_tanh",
    num_hidden_layers=5,
    layer_kinds=KINDS,
    **CAPS,
    **FACTORS,
)
FIELDS = {
    "norm_offset": dict(norm_offset=1.0),
    "post": dict(norm_placement="post"),
    "both": dict(norm_placement="both"),
    "post_offset_epsilon": dict(norm_placement="post", norm_offset=0.5, rms_norm_eps=0.1),
    "qk_head": dict(qk_norm="head"),
    "qk_full": dict(qk_norm="full"),
    "qk_head_offset_epsilon": dict(qk_norm="head", norm_offset=0.5, rms_norm_eps=0.5, attention_bias=True),
    "qk_full_offset_epsilon": dict(qk_norm="full", norm_offset=0.5, rms_norm_eps=0.5, attention_bias=True),
    "out_bias": dict(attention_out_bias=True),
    "out_bias_behind_norm": dict(attention_out_bias=True, norm_placement="post"),
    "no_out_bias": dict(attention_bias=True, attention_out_bias=False),
    **{name: {name: value} for name, value in (CAPS | FACTORS).items()},
    "residual_behind_norms": dict(residual_multiplier=0.22, norm_placement="both"),
    "cap_of_scaled_scores": dict(attn_logit_softcapping=2.0, attention_multiplier=0.1),
    "cap_of_scaled_logits": dict(final_logit_softcapping=3.0, logits_scaling=0.25, vocab_size=211),
    "kinds": dict(layer_kinds=KINDS, num_hidden_layers=5),
    "no_rope": dict(layer_kinds=(LayerKind(rope=None),)),
    "partial_rotary": dict(rope=PARTIAL),
    "query_scale": dict(rope=SCALED),
    "head_80": dict(head_dim=80, qk_norm="head"),
    "head_256": dict(head_dim=256, num_attention_heads=2, num_key_value_heads=1),
    "wide_stream": dict(hidden_size=300, intermediate_size=50, norm_placement="both"),
    "all": dict(qk_norm="head", **ALL),
    "all_odd": dict(qk_norm="full", hidden_size=70, intermediate_size=51, head_dim=18, **ALL),
}
STEP, FEW, MANY = CALLS = (  # lengths, tokens that count, tokens
    ((0, 12, 5), (1, 1, 1), 1),
    ((3, 0), (4, 2), 4),
    ((2,), (33,), 40),
)
MAX_LEN = 48
# Elsewhere only what meets each loop's remainders and all fields at once.
CASES = [
    marked(machine, name)
    for machine in (*machines(), *aarch64.PROCESSORS)
    for name in FIELDS
    if machine == "native" or name in ("all", "all_odd", "head_80")
]


def assert_same_call(config, params, lengths, n_valid, T, suffix, rtol=2e-5):
    """In rows of a larger cache, with poison wherever nothing may be read."""
    rng = np.random.default_rng(T)
    cache, count = filled_cache(config, rng, lengths, MAX_LEN, "float32"), jnp.asarray(n_valid, jnp.int32)
    valid = np.arange(T) < np.asarray(n_valid)[:, None]
    tokens = jnp.asarray(np.where(valid, rng.integers(0, config.vocab_size, valid.shape), -1), jnp.int32)
    wanted, filled = plain_step(config, params, tokens, cache, n_valid=count)
    slots = scattered(poisoned(cache))
    got, slots_after = kernel_step(config, cpu.prepare(params), tokens, slots, suffix, n_valid=count)
    got, wanted = np.asarray(got)[valid], np.asarray(wanted)[valid]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * np.abs(wanted).max())
    np.testing.assert_array_equal(slots_after.length, filled.length)
    assert_same_cache(gathered(slots_after, slots), filled, np.asarray(lengths), T, rtol)


def poisoned(cache):
    """NaN in every place that holds no token."""
    empty = (np.arange(cache.max_len) >= np.asarray(cache.length)[:, None])[:, None, :, None]
    poison = [tuple(jnp.where(empty, jnp.nan, leaf) for leaf in kind) for kind in (cache.keys, cache.values)]
    return dataclasses.replace(cache, keys=poison[0], values=poison[1])


def assert_same_cache(got, wanted, lengths, T, rtol):
    """Alike where there are tokens; poison still behind the last that the call was given."""
    places = np.arange(MAX_LEN)
    held = np.nonzero(places < np.asarray(wanted.length)[:, None])
    behind = np.nonzero(places >= (lengths + T)[:, None])
    for ours, theirs in zip((*got.keys, *got.values), (*wanted.keys, *wanted.values), strict=True):
        ours, theirs = (np.swapaxes(np.asarray(leaf), 1, 2) for leaf in (ours, theirs))  # [B, S, K, H]
        np.testing.assert_allclose(ours[held], theirs[held], rtol=0, atol=rtol * np.abs(theirs[held]).max())
        assert np.isnan(ours[behind]).all()


@pytest.mark.parametrize(("machine", "name"), CASES)
def test_each_field_is_that_of_forward(machine, name):
    config = dataclasses.replace(BASE, **dict(num_hidden_layers=1) | FIELDS[name])  # those with all have five
    params = params_of(config)
    for lengths, n_valid, T in CALLS if "all" in name else (STEP, MANY):
        assert_same_call(config, params, lengths, n_valid, T, suffix_of(machine))


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_is_refused(name):
    skip_without_kernels()
    config = dataclasses.replace(BASE, **FIELDS[name])
    cache = filled_cache(config, np.random.default_rng(0), (0,), 4, "float32")
    assert cpu.forward_refusal(config, params_of(config), cache) is None


@every_machine
def test_all_fields_in_16_bits(machine):
    config = dataclasses.replace(BASE, **FIELDS["all"])
    params = params_of(config, "bfloat16")
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    for lengths, T in (((0, 0), 1), ((0,), 40)):
        rng = np.random.default_rng(T)
        narrow = filled_cache(config, rng, lengths, MAX_LEN, "bfloat16")
        tokens = jnp.asarray(rng.integers(0, config.vocab_size, (len(lengths), T)), jnp.int32)
        exact = plain_step(config, wide, tokens, filled_cache(config, rng, lengths, MAX_LEN, "float32"))[0]
        got = kernel_step(config, params, tokens, narrow, suffix_of(machine))[0]
        assert float(jnp.abs(got - exact).max() / jnp.ptp(exact)) < 0.02


@pytest.mark.parametrize(("bits", "group", "offset"), FORMATS[1::2])
def test_all_fields_with_quantised_weights(bits, group, offset):
    skip_without_kernels()
    rng = np.random.default_rng(0)
    config = dataclasses.replace(BASE, **FIELDS["all"] | dict(intermediate_size=192, mlp_bias=False))
    params = weights_like(
        params_of(config), rng, lambda shape: random_weight(rng, shape, bits, group, offset)
    )
    for lengths, n_valid, T in CALLS:
        assert_same_call(config, params, lengths, n_valid, T, "", rtol=0.06)


def test_the_factor_of_embeddings_is_a_number_of_the_run_dtype():
    skip_without_kernels()
    params, rng = params_of(BASE, "bfloat16"), np.random.default_rng(0)
    cache = filled_cache(BASE, rng, (3,), 8, "bfloat16")

    def logits(factor):
        config = dataclasses.replace(BASE, embedding_multiplier=factor)
        return kernel_step(config, params, jnp.asarray([[5]], jnp.int32), cache, "")[0]

    rounded = float(jnp.asarray(12.3, jnp.bfloat16))
    assert rounded != 12.3
    np.testing.assert_array_equal(logits(12.3), logits(rounded))
    assert not np.array_equal(logits(12.3), logits(12.5))


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]])
def test_places_are_in_the_layers_order(kinds):
    """Or a process would make another program than the last one, and compile it again."""
    config = dataclasses.replace(BASE, layer_kinds=kinds, num_hidden_layers=4)
    found = places(config, jnp.zeros((1, 1), jnp.int32), jnp.ones((1,), jnp.int32))
    assert [*found] == [kind.rope for kind in kinds]


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS / "families.npz") as file:
        yield {name: file[name] for name in file.files}


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_every_family_writes_the_tokens_of_transformers(name, goldens, tmp_path):
    skip_without_kernels()
    config, params = family(name, tmp_path)
    wanted, tokens = goldens[f"{name}.logits"], random_tokens(FAMILY_BASE["vocab_size"], LENGTH)
    cache = KVCache.empty(config, batch=1, max_len=LENGTH + 32, dtype="float32")
    assert kernels.decode_refusal(config, params, "float32", CPU) is None
    logits, cache = call(config, params, tokens, cache, last_only=False)
    assert np.abs(logits[0, 5::6] - wanted).max() < 1e-5 * np.ptp(wanted)
    greedy = [logits[0, -1].argmax()]
    for _ in goldens[f"{name}.greedy"][1:]:
        logits, cache = call(config, params, greedy[-1:], cache)
        greedy.append(logits[0, -1].argmax())
    np.testing.assert_array_equal(greedy, goldens[f"{name}.greedy"])


def family(name, path):
    """The family's small checkpoint, read."""
    files = resolve(str(write_hf(name, path)))
    config = read_config(files)
    return config, load_params(files, config, "float32", progress=False)


def call(config, params, tokens, cache, **options):
    tokens = jnp.asarray(np.asarray(tokens)[None], jnp.int32)
    n_valid = jnp.asarray([tokens.shape[1]], jnp.int32)
    logits, cache = chosen_step(config, params, tokens, cache, n_valid=n_valid, **options)
    return np.asarray(logits), cache
