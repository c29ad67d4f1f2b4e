"""What families' keys and tensor names mean: each name there and back, each limit from both sides."""

import math
import warnings

import pytest

from jllama.config import LayerKind, ModelConfig
from jllama.errors import JllamaError
from jllama.families import tensor_names
from jllama.families.checks import check_size, types_checked
from jllama.layers.rope import Rope

LLAMA = dict(
    model_type="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
)
NAMES = {
    "embed_tokens.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm.weight": ("model.norm.weight", "output_norm.weight"),
    "lm_head.weight": ("lm_head.weight", "output.weight"),
    "layers.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
    "layers.12.self_attn.q_proj.bias": ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
    "layers.1.self_attn.k_proj.weight": ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight"),
    "layers.1.self_attn.v_proj.weight": ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
    "layers.1.self_attn.o_proj.weight": (
        "model.layers.1.self_attn.o_proj.weight",
        "blk.1.attn_output.weight",
    ),
    "layers.1.ffn_norm.weight": (
        "model.layers.1.post_attention_layernorm.weight",
        "blk.1.ffn_norm.weight",
    ),
    "layers.1.mlp.gate_proj.weight": ("model.layers.1.mlp.gate_proj.weight", "blk.1.ffn_gate.weight"),
    "layers.1.mlp.up_proj.weight": ("model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"),
    "layers.1.mlp.down_proj.bias": ("model.layers.1.mlp.down_proj.bias", "blk.1.ffn_down.bias"),
}


@pytest.mark.parametrize(("ours", "theirs"), NAMES.items())
def test_a_tensors_names_there_and_back(ours, theirs):
    hf, gguf = theirs
    assert (tensor_names.to_hf(ours), tensor_names.to_gguf(ours)) == theirs
    assert (tensor_names.from_hf(hf), tensor_names.from_gguf(gguf)) == (ours, ours)


def test_what_carries_no_weight_and_what_is_unknown():
    assert tensor_names.from_hf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert tensor_names.from_gguf("rope_freqs.weight") is None
    assert tensor_names.from_hf("other.model.x") == "other.model.x"
    for name in ("blk.0.attn_sinks.weight", "blk.x.attn_q.weight", "blk.0.attn_q.scale", "x"):
        assert tensor_names.from_gguf(name) == name


