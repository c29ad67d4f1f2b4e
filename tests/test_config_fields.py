"""No field is read by nothing: each, perturbed, moves the logits, the shapes or the context length."""

import dataclasses

import jax
import numpy as np
import pytest

from jllama.checkpoint.random_params import random_params
from jllama.config import LayerKind, ModelConfig
from jllama.errors import JllamaError
from jllama.layers.rope import Rope
from tests.support.checkpoint_generator import random_tokens
from tests.support.helpers import full_logits
from tests.support.small_models import SMALL_MODELS

# Field: another value. Those that change the parameters' shapes, and those that change the numbers.
SHAPES = {
    "vocab_size": 71,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "attention_out_bias": True,
    "norm_placement": "both",
    "qk_norm": "head",
}
NUMBERS = {
    "rms_norm_eps": 0.1,
    "rope": Rope(rope_theta=100.0),
    "hidden_act": "gelu",
    "sliding_window": 5,
    "layer_kinds": (LayerKind(window=5),),
    "norm_offset": 1.0,
    "attention_multiplier": 0.5,
    "attn_logit_softcapping": 0.5,
    "final_logit_softcapping": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 2.0,
}
ROPE = {
    "rope_type": ("linear", "yarn"),
    "rope_theta": ("default", 100.0),
    "factor": ("linear", 3.0),
    "original_max_position_embeddings": ("llama3", 48),
    "low_freq_factor": ("llama3", 0.5),
    "high_freq_factor": ("llama3", 6.0),
    "beta_fast": ("yarn_no_truncate", 1.5),
    "beta_slow": ("yarn_no_truncate", 0.2),
    "attention_factor": ("yarn", 1.4),
    "mscale": ("yarn_mscale", 1.0),
    "mscale_all_dim": ("yarn_mscale", 1.0),
    "truncate": ("yarn", False),
    "frequency_factors": ("default", tuple(float(i) for i in range(1, 17))),
    "short_factor": ("longrope_short", tuple(float(i) for i in range(2, 18))),
    "long_factor": ("longrope", tuple(float(i) for i in range(2, 18))),
    "partial_rotary_factor": ("default", 0.5),
    "llama_4_scaling_beta": ("yarn", 0.5),
}
_LISTS = dict(short_factor=tuple(1.0 + i / 8 for i in range(16)), long_factor=(3.0,) * 16)
LONGROPE = {
    name: Rope(rope_type="longrope", factor=4.0, original_max_position_embeddings=length, **_LISTS)
    for name, length in (("longrope", 16), ("longrope_short", 96))
}
# Every field that a type reads, under that type.
READ_BY = {
    "longrope": {"factor": 9.0, "attention_factor": 1.5, "original_max_position_embeddings": 100},
    "dynamic": {"rope_theta": 500.0, "factor": 5.0, "original_max_position_embeddings": 48},
    "llama3": {"rope_theta": 500.0, "factor": 3.0},
    "yarn": {"rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 32},
}
CASES = [(field, kind, value) for field, (kind, value) in ROPE.items()]
CASES += [(field, kind, value) for kind, fields in READ_BY.items() for field, value in fields.items()]


def logits(config: ModelConfig, params=None) -> np.ndarray:
    params = random_params(config, "float32") if params is None else params
    return full_logits(config, params, random_tokens(61, 96)[None])


def shapes(config: ModelConfig) -> object:
    return jax.tree.map(lambda leaf: leaf.shape, random_params(config, "float32"))


def test_every_field_is_perturbed():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == set(SHAPES) | set(NUMBERS) | {"max_position_embeddings"}
    assert {field.name for field in dataclasses.fields(Rope)} == set(ROPE)


@pytest.mark.parametrize("field", SHAPES)
def test_fields_that_shape_the_model(field, tiny_config):
    changed = dataclasses.replace(tiny_config, **{field: SHAPES[field]})
    assert shapes(changed) != shapes(tiny_config)
    moved, still = logits(changed), logits(tiny_config)
    assert moved.shape != still.shape or np.abs(moved - still).max() > 1e-3


@pytest.mark.parametrize("field", NUMBERS)
def test_fields_that_change_the_numbers(field, tiny_config, tiny_params):
    changed = dataclasses.replace(tiny_config, **{field: NUMBERS[field]})
    assert np.abs(logits(changed, tiny_params) - logits(tiny_config, tiny_params)).max() > 1e-3


def test_max_position_embeddings_is_the_context_length(tiny_config):
    assert dataclasses.replace(tiny_config, max_position_embeddings=99).context_length == 99


@pytest.mark.parametrize(("field", "kind", "value"), CASES, ids=str)
def test_rope_fields(field, kind, value):
    """Under a type that reads the field, on a text beyond the original length."""
    config = ModelConfig.from_hf(SMALL_MODELS["rope_theta" if kind in ("default", *LONGROPE) else kind])
    config = dataclasses.replace(config, rope=LONGROPE.get(kind, config.rope))
    changes = {field: value} | ({"original_max_position_embeddings": 16} if field == "rope_type" else {})
    changed = dataclasses.replace(config, rope=dataclasses.replace(config.rope, **changes))
    params = random_params(config, "float32")
    assert np.abs(logits(changed, params) - logits(config, params)).max() > 1e-3


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Rope)])
@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, bytearray(b"1")], ids=type)
def test_rope_fields_that_could_not_be_hashed(field, value, tiny_config):
    """A configuration is a static argument: a field that its type does not read is refused as well."""
    for kind in (tiny_config.rope, ModelConfig.from_hf(SMALL_MODELS["yarn"]).rope):
        with pytest.raises(JllamaError):
            dataclasses.replace(tiny_config, rope=dataclasses.replace(kind, **{field: value}))
