"""What families' keys come to in `ModelConfig`: precedence, defaults, null; which layers slide and rotate."""

import pytest

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.families.keys import HfKeys
from jllama.families.kinds import every, gguf_slides, kind_fields
from jllama.families.known import text_keys, tie_left_open
from jllama.families.rope_check import check_rope
from jllama.layers.kind import LayerKind
from jllama.layers.rope import Rope

SMALL = dict(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)
TANH = "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("model_type", "changes", "field", "value"),
    [
        ("gemma", dict(hidden_act="gelu"), "hidden_act", TANH),
        ("gemma", dict(hidden_act="silu"), "hidden_act", "silu"),
        ("gemma", dict(hidden_act="silu", hidden_activation=TANH), "hidden_act", TANH),
        ("gemma", dict(use_bidirectional_attention=None), "hidden_act", TANH),
        ("gemma", {}, "embedding_multiplier", 48**0.5),
        ("gemma2", {}, "attn_logit_softcapping", 50.0),
        ("gemma2", dict(attn_logit_softcapping=None), "attn_logit_softcapping", None),
        ("gemma2", {}, "final_logit_softcapping", 30.0),
        ("gemma2", dict(final_logit_softcapping=None), "final_logit_softcapping", None),
        ("gemma2", dict(query_pre_attn_scalar=16), "attention_multiplier", 0.25),
        ("gemma2", dict(query_pre_attn_scalar=None), "attention_multiplier", 1 / 16),
        ("gemma3_text", {}, "final_logit_softcapping", None),
        ("gemma3_text", dict(tie_word_embeddings=False), "tie_word_embeddings", False),
        ("granite", dict(logits_scaling=8), "logits_scaling", 8.0),
        ("seed_oss", dict(attention_bias=False), "attention_bias", False),
        ("seed_oss", {}, "has_out_bias", False),
        ("seed_oss", dict(attention_out_bias=True), "has_out_bias", True),
        ("qwen2", {}, "has_out_bias", False),
        ("llama", dict(attention_bias=True), "has_out_bias", True),
        ("llama", dict(head_dim=None), "head_dim", 12),
        ("llama", dict(num_key_value_heads=None), "num_key_value_heads", 4),
        ("phi3", dict(sliding_window=None), "sliding_window", None),
        ("phi3", dict(sliding_window=5), "sliding_window", 5),
    ],
    ids=str,
)
def test_a_configuration_comes_to(model_type, changes, field, value):
    assert getattr(ModelConfig.from_hf(SMALL | dict(model_type=model_type) | changes), field) == value


NEAR, FAR = 7, None  # windows


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("mistral", dict(sliding_window=7), [NEAR] * 4),
        ("mistral", dict(sliding_window=7, use_sliding_window=False), [NEAR] * 4),  # a key of Qwen's
        ("ministral3", {}, [FAR] * 4),
        ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=3), [FAR] * 3 + [NEAR]),
        ("qwen2", dict(use_sliding_window=True, sliding_window=7, max_window_layers=0), [NEAR] * 4),
        ("qwen2", dict(use_sliding_window=True, max_window_layers=3), [FAR] * 3 + [4096]),
        ("qwen2", dict(use_sliding_window=True, sliding_window=None, max_window_layers=3), [FAR] * 4),
        ("qwen3", dict(use_sliding_window=True, sliding_window=7), [FAR] * 4),
        ("gemma2", dict(sliding_window=7), [NEAR, FAR] * 2),
        ("gemma3_text", dict(sliding_window=7, sliding_window_pattern=3), [NEAR, NEAR, FAR, NEAR]),
        ("gemma3_text", dict(sliding_window=7, _sliding_window_pattern=2), [NEAR, FAR] * 2),
        ("gemma3_text", dict(sliding_window=7), [NEAR] * 4),
        ("olmo3", dict(sliding_window=7), [NEAR] * 3 + [FAR]),
        ("exaone4", dict(sliding_window=7), [NEAR] * 3 + [FAR]),
        ("exaone4", dict(sliding_window=7, sliding_window_pattern="LLG"), [NEAR, NEAR, FAR, FAR]),
        ("exaone4", dict(sliding_window=7, sliding_window_pattern="L"), [NEAR] * 3 + [FAR]),
        ("exaone4", dict(sliding_window=None, sliding_window_pattern="?"), [FAR] * 4),
        ("smollm3", dict(sliding_window=7, use_sliding_window=True), [FAR] * 3 + [NEAR]),
        (
            "smollm3",
            dict(sliding_window=7, use_sliding_window=True, no_rope_layers=[0, 1, 1, 1]),
            [NEAR] + [FAR] * 3,
        ),
        (
            "smollm3",
            dict(
                sliding_window=7,
                use_sliding_window=True,
                layer_types=["full_attention", "sliding_attention"] * 2,
            ),
            [FAR, NEAR] * 2,
        ),
    ],
    ids=str,
)
def test_which_layers_slide(model_type, changes, windows):
    config = ModelConfig.from_hf(SMALL | dict(model_type=model_type) | changes)
    assert [config.kind_of(layer).window for layer in range(4)] == windows