@pytest.mark.parametrize(
    ("value", "fits"), [(1, True), (2**31 - 1, True), (0, False), (2**31, False), (-1, False)]
)
def test_a_size_is_an_int32(value, fits):
    if fits:
        check_size("x", value)
    else:
        with pytest.raises(JllamaError, match=f"^config: x={value} must be a positive whole number below 2"):
            check_size("x", value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_a_size_is_a_whole_number(value):
    with pytest.raises(JllamaError, match="or null"):
        check_size("x", value, "or null")


@pytest.mark.parametrize("error", [TypeError, ValueError, ZeroDivisionError, OverflowError])
def test_arithmetic_with_what_is_no_size_is_the_files_mistake(error):
    with (
        pytest.raises(JllamaError, match="the file holds a value of the wrong type or size: odd"),
        types_checked("the file"),
    ):
        raise error("odd")
    with pytest.raises(KeyError), types_checked("the file"):
        raise KeyError


UNSUPPORTED = {
    "partial_rotary_factor": ([None, 1, 1.0], 0.5),
    "num_local_experts": ([None, 0, 1], 2),
    "attn_logit_softcapping": ([None], 30.0),
    "final_logit_softcapping": ([None], 30.0),
    "query_pre_attn_scalar": ([None], 1),
    "clip_qkv": ([None], 8.0),
    "embedding_multiplier": ([None, 1.0], 2.0),
    "residual_multiplier": ([None, 1.0], 2.0),
    "attention_multiplier": ([None], 1.0),
    "logits_scaling": ([None, 1.0], 2.0),
    "logit_scale": ([None, 1.0], 2.0),
    "use_qk_norm": ([None, False], True),
    "qk_norm": ([None, False], True),
    "no_rope_layers": ([None, []], [1]),
    "is_causal": ([None, True], False),
    "tie_encoder_decoder": ([False], True),
    "add_cross_attention": ([False], True),
    "pruned_heads": ([{}], {"0": [1]}),
    "quantization_config": ([None], {}),
}


@pytest.mark.parametrize(("key", "values"), UNSUPPORTED.items())
def test_a_key_that_would_change_the_numbers_is_refused_unless_it_does_not(key, values):
    harmless, harmful = values
    for value in harmless:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ModelConfig.from_hf(LLAMA | {key: value})
    with pytest.raises(JllamaError, match=key):
        ModelConfig.from_hf(LLAMA | {key: harmful})


def test_the_defaults_of_each_family():
    llama, mistral = (ModelConfig.from_hf({"model_type": kind}) for kind in ("llama", "mistral"))
    assert (llama.vocab_size, llama.hidden_size, llama.num_hidden_layers) == (32000, 4096, 32)
    assert (mistral.vocab_size, mistral.hidden_size, mistral.num_hidden_layers) == (32000, 4096, 32)
    assert (llama.intermediate_size, mistral.intermediate_size) == (11008, 14336)
    assert (llama.num_key_value_heads, mistral.num_key_value_heads) == (32, 8)
    assert (llama.head_dim, llama.num_attention_heads, llama.rms_norm_eps) == (128, 32, 1e-6)
    assert (llama.max_position_embeddings, mistral.max_position_embeddings) == (2048, 131072)
    assert (llama.sliding_window, mistral.sliding_window) == (None, 4096)
    assert (llama.hidden_act, llama.tie_word_embeddings, llama.attention_bias, llama.mlp_bias) == (
        "silu",
        False,
        False,
        False,
    )
    assert llama.rope == mistral.rope == Rope()
    assert ModelConfig.from_hf({"model_type": "mistral", "sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("kinds", "refused"),
    [
        (None, False),
        ([], False),
        (["full_attention"] * 2, False),
        (["sliding_attention"] * 2, False),
        (["sliding_attention", "full_attention"], True),
        (["chunked_attention"], True),
        ([3, "chunked_attention", None], True),
    ],
)
def test_layers_are_of_one_kind(kinds, refused):
    keys = LLAMA | {"layer_types": kinds}
    if refused:
        with pytest.raises(JllamaError, match="layer_types of kinds"):
            ModelConfig.from_hf(keys)
    else:
        ModelConfig.from_hf(keys)


SIZES = dict(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_hidden_layers=10_000), None),
        (dict(num_hidden_layers=10_001), "num_hidden_layers=10001 is absurd"),
        (dict(num_key_value_heads=2), None),
        (dict(num_key_value_heads=3), "no multiple of"),
        (dict(head_dim=2), None),
        (dict(head_dim=3), "head_dim=3 must be even"),
        (dict(rms_norm_eps=0), None),
        (dict(rms_norm_eps=1.0), "rms_norm_eps=1.0 must be a number from 0 to 1"),
        (dict(rms_norm_eps=-1e-9), "rms_norm_eps"),
        (dict(rms_norm_eps=True), "rms_norm_eps"),
        (dict(hidden_act="tanh"), "hidden_act='tanh' is not supported; use "),
        (dict(sliding_window=1), None),
        (dict(sliding_window=0), "sliding_window=0 must be a positive whole number below 2^31, or null"),
        (dict(layer_kinds=(LayerKind(window=0),)), "sliding_window=0"),
        (dict(layer_kinds=(LayerKind(rope=None),)), None),
        (dict(layer_kinds=(LayerKind(rope=Rope(rope_type="x")),)), "RoPE type 'x'"),
        (dict(rope=Rope(rope_type="hyper")), "RoPE type 'hyper'"),
        (dict(attention_bias=1), "attention_bias=1 must be true or false"),
        (dict(max_position_embeddings=2**31), "max_position_embeddings"),
        *[(dict(norm_placement=kind), None) for kind in ("pre", "post", "both")],
        (dict(norm_placement="none"), "norm_placement='none' must be one of ('pre', 'post', 'both')"),
        *[(dict(qk_norm=kind), None) for kind in (None, "head", "full")],
        (dict(qk_norm="heads"), "qk_norm='heads' must be one of (None, 'head', 'full')"),
        *[(dict(attention_out_bias=said), None) for said in (None, True, False)],
        (dict(attention_out_bias="yes"), "attention_out_bias='yes' must be true, false or null"),
        *[(dict(norm_offset=number), None) for number in (-1e6, 0, 1, 1e6)],
        *[(dict(norm_offset=x), "norm_offset=") for x in (1.1e6, -1.1e6, math.nan, True, "1", None)],
    ],
)
def test_a_configuration_from_both_sides_of_each_limit(changes, words):
    if words is None:
        ModelConfig(**SIZES | changes)
    else:
        with pytest.raises(JllamaError) as error:
            ModelConfig(**SIZES | changes)
        assert words in str(error.value)


MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
OPTIONAL = ("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping")


@pytest.mark.parametrize("name", [*MULTIPLIERS, *OPTIONAL])
def test_a_multiplier_is_a_positive_number(name):
    for value in (1e-9, 1, 2.5, 1e6, *([None] if name in OPTIONAL else [])):
        assert getattr(ModelConfig(**SIZES | {name: value}), name) == value
    for value in (0, -1, 1.1e6, math.nan, math.inf, True, "1", *([] if name in OPTIONAL else [None])):
        with pytest.raises(
            JllamaError, match=f"^config: {name}=.* must be a positive number, 1000000 at most$"
        ):
            ModelConfig(**SIZES | {name: value})


def test_kinds_of_layers_repeat():
    near, far = LayerKind(window=4), LayerKind(rope=None)
    mixed = ModelConfig(**SIZES | dict(num_hidden_layers=5, layer_kinds=(near, far)))
    assert [mixed.kind_of(layer) for layer in range(5)] == [near, far, near, far, near]
    alike = ModelConfig(**SIZES | dict(num_hidden_layers=2, layer_kinds=(far,)))
    assert [alike.kind_of(layer) for layer in range(2)] == [far, far]
    plain = ModelConfig(**SIZES | dict(sliding_window=3, rope=Rope(rope_theta=5.0)))
    assert plain.kind_of(3) == LayerKind(3, Rope(rope_theta=5.0))


STRETCHED = dict(original_max_position_embeddings=64)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (dict(rope_theta=1e30), None),
        (dict(rope_theta=1.1e30), "rope_theta=1.1e+30 must be a positive number, 1e+30 at most"),
        (dict(rope_theta=0.0), "rope_theta=0.0 must be"),
        (dict(rope_type="linear", factor=1e30), None),
        (dict(rope_type="linear", factor=1.1e30), "factor"),
        (dict(original_max_position_embeddings=0), None),
        (dict(original_max_position_embeddings=True), "original_max_position_embeddings=True must be a"),
        (dict(rope_type="linear", factor=2.0, original_max_position_embeddings=0), None),
        (
            dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=0),
            "original_max_position_embeddings=0",
        ),
        (dict(rope_type="yarn", factor=2.0, **STRETCHED), None),
        (dict(rope_type="yarn", factor=2.0, rope_theta=1.0, **STRETCHED), "needs a rope_theta other than 1"),
        (dict(rope_type="linear", factor=2.0, rope_theta=1.0), None),
        (dict(rope_type="yarn", factor=2.0, truncate=1, **STRETCHED), "truncate=1 must be true or false"),
        (dict(rope_type="yarn", factor=2.0, attention_factor=-1.0, **STRETCHED), "attention_factor=-1.0"),
        (dict(rope_type="yarn", factor=2.0, mscale=0.0, **STRETCHED), "mscale=0.0"),
        (dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **STRETCHED), None),
        (
            dict(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0, **STRETCHED),
            "must be below",
        ),
        (dict(rope_type="dynamic", factor=2.0, **STRETCHED), None),
        (dict(rope_type="dynamic", factor=2.0**20 - 1, **STRETCHED), None),
        (dict(rope_type="dynamic", factor=2.0**20, **STRETCHED), "stretches the context beyond 2^31"),
        (dict(frequency_factors=(1.0, 2.0)), None),
        (
            dict(frequency_factors=(1.0,)),
            "RoPE has 1 factors (frequency_factors, of the tensor rope_freqs.weight in GGUF files), and "
            "heads that rotate 4 elements need 2",
        ),
        (dict(frequency_factors=(1.0, 0.0)), "frequency_factors (rope_freqs.weight)=0.0"),
        (dict(frequency_factors=[1.0, 2.0]), "frequency_factors=[1.0, 2.0] must be a tuple of numbers"),
        (dict(llama_4_scaling_beta=0.1, **STRETCHED), None),
        (dict(llama_4_scaling_beta=0.1), "llama_4_scaling_beta needs original_max_position_embeddings"),
        (dict(rope_type="longrope", factor=2.0, **STRETCHED), "longrope lacks short_factor and long_factor"),
        (dict(rope_type="longrope", factor=2.0, short_factor=(1.0, 2.0), **STRETCHED), None),
        (dict(rope_type="longrope", factor=2.0, long_factor=(1.0, 2.0), **STRETCHED), None),
        (
            dict(rope_type="longrope", factor=2.0, long_factor=(1.0,), **STRETCHED),
            "RoPE has 1 factors (long_f",
        ),
        (dict(partial_rotary_factor=0.5), None),
        (dict(partial_rotary_factor=0.25), "partial_rotary_factor=0.25 rotates 1 of 4 elements"),
        (dict(partial_rotary_factor=1.5), "partial_rotary_factor=1.5 rotates 6 of 4 elements"),
    ],
)
def test_a_rotary_embedding_from_both_sides_of_each_limit(rope, words):
    if words is None:
        ModelConfig(**SIZES, rope=Rope(**rope))
    else:
        with pytest.raises(JllamaError) as error:
            ModelConfig(**SIZES, rope=Rope(**rope))
        assert words in str(error.value)


