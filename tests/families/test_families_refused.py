"""What the families' files must not say: each refused at load, by name; and what they need not say."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.known import FAMILIES
from tests.support.checkpoint_generator import named_tensors
from tests.support.family_files import CONVERTED, GOLDENS, MODELS
from tests.test_families import load

DEFAULTS = json.loads((GOLDENS / "family_defaults.json").read_text())
FULL, SLIDING = "full_attention", "sliding_attention"
# Of which some layers slide, as `layer_types` says.
WINDOWED = [name for name, model in MODELS.items() if SLIDING in (model["config"].get("layer_types") or ())]


def keys(name: str, **changes) -> dict:
    return MODELS[name]["config"] | changes


def test_every_type_has_its_defaults():
    assert {given["model_type"] for given in DEFAULTS} == {name for f in FAMILIES for name in f.model_types}


@pytest.mark.parametrize("given", DEFAULTS, ids=lambda given: given["model_type"])
def test_a_key_left_out_means_what_the_familys_own_class_says(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ModelConfig.from_hf({"model_type": given["model_type"]}) == ModelConfig.from_hf(given)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        # Fields of another family.
        ("qwen2", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0 is not supported"),
        ("qwen3", dict(embedding_multiplier=12.0), "embedding_multiplier=12.0"),
        ("llama_biases", dict(no_rope_layers=[1, 0, 1, 1]), "no_rope_layers"),
        ("llama_biases", dict(sliding_window=7), "no sliding_window; use model_type mistral"),
        ("granite", dict(sliding_window=7), "sliding_window=7"),
        ("olmo2", dict(sliding_window=7), "sliding_window=7"),
        ("gemma", dict(query_pre_attn_scalar=16), "query_pre_attn_scalar=16"),
        ("qwen3", dict(num_local_experts=8), "num_local_experts=8"),
        ("qwen3", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
        ("mistral", dict(rope_parameters={FULL: {"rope_type": "default"}}), "each layer type"),
        ("llama_biases", dict(no_rope_layer_interval=4), "no_rope_layer_interval=4 .*of \\(smollm3\\)"),
        ("llama_biases", dict(num_experts=8, num_experts_per_tok=2), "num_experts=8 .*do without$"),
        ("llama_biases", dict(qk_layernorm=True), "qk_layernorm=True"),
        ("llama_biases", dict(vision_config={}), "vision_config={} .* model_type llama has none"),
        ("llama_biases", dict(rope_local_base_freq=1e4), "rope_local_base_freq=10000.0 .*gemma3_text"),
        ("qwen2", dict(sliding_window_pattern=6), "sliding_window_pattern=6 .*gemma3_text, exaone4"),
        ("qwen2", dict(use_mrope=True), "use_mrope=True"),
        ("phi3", dict(lm_head_bias=True), "lm_head_bias=True"),
        ("granite", dict(position_embedding_type="nope"), "position_embedding_type='nope'"),
        *[
            ("mistral", dict(rope_parameters={"rope_type": "default", key: value}), f"default has no {key}")
            for key, value in dict(llama_4_scaling_beta=0.1, mscale=0.7, mrope_section=[2, 3, 3]).items()
        ],
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0 .*gemma3_text has none"),
        (
            "phi3",
            dict(attention_bias=True),
            "attention_bias=True is not supported: model_type phi3 has no biases",
        ),
        ("phi3", dict(model_type=["phi3"]), r"model_type \['phi3'\] is not supported"),
        # Patterns that do not fit the layers.
        ("qwen2_window", dict(layer_types=[FULL] * 3), "3 layer_types for num_hidden_layers=4"),
        ("qwen2_window", dict(layer_types=[FULL] * 5), "5 layer_types for num_hidden_layers=4"),
        ("gemma2", dict(layer_types=[FULL, "chunked_attention"] * 2), "chunked_attention"),
        ("gemma2", dict(layer_types="full_attention"), "layer_types"),
        ("gemma2", dict(layer_types={FULL: 1, SLIDING: 2}), "layer_types of kinds"),
        ("gemma3", dict(layer_types=None, sliding_window_pattern=0), "pattern of 0 layers"),
        ("smollm3_list", dict(no_rope_layers=[1, 0]), r"no_rope_layers=\[1, 0\] must be a list of 4 numbers"),
        ("smollm3", dict(no_rope_layers=None, no_rope_layer_interval=-1), "pattern of -1 layers"),
        ("exaone4", dict(layer_types=None, sliding_window_pattern="XYZ"), "sliding_window_pattern='XYZ'"),
        ("exaone4", dict(layer_types=None, sliding_window_pattern=""), "sliding_window_pattern='' must be"),
        ("gemma3", dict(sliding_window=0), "sliding_window=0"),
        ("gemma3", dict(sliding_window="512"), "sliding_window='512'"),
        ("gemma3", dict(sliding_window=[4, 4]), r"sliding_window=\[4, 4\] must be"),
        ("smollm3_list", dict(sliding_window=[4, 4]), r"sliding_window=\[4, 4\] must be"),
        *[
            (name, dict(sliding_window=None), "layers are of sliding_attention, and there is no window")
            for name in WINDOWED
        ],
        ("qwen2", dict(layer_types=[SLIDING] * 4), "4 of 4 layers .* use_sliding_window"),
        # Rotations.
        (
            "mistral",
            dict(rope_parameters=dict(rope_type="yarn", original_max_position_embeddings=32)),
            "RoPE type yarn lacks factor",
        ),
        (
            "phi3_longrope",
            dict(rope_parameters=dict(rope_type="longrope")),
            "lacks short_factor, long_factor",
        ),
        (
            "phi3_longrope",
            dict(rope_parameters=dict(rope_type="longrope", short_factor=[1.0] * 6, long_factor=[1.0] * 5)),
            r"5 factors \(long_factor, .*need 6; correct the list",
        ),
        (
            "phi3_longrope",
            dict(rope_parameters=dict(rope_type="longrope", short_factor=[1.0] * 6, long_factor="x")),
            "long_factor='x' must be a list",
        ),
        (
            "phi3_longrope",
            dict(rope_parameters=dict(rope_type="longrope", short_factor=[1.0] * 6, long_factor=[0.0] * 6)),
            "long_factor .*=0.0 must be a positive number",
        ),
        ("phi3", dict(partial_rotary_factor=0.6, rope_parameters=None), "rotates 7 of 12 elements"),
        ("phi3", dict(partial_rotary_factor=1.5, rope_parameters=None), "rotates 18 of 12 elements"),
        ("phi3", dict(partial_rotary_factor=0.05, rope_parameters=None), "rotates 0 of 12 elements"),
        *[
            (
                name,
                dict(rope_parameters=flat),
                "full_attention and sliding_attention, .* not rope_type, rope_theta",
            )
            for name in ("gemma3", "olmo3")
            for flat in (
                dict(rope_type="default", rope_theta=1e5),
                dict(rope_type="linear", rope_theta=1e5, factor=2.0),
            )
        ],
        # Numbers.
        ("granite", dict(logits_scaling=0.0), "logits_scaling=0.0 must be a positive number"),
        ("granite", dict(residual_multiplier="x"), "wrong type"),
        ("gemma2", dict(final_logit_softcapping=-1.0), "final_logit_softcapping=-1.0"),
        ("gemma2", dict(query_pre_attn_scalar=0), "wrong type or size"),
        ("gemma2", dict(hidden_activation="swiglu"), "hidden_act='swiglu'"),
        ("qwen2_window", dict(layer_types=None, max_window_layers="2"), "max_window_layers='2' must be"),
    ],
    ids=str,
)
def test_configurations_are_refused_by_name(name, changes, words):
    with pytest.raises(JllamaError, match=words):
        ModelConfig.from_hf(keys(name, **changes))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "leftovers"),
    [
        ("gemma2", dict(cache_implementation="hybrid", sliding_window_size=4096)),
        ("gemma3", dict(cache_implementation="hybrid")),
        ("smollm3", dict(max_window_layers=28)),
        ("phi3_partial", dict(full_attn_mod=1, interpolate_factor=1, lm_head_bias=False)),
        ("qwen2", dict(use_mrope=False, sliding_window=131072, max_window_layers=28)),
        ("olmo3", dict(rope_local_base_freq=None)),
        ("granite", dict(position_embedding_type="rope", num_experts=0)),
    ],
)
def test_what_published_files_state_besides_changes_nothing(name, leftovers):
    assert ModelConfig.from_hf(keys(name, **leftovers)) == ModelConfig.from_hf(keys(name))


@pytest.mark.parametrize("given", DEFAULTS, ids=lambda given: given["model_type"])
@pytest.mark.parametrize("layers", [10_001, 2**31 - 1, 2**60, "26", -1, 0, True])
def test_layers_are_counted_before_there_is_a_list_of_them(given, layers):
    with pytest.raises(JllamaError, match=rf"num_hidden_layers={layers!r} (is absurd|must be)"):
        ModelConfig.from_hf(dict(model_type=given["model_type"], num_hidden_layers=layers))


@pytest.mark.parametrize("name", CONVERTED)
def test_layers_of_a_gguf_are_counted_likewise(name):
    fields = CONVERTED[name]["fields"] | {"tokenizer.ggml.tokens": ["w"] * 97}
    fields[f"{fields['general.architecture']}.block_count"] = 2**31 - 1
    fields = {key: value for key, value in fields.items() if not isinstance(value, list) or "tokens" in key}
    with pytest.raises(JllamaError, match="num_hidden_layers=2147483647 is absurd"):
        ModelConfig.from_gguf(fields, CONVERTED[name]["tensors"])


def test_a_pattern_of_ten_thousand_layers_is_found_at_once():
    types = [SLIDING] * 9_999 + [FULL]
    config = ModelConfig.from_hf(keys("gemma3", num_hidden_layers=10_000, layer_types=types))
    assert len(config.layer_kinds) == 10_000
    repeats = ModelConfig.from_hf(
        keys("gemma3", num_hidden_layers=10_000, layer_types=[FULL, SLIDING] * 5_000)
    )
    assert [kind.window for kind in repeats.layer_kinds] == [None, 7]


@pytest.mark.parametrize("outer", ["gemma3", "mistral3"])
def test_a_model_that_sees_needs_a_text_config(outer):
    quantised = dict(model_type=outer, text_config={}, quantization_config=dict(quant_method="awq"))
    with pytest.raises(JllamaError, match="quantised by 'awq'"):  # a key of the whole model
        ModelConfig.from_hf(quantised)
    with pytest.raises(JllamaError, match=f"model_type {outer} without a text_config"):
        ModelConfig.from_hf(dict(model_type=outer, hidden_size=48))


@pytest.mark.parametrize(
    "model_type", ["qwen3_moe", "mixtral", "llava", "qwen2_vl", "mamba", "hunyuan_v1_dense", None, 3]
)
def test_what_does_not_run_is_named_beside_what_does(model_type):
    with pytest.raises(
        JllamaError, match=rf"{model_type!r} is not supported; jllama runs .*gemma3_text.*qwen3"
    ):
        ModelConfig.from_hf(dict(model_type=model_type))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "gemma2",
            "drop layers.1.post_feedforward_layernorm",
            "missing: model.layers.1.post_feedforward_layernorm",
        ),
        ("qwen3", "drop layers.2.self_attn.k_norm", "missing: model.layers.2.self_attn.k_norm.weight"),
        ("olmo2", "add layers.0.input_layernorm", "extra: model.layers.0.input_layernorm.weight"),
        ("llama_longrope", "add layers.0.self_attn.q_norm", "extra: model.layers.0.self_attn.q_norm.weight"),
        ("qwen2", "drop layers.0.self_attn.q_proj.bias", "missing: model.layers.0.self_attn.q_proj.bias"),
        ("phi3", "short layers.0.self_attn.qkv_proj", "missing: .*q_proj.*extra: .*qkv_proj"),
    ],
)
def test_tensors_that_do_not_fit_the_family(name, change, words, tmp_path):
    verb, part = change.split()
    tensors = named_tensors(MODELS[name]["shapes"])
    full = f"model.{part}" + ".weight" * (not part.endswith("bias"))
    if verb == "drop":
        del tensors[full]
    elif verb == "short":
        tensors[full] = np.ascontiguousarray(tensors[full][:-1])
    else:
        tensors[full] = np.ones(48, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]["config"]))
    with pytest.raises(JllamaError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma3", {"attention.sliding_window_pattern": [True, False]}, "has 2 values for 7 layers"),
        ("gemma3", {"attention.sliding_window_pattern": 0}, "pattern of 0 layers"),
        ("granite", {"logit_scale": None}, "lacks granite.logit_scale"),
        ("gemma2", {"attention.value_length": 8}, "attention.value_length=8 is not supported"),
        ("ministral3", {"rope.dimension_count": 8}, "rope.dimension_count=8 is not supported"),
        ("phi3", {"rope.dimension_count": 7}, "rotates 7 of 12"),
        ("qwen3", {"rope.scaling.type": "longrope"}, "longrope without the tensors"),
    ],
    ids=str,
)
def test_metadata_are_refused_by_name(name, changes, words):
    fields = dict(CONVERTED[name]["fields"])
    architecture = fields["general.architecture"]
    fields["tokenizer.ggml.tokens"] = ["w"] * 97
    for key, value in changes.items():
        fields[f"{architecture}.{key}"] = value
    with pytest.raises(JllamaError, match=words):
        ModelConfig.from_gguf({k: v for k, v in fields.items() if v is not None}, CONVERTED[name]["tensors"])
