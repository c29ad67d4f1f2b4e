"""Spellings of rotations and of keys for each layer that few files have."""

import pytest

from jllama.errors import JllamaError
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.rope import rope_from_gguf, rope_from_hf

SIZES = {"a.context_length": 64, "a.embedding_length": 32, "a.attention.head_count": 4, "a.block_count": 3}


def gguf(**more):
    return GgufKeys(SIZES | {f"a.{key}": value for key, value in more.items()}, "a", (), {})


def test_a_kind_of_layers_may_have_no_settings():
    stated = {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": None}
    keys = HfKeys({"rope_parameters": stated}, {})
    assert rope_from_hf(keys, "sliding_attention").rope_type == "default"
    assert rope_from_hf(keys, "full_attention").factor == 2.0


def test_longrope_was_trained_on_the_longest_text_where_nothing_says_otherwise():
    stated = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    rope = rope_from_hf(HfKeys({"rope_scaling": stated, "max_position_embeddings": 64}, {}))
    assert (rope.original_max_position_embeddings, rope.factor) == (64, 1.0)


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_a_factor_of_attention_is_for_types_that_have_one(kind):
    more = {"rope.scaling.type": kind, "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5}
    with pytest.raises(JllamaError, match=r"attn_factor=1\.5 is not supported"):
        rope_from_gguf(gguf(**more))


def test_the_last_layer_may_be_the_one_that_differs():
    with pytest.raises(JllamaError, match="differs from layer to layer"):
        gguf(**{"attention.head_count_kv": [2, 2, 1]}).get("attention.head_count_kv")