def test_only_dynamic_stretching_lengthens_the_context():
    made = {
        kind: ModelConfig(**SIZES, rope=Rope(rope_type=kind, factor=2.5, **STRETCHED))
        for kind in ("dynamic", "linear", "yarn", "llama3")
    }
    assert made.pop("dynamic").context_length == 5120
    assert {config.context_length for config in made.values()} == {2048}
    with pytest.raises(JllamaError, match="needs a head_dim of 4 at least"):
        ModelConfig(**SIZES | dict(head_dim=2), rope=Rope(rope_type="dynamic", factor=2.0, **STRETCHED))


GGUF = {
    "general.architecture": "llama",
    "llama.vocab_size": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 4,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.mark.parametrize(
    ("changes", "tensors", "field", "value"),
    [
        ({}, (), "tie_word_embeddings", True),
        ({}, ("output.weight",), "tie_word_embeddings", False),
        ({}, ("blk.0.attn_q.bias",), "attention_bias", True),
        ({}, ("blk.0.ffn_gate.bias",), "mlp_bias", True),
        ({}, ("blk.0.ffn_gate.bias",), "attention_bias", False),
        ({}, (), "num_key_value_heads", 4),
        ({"llama.attention.head_count_kv": 2}, (), "num_key_value_heads", 2),
        ({}, (), "head_dim", 8),
        ({"llama.attention.key_length": 16, "llama.attention.value_length": 16}, (), "head_dim", 16),
        ({"llama.attention.sliding_window": 0}, (), "sliding_window", None),
        ({"llama.attention.sliding_window": 16}, (), "sliding_window", 16),
        ({"tokenizer.ggml.tokens": ["a"] * 70}, (), "vocab_size", 70),
        ({"tokenizer.ggml.tokens": []}, (), "vocab_size", 64),
        ({"llama.expert_count": 0}, (), "num_hidden_layers", 2),
    ],
)
def test_what_a_gguf_says_and_what_its_tensors_tell(changes, tensors, field, value):
    assert getattr(ModelConfig.from_gguf(GGUF | changes, tensors), field) == value


@pytest.mark.parametrize(
    "key",
    [
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.alpha",
    ],
)
def test_knobs_of_gguf_that_are_not_supported_are_refused_unless_neutral(key):
    neutral = 0.0 if key.endswith("alpha") else 1.0
    assert ModelConfig.from_gguf(GGUF | {f"llama.{key}": neutral}, ()).rope == Rope()
    with pytest.raises(JllamaError, match=key.rpartition(".")[2]):
        ModelConfig.from_gguf(GGUF | {f"llama.{key}": 0.5}, ())


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "smollm3"])
def test_a_window_that_is_stated_but_not_used_is_none(model_type):
    """As every Qwen 2.5 states it."""
    keys = LLAMA | dict(model_type=model_type, num_key_value_heads=2)
    keys |= dict(sliding_window=32768, use_sliding_window=False)
    config = ModelConfig.from_hf(keys)
    assert {config.kind_of(layer).window for layer in range(2)} == {None}