@pytest.mark.parametrize("rotates", [[1] * 5, [1] * 3, 1])
def test_each_layer_is_said_to_rotate_or_not(rotates):
    with pytest.raises(JllamaError, match="must be a list of 4 numbers"):
        ModelConfig.from_hf(SMALL | dict(model_type="smollm3", no_rope_layers=rotates))


@pytest.mark.parametrize("value", [True, 1, "yes"])
def test_what_attends_both_ways_is_refused_however_it_says_so(value):
    with pytest.raises(JllamaError, match="use_bidirectional_attention is not supported"):
        ModelConfig.from_hf(SMALL | dict(model_type="gemma3_text", use_bidirectional_attention=value))


def test_a_key_is_null_or_missing_or_false():
    keys = HfKeys({"null": None, "no": False, "zero": 0}, {"null": 1, "no": 2, "zero": 3, "missing": 4})
    assert [keys.get(name, 9) for name in ("null", "no", "zero", "missing", "other")] == [1, False, 0, 4, 9]
    assert [keys.nullable(name) for name in ("null", "zero", "missing", "other")] == [None, 0, 4, None]
    keys.ignore("ignored")
    assert keys.read == {"null", "no", "zero", "missing", "other", "ignored"}


A, B = Rope(rope_theta=5.0), Rope(rope_theta=7.0)
NEAR_A, FAR_B = LayerKind(7, A), LayerKind(None, B)
NEAR_STILL, FAR_STILL = LayerKind(7, None), LayerKind(None, None)


@pytest.mark.parametrize(
    ("kinds", "window", "rope", "listed"),
    [
        ([], None, Rope(), []),
        ([NEAR_A] * 3, 7, A, []),
        ([FAR_B] * 3, None, B, []),
        ([NEAR_A, FAR_B] * 2, None, B, [NEAR_A, FAR_B]),
        ([FAR_B, NEAR_A] * 2, None, B, [FAR_B, NEAR_A]),
        ([NEAR_A, FAR_STILL], None, A, [NEAR_A, FAR_STILL]),
        ([FAR_STILL, NEAR_A], None, A, [FAR_STILL, NEAR_A]),
        ([NEAR_STILL] * 3, None, Rope(), [NEAR_STILL]),
        ([NEAR_A, FAR_B, NEAR_A], None, B, [NEAR_A, FAR_B]),
        ([NEAR_A, NEAR_A, FAR_B], None, B, [NEAR_A, NEAR_A, FAR_B]),
        ([NEAR_A, FAR_B, FAR_B, NEAR_A], None, B, [NEAR_A, FAR_B, FAR_B]),
    ],
)
def test_what_the_kinds_of_all_layers_come_to(kinds, window, rope, listed):
    """The embedding of the layers that see everything stands for the model's."""
    assert kind_fields(kinds) == dict(sliding_window=window, rope=rope, layer_kinds=tuple(listed))


@pytest.mark.parametrize(
    ("period", "layers", "slides"),
    [(1, 3, "..."), (2, 5, "~.~.~"), (4, 5, "~~~.~"), (6, 4, "~~~~"), (5, 0, "")],
)
def test_each_so_manyth_layer_sees_everything(period, layers, slides):
    assert every(period, layers) == [mark == "~" for mark in slides]
    for wrong in (0, -1, 2.0, True, "2", None):
        with pytest.raises(JllamaError, match=r"a pattern of .* layers must be a whole number from 1"):
            every(wrong, layers)


# GGUF.


