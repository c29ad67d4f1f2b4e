"""`config.json` and GGUF metadata: every spelling, and each refusal by name."""

import dataclasses
import json

import pytest

from jllama.config import LayerKind, ModelConfig
from jllama.errors import JllamaError
from jllama.layers.kind import ScoreRule
from jllama.layers.rope import Rope

BASE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def read(**changes) -> ModelConfig:
    return ModelConfig.from_hf(BASE | changes)


def refusal(**changes) -> str:
    with pytest.raises(JllamaError) as caught:
        read(**changes)
    message = str(caught.value)
    assert message.count("\n") <= 1
    return message


def test_defaults_of_hugging_face():
    assert read() == ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        rope=Rope(rope_theta=10000.0),
        hidden_act="silu",
    )
    bare = ModelConfig.from_hf({"model_type": "mistral"})
    assert (bare.hidden_size, bare.intermediate_size, bare.num_key_value_heads) == (4096, 14336, 8)
    assert (bare.max_position_embeddings, bare.sliding_window, bare.vocab_size) == (131072, 4096, 32000)
    bare = ModelConfig.from_hf({"model_type": "llama"})
    assert (bare.intermediate_size, bare.num_key_value_heads, bare.sliding_window) == (11008, 32, None)
    assert bare.max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("kind", "length"), [("default", 128), ("linear", 128), ("yarn", 128), ("llama3", 128), ("dynamic", 320)]
)
def test_only_dynamic_rope_reaches_beyond_what_was_trained(kind, length):
    settings = dict(LLAMA3, factor=2.5, original_max_position_embeddings=32 if kind != "dynamic" else 128)
    rope = Rope(rope_type=kind, **settings)
    assert dataclasses.replace(read(), rope=rope).context_length == length


@pytest.mark.parametrize(
    ("inner", "outer", "has"),
    [
        (False, None, False),
        (True, None, True),
        (True, False, False),
        (False, True, True),
        (False, False, False),
        (True, True, True),
    ],
)
def test_the_output_projection_has_a_bias_as_the_others_unless_it_is_said(inner, outer, has):
    config = dataclasses.replace(read(), attention_bias=inner, attention_out_bias=outer)
    assert config.has_out_bias is has


def test_kinds_of_layers_repeat():
    config = dataclasses.replace(read(), num_hidden_layers=5, sliding_window=9)
    assert [config.kind_of(layer) for layer in range(5)] == [LayerKind(9, config.rope)] * 5
    kinds = (LayerKind(4), LayerKind(rope=None), LayerKind(6))
    mixed = dataclasses.replace(
        config, layer_kinds=kinds, attention_multiplier=0.5, attn_logit_softcapping=3.0
    )
    assert [mixed.kind_of(layer) for layer in range(5)] == [*kinds, *kinds[:2]]
    assert mixed.score_rule(kinds[0]) == ScoreRule(4, 0.5, 3.0)
    assert config.score_rule(kinds[1]) == ScoreRule(None, None, None)


def test_null_means_the_default():
    assert read(num_key_value_heads=None, head_dim=None, rope_theta=None, rope_parameters=None) == read()


