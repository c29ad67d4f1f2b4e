"""GGUF metadata -> the fields of `ModelConfig`.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jllama.families.gguf_unread import refuse_unread
from jllama.families.keys import GgufKeys
from jllama.families.known import of_architecture
from jllama.families.rope import rope_from_gguf


def gguf_fields(
    metadata: Mapping[str, Any],
    architecture: str,
    tensors: Collection[str],
    factors: Mapping[str, tuple[float, ...]],
) -> dict[str, Any]:
    """The fields of `ModelConfig`; see `ModelConfig.from_gguf`.

    Raises:
      JllamaError: a key that is missing, or a value that is not supported.
    """
    family = of_architecture(architecture)
    keys = GgufKeys(metadata, architecture, tensors, factors)
    heads = keys.need("attention.head_count")
    keys.allow_only({"attention.value_length": keys.head_dim(), "expert_count": 0})
    if family.rotary_interleaved:  # what the files permute is the whole head
        keys.allow_only({"rope.dimension_count": keys.head_dim()})
    fields = _common(keys) | dict(family.fields) | family.gguf(keys)
    fields.setdefault("num_key_value_heads", keys.get("attention.head_count_kv", heads))
    if "rope" not in fields:
        fields["rope"] = rope_from_gguf(keys)
    refuse_unread(keys, fields)
    return fields


def _common(keys: GgufKeys) -> dict[str, Any]:
    words = keys.metadata.get("tokenizer.ggml.tokens")
    has_bias = any(f"blk.0.attn_{name}.bias" in keys.tensors for name in ("q", "k", "v", "qkv"))
    return dict(
        vocab_size=len(words) if words and isinstance(words, list) else keys.need("vocab_size"),
        hidden_size=keys.need("embedding_length"),
        intermediate_size=keys.need("feed_forward_length"),
        num_hidden_layers=keys.layers(),
        num_attention_heads=keys.need("attention.head_count"),
        head_dim=keys.head_dim(),
        max_position_embeddings=keys.need("context_length"),
        rms_norm_eps=keys.need("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings="output.weight" not in keys.tensors,
        attention_bias=has_bias,
        attention_out_bias=_out_bias(keys, has_bias),
        mlp_bias="blk.0.ffn_gate.bias" in keys.tensors,
        sliding_window=keys.get("attention.sliding_window") or None,  # 0: none
    )


def _out_bias(keys: GgufKeys, others: bool) -> bool | None:
    """None where it stands with the others or with none."""
    own = "blk.0.attn_output.bias" in keys.tensors
    return None if own == others else own