def read(architecture, tensors=(), **changes) -> ModelConfig:
    fields = {
        "vocab_size": 64,
        "embedding_length": 48,
        "feed_forward_length": 48,
        "block_count": 4,
        "attention.head_count": 4,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "context_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    named = {f"{architecture}.{key}": value for key, value in fields.items() if value is not None}
    return ModelConfig.from_gguf({"general.architecture": architecture} | named, tensors)


@pytest.mark.parametrize(
    ("tensors", "biases"),
    [
        ((), (False, False, False)),
        *((("attn_" + name,), (True, False, False)) for name in ("q", "k", "v", "qkv")),
        (("attn_output",), (False, True, False)),
        (("attn_q", "attn_output", "ffn_gate"), (True, True, True)),
    ],
)
def test_biases_of_a_file_show_by_their_tensors(tensors, biases):
    made = read("qwen3", [f"blk.0.{name}.bias" for name in tensors])
    assert (made.attention_bias, made.has_out_bias, made.mlp_bias) == biases


@pytest.mark.parametrize(
    ("architecture", "changes", "field", "value"),
    [
        ("gemma", {}, "embedding_multiplier", 48**0.5),
        ("gemma2", {}, "attention_multiplier", 8**-0.5),
        ("gemma2", dict(block_count=46), "attention_multiplier", 12**-0.5),
        ("gemma2", dict(block_count=62), "attention_multiplier", 8**-0.5),
        ("gemma3", dict(block_count=62), "attention_multiplier", 12**-0.5),
        ("gemma3", dict(block_count=46), "attention_multiplier", 8**-0.5),
        ("gemma2", {}, "attn_logit_softcapping", 50.0),
        ("gemma2", {}, "final_logit_softcapping", 30.0),
        ("gemma2", dict(attn_logit_softcapping=20.0), "attn_logit_softcapping", 20.0),
        ("gemma2", dict(final_logit_softcapping=20.0), "final_logit_softcapping", 20.0),
        ("gemma3", {}, "attn_logit_softcapping", None),
        ("gemma3", dict(final_logit_softcapping=0.0), "final_logit_softcapping", None),
        ("gemma3", dict(final_logit_softcapping=20.0), "final_logit_softcapping", 20.0),
        ("granite", dict(logit_scale=8.0), "attention_multiplier", None),
        ("granite", dict(logit_scale=8.0, attention__scale=0.0), "attention_multiplier", None),
        ("granite", dict(logit_scale=8.0, attention__scale=0.5), "attention_multiplier", 0.5),
        ("granite", dict(logit_scale=8.0, embedding_scale=12.0), "embedding_multiplier", 12.0),
        ("granite", dict(logit_scale=8.0, residual_scale=0.25), "residual_multiplier", 0.25),
        ("granite", dict(logit_scale=8.0), "residual_multiplier", 1.0),
        ("granite", dict(logit_scale=8.0), "logits_scaling", 8.0),
    ],
    ids=str,
)
def test_metadata_come_to(architecture, changes, field, value):
    assert getattr(read(architecture, **changes), field) == value


@pytest.mark.parametrize(
    ("architecture", "changes", "kinds"),
    [
        ("gemma2", {}, [LayerKind(4096, Rope()), LayerKind(None, Rope())]),
        (
            "gemma3",
            dict(attention__sliding_window=7, attention__sliding_window_pattern=2, rope__freq_base=1e6),
            [LayerKind(7, Rope(rope_theta=1e4)), LayerKind(None, Rope(rope_theta=1e6))],
        ),
        (
            "gemma3",
            dict(
                attention__sliding_window=7,
                attention__sliding_window_pattern=[False, True] * 2,
                rope__freq_base_swa=5.0,
            ),
            [LayerKind(None, Rope()), LayerKind(7, Rope(rope_theta=5.0))],
        ),
        ("gemma3", {}, [LayerKind(None, Rope())]),
        ("gemma3", dict(attention__sliding_window=0), [LayerKind(None, Rope())]),
        ("exaone4", {}, [LayerKind(None, Rope())]),
        ("exaone4", dict(block_count=64), [LayerKind(4096, Rope())] * 3 + [LayerKind(None, None)]),
        ("exaone4", dict(block_count=64, attention__sliding_window=0), [LayerKind(None, Rope())]),
        ("olmo2", dict(rope__freq_base=5e5), [LayerKind(None, Rope(rope_theta=5e5))]),
        (
            "olmo2",
            dict(
                attention__sliding_window=7,
                rope__freq_base=5e5,
                rope__scaling__type="linear",
                rope__scaling__factor=2.0,
            ),
            [LayerKind(7, Rope(rope_theta=5e5))] * 3
            + [LayerKind(None, Rope(rope_type="linear", rope_theta=5e5, factor=2.0))],
        ),
        (
            "olmo2",
            dict(attention__sliding_window=7, rope__freq_base_swa=9.0),
            [LayerKind(7, Rope(rope_theta=9.0))] * 3 + [LayerKind(None, Rope())],
        ),
        ("smollm3", {}, [LayerKind(None, Rope())] * 3 + [LayerKind(None, None)]),
    ],
    ids=str,
)
def test_layers_of_metadata(architecture, changes, kinds):
    config = read(architecture, **changes)
    assert [config.kind_of(layer) for layer in range(4)] == (kinds * 4)[:4]


def test_no_layer_slides_without_a_window():
    class Keys:
        def each(self, key):
            return [True] * 4

        def layers(self):
            return 4

    assert gguf_slides(Keys(), 2, None) == [False] * 4
    assert gguf_slides(Keys(), 2, 7) == [True] * 4


@pytest.mark.parametrize(
    ("outer", "inner", "tied", "left_open"),
    [
        (None, None, None, True),
        (None, False, False, True),
        (None, True, True, False),
        (True, False, True, True),
        (True, True, True, False),
        (False, True, False, False),
        (False, None, False, False),
    ],
)
def test_whether_the_embeddings_of_a_model_that_sees_are_tied(outer, inner, tied, left_open):
    """The whole model's key rules; where it says nothing else than its text part, the tensors do."""
    text, keys = dict(hidden_size=48), dict(model_type="gemma3")
    text |= {} if inner is None else dict(tie_word_embeddings=inner)
    keys |= dict(text_config=text) | ({} if outer is None else dict(tie_word_embeddings=outer))
    assert text_keys(keys).get("tie_word_embeddings") is tied
    assert text_keys(keys)["model_type"] == "gemma3_text"
    assert tie_left_open(keys) is left_open
    assert tie_left_open(keys | dict(model_type="llama")) is False
    assert tie_left_open(keys | dict(text_config=None)) is False


@pytest.mark.parametrize("theta", [None, 300000.0])
def test_the_sliding_layers_of_olmo_3_turn_by_the_same_base(theta):
    """But are not stretched."""
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    keys = dict(model_type="olmo3", sliding_window=7, rope_scaling=scaling, rope_theta=theta)
    sliding, full = (ModelConfig.from_hf(SMALL | keys).kind_of(layer).rope for layer in (0, 3))
    assert sliding == Rope(rope_theta=theta or 500000.0)
    assert (full.rope_type, full.rope_theta) == ("yarn", theta or 500000.0)


@pytest.mark.parametrize("theta", [5e-324, 1e-38])
def test_a_base_that_gives_angles_beyond_all_numbers(theta):
    """Refused in words; no warning of NumPy's comes before them."""
    with pytest.raises(JllamaError, match=f"'rope_theta': {theta}.* angles that are no numbers"):
        check_rope(Rope(rope_theta=theta), 256, 2048)


YARN = dict(rope__scaling__type="yarn", rope__scaling__factor=4.0)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        (dict(rope__scaling__yarn_attn_factor=0.5), dict(attention_factor=0.5)),
        (dict(rope__scaling__yarn_attn_factor=1.0), dict(attention_factor=1.0)),
        (dict(rope__scaling__attn_factor=1.0), {}),  # what some converters write for nothing
        (dict(rope__scaling__yarn_beta_fast=1.0), dict(beta_fast=1.0)),
        (dict(rope__scaling__yarn_log_multiplier=0.1), dict(mscale=1.0, mscale_all_dim=0.1)),
        (dict(attention__temperature_scale=0.1), dict(llama_4_scaling_beta=0.1)),
        (dict(rope__scaling__original_context_length=16), dict(original_max_position_embeddings=16)),
        (dict(rope__dimension_count=4), dict(partial_rotary_factor=0.5)),
    ],
)
def test_yarn_of_metadata(changes, settings):
    wanted = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128) | settings
    assert read("qwen2", **YARN | changes).rope == Rope(**wanted)


@pytest.mark.parametrize("key", ["beta_fast", "beta_slow", "attn_factor"])
def test_a_knob_of_zero_is_not_one_left_out(key):
    with pytest.raises(JllamaError, match=r"=0.0 must be a positive number"):
        read("qwen2", **YARN | {f"rope__scaling__yarn_{key}": 0.0})


def test_no_heads_are_refused_by_name():
    widths = dict(attention__key_length=None, attention__value_length=None)
    with pytest.raises(JllamaError, match="num_attention_heads=0 must be"):
        read("qwen2", attention__head_count=0, **widths)