def test_every_key_is_read():
    keys = {
        "num_key_value_heads": 2,
        "head_dim": 26,
        "rms_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    }
    config = read(**keys)
    assert {key: getattr(config, key) for key in keys} == keys
    mistral = {"model_type": "mistral", "num_key_value_heads": 4}
    assert read(**mistral, sliding_window=7).sliding_window == 7
    assert read(**mistral, sliding_window=None).sliding_window is None
    assert read(**mistral, sliding_window=7, use_sliding_window=False).sliding_window == 7


@pytest.mark.parametrize(
    ("spelling", "rope"),
    [
        ({}, Rope()),
        ({"rope_scaling": None}, Rope()),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(rope_theta=5e5)),
        ({"rope_theta": 500000}, Rope(rope_theta=5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(rope_theta=5e5)),
        ({"rope_parameters": {"rope_theta": 5e5}}, Rope(rope_theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rope(rope_type="linear", factor=4.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, Rope(rope_type="linear", factor=4.0)),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}, "rope_theta": 7.0},
            Rope(rope_type="linear", factor=4.0, rope_theta=7.0),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=128),
        ),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rope(rope_type="llama3", **LLAMA3)),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            Rope(rope_type="llama3", rope_theta=5e5, **LLAMA3),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
            Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 64}},
            Rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=64),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}},
            Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": None}, "original_max_position_embeddings": 32},
            Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
        ),
        (
            {
                "rope_parameters": {"rope_type": "llama3", **LLAMA3},
                "original_max_position_embeddings": 16,
            },
            Rope(rope_type="llama3", **LLAMA3 | {"original_max_position_embeddings": 16}),
        ),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "original_max_position_embeddings": None}},
            Rope(rope_type="llama3", **LLAMA3 | {"original_max_position_embeddings": 128}),
        ),
        (
            {
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
                "original_max_position_embeddings": 32,
            },
            Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=128),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}},
            Rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=128),
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5.0}},
            Rope(rope_type="linear", factor=2.0),
        ),
    ],
)
def test_rope_spellings(spelling, rope):
    assert read(**spelling).rope == rope


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"model_type": None}, "None"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq' (quantization_config)"),
        ({"quantization_config": "awq"}, "'awq' (quantization_config)"),
        ({"max_position_embeddings": 10**400}, "max_position_embeddings"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 2**63}, "sliding_window"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 5e-324}}, "angles"),
        ({"rope_scaling": YARN | {"beta_fast": 5e-324}}, "angles"),
        ({"rope_scaling": YARN | {"beta_slow": 5e-324}}, "angles"),
        ({"rope_theta": 1e-300}, "angles"),
        ({"rms_norm_eps": False}, "rms_norm_eps"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"is_causal": False}, "is_causal"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 0}, "sliding_window"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 4.5}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"hidden_size": "32"}, ""),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": "linear"}, "linear"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 32, "truncate": 1}},
            "truncate",
        ),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}, "rope_theta": 1}, "rope_theta"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": None}, "original_max_position_embeddings": 0},
            "original_max_position_embeddings=0",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim"),
        *[({"rope_scaling": {"type": "dynamic", "factor": factor}}, "factor") for factor in (1e308, 1e25)],
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"factor": 8.0}}, "type"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            "for each layer type (full_attention)",
        ),
    ],
    ids=str,
)
def test_refusals_name_the_key(changes, names):
    assert names in refusal(**changes)


def test_values_that_change_nothing_are_accepted():
    harmless = {
        "pretraining_tp": 1,
        "torch_dtype": "bfloat16",
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
        "attention_dropout": 0.0,
        "layer_types": ["full_attention", "full_attention"],
        "architectures": ["LlamaForCausalLM"],
    }
    assert read(**harmless) == read()


def test_unknown_keys_are_told():
    with pytest.warns(UserWarning, match="a_new_trick"):
        read(a_new_trick=1)


def test_settings_of_the_default_rope_are_told():
    with pytest.warns(UserWarning, match="factor"):
        assert read(rope_scaling={"type": "default", "factor": 8.0}) == read()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b"[1]", "no JSON object"), (b"\xff\xfe{}", "not JSON")],
)
def test_files_that_are_no_configuration(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(JllamaError, match=says):
        ModelConfig.from_hf(tmp_path / "config.json")
    with pytest.raises(JllamaError, match="cannot read"):
        ModelConfig.from_hf(tmp_path / "elsewhere.json")


@pytest.mark.parametrize("source", [None, 5, [("model_type", "llama")]])
def test_what_no_configuration_is_read_from(source):
    with pytest.raises(JllamaError, match=f"not from {type(source).__name__}"):
        ModelConfig.from_hf(source)


def test_a_file_reads_as_its_content_does(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE), encoding="utf-8")
    assert ModelConfig.from_hf(str(tmp_path / "config.json")) == read()


def test_context_length():
    assert read().context_length == 128
    assert read(rope_scaling={"type": "dynamic", "factor": 2.5}).context_length == 320
    assert read(rope_scaling={"type": "linear", "factor": 4.0}).context_length == 128


def test_equal_configurations_hash_alike():
    assert hash(read(rope_theta=5e5)) == hash(read(rope_parameters={"rope_theta": 5e5}))
    assert read() != read(rms_norm_eps=1e-5)
