"""GGUF keys that an architecture does not read: refused where they change something, else as they deserve."""

import re
import warnings

import pytest

from jllama.config import ModelConfig
from jllama.errors import JllamaError
from tests.support.family_files import CONVERTED


def read(name: str, **changes) -> ModelConfig:
    """A converted model's configuration, with other values under its architecture's prefix."""
    given = CONVERTED[name]
    architecture = given["fields"]["general.architecture"]
    changed = {f"{architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    factors = {key: (1.0,) * width for key, width in _lists(given)}
    words = {"tokenizer.ggml.tokens": ["w"] * 97}
    return ModelConfig.from_gguf(words | given["fields"] | changed, given["tensors"], factors)


def _lists(given: dict) -> list[tuple[str, int]]:
    width = given["fields"].get(f"{given['fields']['general.architecture']}.rope.dimension_count", 12)
    return [(name, width // 2) for name in given["tensors"] if name.startswith("rope_factors_")]


CHANGES = [
    ("qwen3", dict(attn_logit_softcapping=50.0)),
    ("gemma3", dict(attn_logit_softcapping=50.0)),
    ("llama_biases", dict(final_logit_softcapping=30.0)),
    ("llama_biases", dict(logit_scale=8.0)),
    ("qwen2", dict(embedding_scale=8.0)),
    ("olmo2", dict(residual_scale=0.2)),
    ("llama_biases", dict(attention__causal=False)),
    ("llama_biases", dict(attention__clamp_kqv=8.0)),
    ("qwen3", dict(rope__dimension_sections=[2, 3, 3, 0])),
    ("smollm3", dict(attention__sliding_window_pattern=4)),
    ("llama_biases", dict(attention__sliding_window_pattern=[True, False])),
    ("llama_biases", dict(pooling_type=1)),
    ("granite", dict(attention__max_alibi_bias=8.0)),
    ("mistral", dict(attention__scale=0.5)),
    ("qwen2", dict(attention__temperature_scale=0.1)),
    ("qwen3", dict(rope__freq_base_swa=5000.0)),
    ("qwen3", dict(attention__key_length_swa=8)),
    ("phi3", dict(use_parallel_residual=True)),
    ("qwen3", dict(logit_scale="x")),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=str)
def test_what_would_change_the_logits_is_refused_by_name(name, changes):
    [(key, value)] = changes.items()
    stated = f"{CONVERTED[name]['fields']['general.architecture']}.{key.replace('__', '.')}={value!r}"
    with pytest.raises(JllamaError, match=re.escape(stated) + " is not supported.*convert the model again"):
        read(name, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        dict(attn_logit_softcapping=0.0, final_logit_softcapping=0.0, logit_scale=0.0),
        dict(logit_scale=1.0, embedding_scale=1.0, residual_scale=1.0, attention__output_scale=1.0),
        dict(attention__causal=True, attention__clamp_kqv=0.0, attention__max_alibi_bias=0.0, pooling_type=0),
        dict(pooling_type=-1, use_parallel_residual=False, rope__dimension_sections=[0, 0, 0, 0]),
        dict(attention__sliding_window_pattern=[False] * 4, attention__shared_kv_layers=0),
        dict(attention__scale=0.28867512941360474, rope__freq_base_swa=10000.0),  # 12 ** -0.5 in float32
        dict(attention__key_length_swa=12, attention__value_length_swa=12, rope__dimension_count_swa=12),
        dict(embedding_length_out=48, nextn_predict_layers=0, ssm__state_size=16),
        dict(vocab_size=97, tensor_data_layout="Meta AI original pth", expert_count=0, expert_used_count=2),
        dict(rope__scaling__finetuned=True, rope__scaling__yarn_beta_fast=32.0),
    ],
    ids=str,
)
def test_values_that_change_nothing_are_taken_without_a_word(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read("qwen2", **changes) == read("qwen2")


@pytest.mark.parametrize("name", [name for name in CONVERTED if name != "llama_longrope"])  # without lists
def test_what_the_converter_writes_is_taken_without_a_word(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(name)


def test_keys_that_nobody_knows_are_named_once():
    with pytest.warns(UserWarning, match=r"GGUF: keys .* not know: qwen2\.a\.x, qwen2\.flux$") as caught:
        assert read("qwen2", flux=3, a__x=0) == read("qwen2")
    assert len(caught) == 1


def test_a_dense_granite_4_as_the_converter_of_its_hybrids_writes_it():
    state_space = dict(conv_kernel=4, state_size=128, group_count=1, inner_size=96, time_step_rank=48)
    more = {f"ssm__{key}": value for key, value in state_space.items()}
    more |= dict(attention__head_count_kv=[2] * 4, rope__scaling__finetuned=True, expert_count=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read("granite", expert_shared_feed_forward_length=80, **more) == read("granite")
    with pytest.raises(JllamaError, match=r"granite\.rope\.scaling\.finetuned=False is not supported"):
        read("granite", rope__scaling__finetuned=False)


def test_smollm3_has_no_windows_in_these_files():
    with pytest.raises(JllamaError, match=r"smollm3\.attention\.sliding_window=8 is not supported"):
        read("smollm3", attention__sliding_window=8)


def test_a_pattern_says_nothing_where_no_layer_slides():
    assert read("exaone4_full", attention__sliding_window_pattern=[True] * 4) == read("exaone4_full")


def test_a_pattern_of_no_layers_is_the_files_own():
    with pytest.raises(JllamaError, match=r"^GGUF: gemma3\.attention\.sliding_window_pattern: .*of 0 layers"):
        read("gemma3", attention__sliding_window_pattern=0)
