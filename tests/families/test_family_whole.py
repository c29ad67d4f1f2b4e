"""All that a family's files come to: each field in which its model differs from a Llama, and no other."""

import dataclasses

import pytest

from jllama.config import ModelConfig
from jllama.families.family import GGUF_LAYER
from jllama.families.known import FAMILIES, of_architecture, of_model_type
from jllama.families.tensor_names import from_gguf, from_hf, to_gguf, to_hf
from jllama.layers.kind import LayerKind
from jllama.layers.rope import Rope
from tests.families.test_family_values import SMALL, TANH, read

# The classes and models that the values are from: transformers' `configuration_*.py` and `modeling_*.py`.
PLAIN, HALF_MILLION, TWO_MILLIONS = Rope(), Rope(rope_theta=500000.0), Rope(rope_theta=2000000.0)
NEAR, FAR, NOWHERE = LayerKind(4096, PLAIN), LayerKind(None, PLAIN), LayerKind(None, None)
NORMS = dict(hidden_act=TANH, norm_offset=1.0, embedding_multiplier=48**0.5)
GEMMA = NORMS | dict(tie_word_embeddings=True)
BOTH = dict(norm_placement="both", attention_multiplier=1 / 16)
CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
YARN = Rope(
    rope_type="yarn",
    rope_theta=1000000.0,
    factor=16.0,
    original_max_position_embeddings=16384,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)
OF_CONFIG = {
    "llama": {},
    "mistral": dict(sliding_window=4096),
    "ministral": dict(sliding_window=4096),
    "ministral3": dict(rms_norm_eps=1e-5, rope=YARN),
    "qwen2": dict(attention_bias=True, attention_out_bias=False),
    "qwen3": dict(qk_norm="head"),
    "gemma": GEMMA,
    "gemma2": GEMMA
    | CAPS
    | dict(norm_placement="both", attention_multiplier=1 / 16, layer_kinds=(NEAR, FAR)),
    "gemma3_text": GEMMA | BOTH | dict(qk_norm="head", sliding_window=4096),
    "phi3": dict(rms_norm_eps=1e-5),
    "smollm3": dict(
        tie_word_embeddings=True,
        rope=TWO_MILLIONS,
        layer_kinds=(*[LayerKind(None, TWO_MILLIONS)] * 3, NOWHERE),
    ),
    "olmo2": dict(rms_norm_eps=1e-5, norm_placement="post", qk_norm="full"),
    "olmo3": dict(
        rms_norm_eps=1e-5,
        norm_placement="post",
        qk_norm="full",
        rope=HALF_MILLION,
        layer_kinds=(*[LayerKind(4096, HALF_MILLION)] * 3, LayerKind(None, HALF_MILLION)),
    ),
    "granite": dict(attention_multiplier=1.0),
    "seed_oss": dict(attention_bias=True, attention_out_bias=False),
    "exaone4": dict(
        rms_norm_eps=1e-5, norm_placement="post", qk_norm="head", layer_kinds=(NEAR, NEAR, NEAR, NOWHERE)
    ),
}
# Of a window of 7: what it is without one, and what else it is with one.
WINDOW, KINDS = dict(sliding_window=7), (*[LayerKind(7, PLAIN)] * 3, FAR)
GEMMA_FILE = NORMS | dict(attention_multiplier=8**-0.5, norm_placement="both")
OLMO, SCALED = dict(norm_placement="post", qk_norm="full"), dict(logit_scale=8.0)
OF_METADATA = {
    **dict.fromkeys(("llama", "mistral", "mistral3", "qwen2", "phi3", "seed_oss"), ({}, WINDOW)),
    "qwen3": (dict(qk_norm="head"), WINDOW),
    "gemma": (NORMS, WINDOW),
    "gemma2": (
        GEMMA_FILE | CAPS | dict(layer_kinds=(NEAR, FAR)),
        dict(layer_kinds=(LayerKind(7, PLAIN), FAR)),
    ),
    "gemma3": (GEMMA_FILE | dict(qk_norm="head"), WINDOW),
    "smollm3": (dict(layer_kinds=(FAR, FAR, FAR, NOWHERE)), {}),
    "olmo2": (OLMO, dict(layer_kinds=KINDS)),
    "olmo3": (OLMO, dict(layer_kinds=KINDS)),
    "granite": (dict(logits_scaling=8.0), WINDOW),
    "exaone4": (OLMO | dict(qk_norm="head"), dict(layer_kinds=(*KINDS[:3], NOWHERE))),
}


def differing(config, **fields):
    """What a configuration differs in from a Llama with these fields."""
    plain = ModelConfig(**SMALL | fields)
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}


def test_every_family_is_listed():
    assert set(OF_CONFIG) == {name for family in FAMILIES for name in family.model_types}
    assert set(OF_METADATA) == {name for family in FAMILIES for name in family.architectures}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", OF_CONFIG)
def test_what_a_config_json_of_the_smallest_size_says(name):
    assert differing(ModelConfig.from_hf(SMALL | dict(model_type=name))) == OF_CONFIG[name]


@pytest.mark.parametrize(
    ("name", "window"),  # SmolLM3's files with one are refused
    [(name, window) for name in OF_METADATA for window in (None, 7) if (name, window) != ("smollm3", 7)],
)
def test_what_metadata_of_the_smallest_size_say(name, window):
    plain, with_window = OF_METADATA[name]
    given = {"attention__sliding_window": window} | (SCALED if name == "granite" else {})
    found = differing(read(name, **given), rms_norm_eps=1e-5, tie_word_embeddings=True, num_key_value_heads=4)
    assert found == plain | (with_window if window else {})


# How files name the norms of a layer, in the order: before and behind attention, before and behind the rest.
HF_NORMS = {
    "olmo2 olmo3 exaone4": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "gemma2 gemma3_text": (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
OURS = ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")


@pytest.mark.parametrize("name", OF_CONFIG)
def test_how_a_config_json_s_family_names_its_norms(name):
    listed = {one: norms for names, norms in HF_NORMS.items() for one in names.split()}
    family = of_model_type(name)
    for ours, theirs in zip(
        OURS, listed.get(name, ("input_layernorm", None, "post_attention_layernorm", None)), strict=True
    ):
        if theirs is not None:
            assert from_hf(f"model.layers.3.{theirs}.weight", family) == f"layers.3.{ours}.weight"
            assert to_hf(f"layers.3.{ours}.weight", family) == f"model.layers.3.{theirs}.weight"


@pytest.mark.parametrize("name", OF_METADATA)
def test_how_a_gguf_names_the_tensors_of_a_layer(name):
    family = of_architecture(name)
    changed = {"phi3": {"ffn_up": "mlp.gate_up_proj"}, "seed_oss": {"post_attention_norm": "ffn_norm"}}
    absent = {"ffn_norm": "seed_oss"}
    for theirs, ours in (GGUF_LAYER | changed.get(name, {})).items():
        if absent.get(theirs) != name:
            assert from_gguf(f"blk.3.{theirs}.weight", family) == f"layers.3.{ours}.weight"
            assert to_gguf(f"layers.3.{ours}.bias", family) == f"blk.3.{theirs}.bias"


def test_which_files_pair_neighbouring_elements():
    pairing = {name for name in OF_METADATA if of_architecture(name).rotary_interleaved}
    assert pairing == {"llama", "mistral3", "smollm3", "granite"}
