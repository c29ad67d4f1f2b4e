"""What a kernel does not know runs by the plain model: a weight, a bias, a setting that is yet to come."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jllama import kernels, model
from jllama.config import ModelConfig
from jllama.kernels.gpu import batch, decode, launch
from jllama.kernels.refusals import LLAMA_FIELDS
from jllama.layers.attention import Attention, append_and_attend
from jllama.layers.cache import KVCache
from tests.support.decoding import CPU, GPU
from tests.support.helpers import random_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionWithSinks(Attention):
    """With a weight that no kernel has heard of."""

    sinks: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CappedConfig(ModelConfig):
    """With a setting that no kernel has heard of."""

    final_logit_cap: float = 0.0


@pytest.fixture
def both(monkeypatch):
    """As if either kernel could run here."""
    monkeypatch.setattr("jllama.kernels.cpu.build.load", lambda *_: None)
    monkeypatch.setattr(launch, "refusal", lambda: None)
    monkeypatch.setattr(launch, "blocks_at_once", lambda: 132)
    monkeypatch.setattr(launch, "shared_memory", lambda: 232448)


CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
TOKEN = jnp.zeros((1, 1), jnp.int32)


def with_sinks(params):
    last = params.layers[-1]
    fields = {name: getattr(last.attention, name) for name in ("qkv_proj", "o_proj", "qkv_bias", "o_bias")}
    attention = AttentionWithSinks(**fields, sinks=jnp.ones((32,), jnp.bfloat16))
    return dataclasses.replace(
        params, layers=(*params.layers[:-1], dataclasses.replace(last, attention=attention))
    )


def capped(cap):
    return CappedConfig(**dataclasses.asdict(CONFIG) | {"rope": CONFIG.rope}, final_logit_cap=cap)


def refusal(config, params, target):
    cache = KVCache.empty(config, batch=1, max_len=32, dtype="bfloat16")
    return kernels.refusal(config, params, TOKEN, cache, target)


def test_weights_that_not_all_families_have_are_known(both, monkeypatch):
    monkeypatch.setattr(launch, "capability", lambda: (9, 0))
    more = dict(attention_bias=True, mlp_bias=True, qk_norm="head", norm_placement="both")
    config = dataclasses.replace(CONFIG, **more)
    params = random_params(config, dtype="bfloat16")
    for refused, rows in ((decode.decode_refusal, 1), (batch.batch_refusal, 2)):
        cache = KVCache.empty(config, batch=rows, max_len=32, dtype="bfloat16")
        assert refused(config, params, cache, np.zeros((rows, 1), np.int32)) is None


@pytest.mark.parametrize("target", [CPU, GPU])
def test_what_is_unknown_is_refused_by_name(both, target):
    params = random_params(CONFIG, dtype="bfloat16")
    assert refusal(CONFIG, params, target) is None
    assert refusal(capped(0.0), params, target) is None
    assert "final_logit_cap=30.0" in refusal(capped(30.0), params, target)
    assert "layers[1].attention.sinks" in refusal(CONFIG, with_sinks(params), target)


def batch_refusal(config, params, batch=2, tokens=1, dtype="bfloat16"):
    cache = KVCache.empty(config, batch=batch, max_len=32, dtype=dtype)
    return kernels.refusal(config, params, jnp.zeros((batch, tokens), jnp.int32), cache, GPU)


def test_a_batch_is_refused_what_its_kernels_do_not_know(both):
    params = random_params(CONFIG, dtype="bfloat16")
    assert batch_refusal(CONFIG, params) is batch_refusal(CONFIG, params, batch=32) is None
    for shape in (dict(batch=33), dict(tokens=2)):
        assert "one token of 2 to 32 sequences" in batch_refusal(CONFIG, params, **shape)
    assert "final_logit_cap=30.0" in batch_refusal(capped(30.0), params)
    assert "layers[1].attention.sinks" in batch_refusal(CONFIG, with_sinks(params))
    assert "16 bits in both" in batch_refusal(CONFIG, params, dtype="float16")
    assert batch_refusal(dataclasses.replace(CONFIG, hidden_act="relu"), params) is None
    narrow = dataclasses.replace(CONFIG, intermediate_size=80)
    assert "rows of 80" in batch_refusal(narrow, random_params(narrow, dtype="bfloat16"))


def test_an_activation_that_is_new_is_refused(both, monkeypatch):
    params, config = random_params(CONFIG, dtype="bfloat16"), dataclasses.replace(CONFIG, hidden_act="relu")
    assert refusal(config, params, GPU) is None
    for kernel in (batch, decode):
        monkeypatch.setattr(kernel, "ACTIVATIONS", ("silu",))
    assert "hidden_act relu" in refusal(config, params, GPU)
    assert "hidden_act relu" in batch_refusal(config, params)


def test_the_plain_model_is_called_then(both, monkeypatch):
    params, seen = random_params(CONFIG, dtype="bfloat16"), []
    cache = KVCache.empty(CONFIG, batch=1, max_len=32, dtype="bfloat16")

    def forward(config, params, tokens, cache, **options):
        seen.append(options["attend_fn"])
        return jnp.zeros((1, 1, 64)), cache

    monkeypatch.setattr(model, "forward", forward)
    for config, weights in ((capped(30.0), params), (CONFIG, with_sinks(params))):
        for target in (CPU, GPU):
            kernels.forward(config, weights, TOKEN, cache, n_valid=np.int32([1]), target=target)
    assert len(seen) == 4
    assert (
        seen[1] is append_and_attend
    )  # nor does an attention kernel run with a setting that it does not know


def test_every_field_is_known_or_has_a_default_that_leaves_it_out():
    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    unknown = fields.keys() - LLAMA_FIELDS
    assert all(fields[name] is not dataclasses.MISSING for name in unknown), unknown
