"""GGUF metadata -> `ModelConfig`."""

import pytest

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.tensor_names import LONG_FACTORS, SHORT_FACTORS
from jllama.layers.rope import Rope

METADATA = {
    "general.architecture": "llama",
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 500000.0,
    "tokenizer.ggml.tokens": ["a"] * 64,
}
TENSORS = ("token_embd.weight", "output.weight")


def read(tensors=TENSORS, factors=None, **changes) -> ModelConfig:
    fields = METADATA | {f"llama.{key.replace('__', '.')}": value for key, value in changes.items()}
    lists = {} if factors is None else {"rope_freqs.weight": factors}
    return ModelConfig.from_gguf({k: v for k, v in fields.items() if v is not None}, tensors, lists)


def test_plain():
    assert read() == ModelConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope=Rope(rope_theta=500000.0),
    )


def test_what_only_the_tensors_tell():
    assert read(("token_embd.weight",)).tie_word_embeddings
    assert read((*TENSORS, "blk.0.attn_q.bias")).attention_bias
    assert read((*TENSORS, "blk.0.ffn_gate.bias")).mlp_bias
    factors = (1.0, 1.0, 4.0, 8.0)
    assert read(factors=factors).rope == Rope(rope_theta=500000.0, frequency_factors=factors)


def test_factors_for_long_and_for_short_texts():
    fields = METADATA | {"llama.rope.scaling.original_context_length": 64}
    lists = {LONG_FACTORS: (2.0,) * 4, SHORT_FACTORS: (1.0,) * 4}
    for attention in (None, 1.25):
        more = {} if attention is None else {"llama.rope.scaling.attn_factor": attention}
        rope = ModelConfig.from_gguf(fields | more, TENSORS, lists).rope
        assert (rope.rope_type, rope.original_max_position_embeddings) == ("longrope", 64)
        assert (rope.long_factor, rope.short_factor) == ((2.0,) * 4, (1.0,) * 4)
        assert rope.attention_factor == attention


@pytest.mark.parametrize("kind", [None, "longrope"])
@pytest.mark.parametrize(("held", "missing"), [(LONG_FACTORS, SHORT_FACTORS), (SHORT_FACTORS, LONG_FACTORS)])
def test_one_list_of_longrope_does_not_serve_for_both(kind, held, missing):
    fields = METADATA | ({} if kind is None else {"llama.rope.scaling.type": kind})
    with pytest.raises(JllamaError, match=f"longrope without the tensors {missing}; download"):
        ModelConfig.from_gguf(fields, TENSORS, {held: (2.0,) * 4})


def test_head_width_and_window():
    widths = {"attention__key_length": 26, "attention__value_length": 26, "rope__dimension_count": 26}
    assert read(**widths).head_dim == 26
    assert [read(attention__sliding_window=size).sliding_window for size in (16, 0)] == [16, None]
    assert read(attention__head_count_kv=None).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope__freq_base": None}, Rope()),
        ({"rope__scaling__type": "none"}, Rope(rope_theta=5e5)),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            Rope(rope_type="linear", rope_theta=5e5, factor=4.0),
        ),
        # llama.cpp's defaults: linear where no type is named, never scaled where the type is none.
        ({"rope__scale_linear": 2.0}, Rope(rope_type="linear", rope_theta=5e5, factor=2.0)),
        ({"rope__scaling__factor": 4.0}, Rope(rope_type="linear", rope_theta=5e5, factor=4.0)),
        (
            {"rope__scaling__factor": 4.0, "rope__scale_linear": 2.0},
            Rope(rope_type="linear", rope_theta=5e5, factor=4.0),
        ),
        (
            {"rope__scaling__type": "yarn", "rope__scale_linear": 2.0},
            Rope(rope_type="yarn", rope_theta=5e5, factor=2.0, original_max_position_embeddings=128),
        ),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 1.0},
            Rope(rope_type="yarn", rope_theta=5e5, factor=1.0, original_max_position_embeddings=128),
        ),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, Rope(rope_theta=5e5)),
        ({"rope__scaling__type": "linear"}, Rope(rope_theta=5e5)),
        ({"rope__scaling__factor": 0.0}, Rope(rope_theta=5e5)),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 32,
            },
            Rope(rope_type="yarn", rope_theta=5e5, factor=4.0, original_max_position_embeddings=32),
        ),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__yarn_beta_fast": 16.0,
                "rope__scaling__yarn_beta_slow": 2.0,
            },
            Rope(
                rope_type="yarn",
                rope_theta=5e5,
                factor=4.0,
                original_max_position_embeddings=128,
                beta_fast=16.0,
                beta_slow=2.0,
            ),
        ),
        *(
            (
                {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, **stated},
                Rope(
                    rope_type="yarn",
                    rope_theta=5e5,
                    factor=4.0,
                    original_max_position_embeddings=128,
                    attention_factor=factor,
                ),
            )
            for factor, stated in (
                (1.25, {"rope__scaling__attn_factor": 1.25}),
                (1.25, {"rope__scaling__yarn_attn_factor": 1.25}),
                (1.25, {"rope__scaling__attn_factor": 1.5, "rope__scaling__yarn_attn_factor": 1.25}),
                (None, {"rope__scaling__attn_factor": 1.0}),
            )
        ),
    ],
    ids=str,
)
def test_rope(changes, rope):
    assert read(**changes).rope == rope


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"embedding_length": None}, "llama.embedding_length"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
        ({"context_length": None}, "context_length"),
        ({"attention__value_length": 4}, "value_length"),
        ({"rope__dimension_count": 4}, "dimension_count"),
        ({"expert_count": 8}, "expert_count"),
        ({"rope__scaling__type": "longrope"}, "longrope"),
        ({"rope__scaling__attn_factor": 0.8}, "attn_factor"),
        ({"block_count": 0}, "num_hidden_layers"),
        ({"attention__head_count_kv": 3}, "num_key_value_heads"),
        ({"attention__head_count_kv": [2, 1]}, r"attention.head_count_kv differs from layer to layer.*2, 1"),
        ({"feed_forward_length": [48] * 3}, "feed_forward_length has 3 values for 2 layers"),
        ({"attention__head_count": []}, "attention.head_count has 0 values for 2 layers"),
        ({"attention__layer_norm_rms_epsilon": False}, "rms_norm_eps"),
        ({"rope__scaling__factor": "4"}, "factor='4'"),
        ({"rope__scaling__factor": -4.0}, "factor=-4.0"),
        ({"rope__scaling__alpha": 1000.0}, "alpha"),
        ({"rope__freq_base": 1e-38}, "angles that are no numbers"),
    ],
    ids=str,
)
def test_refusals_name_the_key(changes, names):
    with pytest.raises(JllamaError, match=names):
        read(**changes)


def test_a_number_for_each_layer():
    equal = {
        "attention__head_count": [4, 4],
        "attention__head_count_kv": [2, 2],
        "feed_forward_length": [48, 48],
    }
    assert read(**equal) == read()


@pytest.mark.parametrize(
    "factors",
    [(1.0,) * 3, (1.0,) * 8, (), (1.0, 1.0, 0.0, 1.0), (1.0, float("nan"), 1.0, 1.0), (1.0, -1.0, 1.0, 1.0)],
    ids=str,
)
def test_frequency_factors_that_fit_no_head(factors):
    with pytest.raises(JllamaError, match=r"rope_freqs\.weight"):
        read(factors=factors)


def test_an_adapter_is_named():
    with pytest.raises(JllamaError, match="LoRA adapter"):
        ModelConfig.from_gguf(METADATA | {"general.type": "adapter"}, ())


def test_foreign_architecture():
    with pytest.raises(JllamaError, match="falcon"):
        ModelConfig.from_gguf({"general.architecture": "falcon"}, ())
