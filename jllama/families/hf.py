"""Hugging Face's `config.json` -> the fields of `ModelConfig`."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from jllama.errors import JllamaError, escaped
from jllama.families.keys import HfKeys
from jllama.families.kinds import FULL, SLIDING, layer_types
from jllama.families.known import of_model_type, text_keys
from jllama.families.rope import longest_text, rope_from_hf

# Keys of config.json that do not change what inference computes.
_NEUTRAL = frozenset(
    """_name_or_path architectures attention_dropout auto_map bad_words_ids bos_token_id
    cache_implementation chunk_size_feed_forward dtype eos_token_id hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder is_llama_config keys_to_ignore_at_inference
    label2id max_length max_window_layers min_length model_type num_labels output_attentions
    output_hidden_states pad_token_id pretraining_tp problem_type return_dict rope_interleaved
    sliding_window_size task_specific_params tokenizer_class torch_dtype torchscript
    transformers_version transformers.js_config unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_return_dict""".split()
)


class _Unsupported(NamedTuple):
    """A key that would change what inference computes."""

    harmless: tuple[Any, ...] = ()  # values that leave it alone, beside null
    families: str = ""  # whose field it is, of those that are supported


_UNSUPPORTED = {
    "quantization_config": _Unsupported(),
    "num_local_experts": _Unsupported((0, 1)),
    "num_experts": _Unsupported((0, 1)),
    "vision_config": _Unsupported(families="gemma3, mistral3"),
    "attn_logit_softcapping": _Unsupported(families="gemma2"),
    "final_logit_softcapping": _Unsupported(families="gemma2, gemma3_text"),
    "query_pre_attn_scalar": _Unsupported(families="gemma2, gemma3_text"),
    "clip_qkv": _Unsupported(),
    "embedding_multiplier": _Unsupported((1,), "granite"),
    "residual_multiplier": _Unsupported((1,), "granite"),
    "attention_multiplier": _Unsupported(families="granite"),
    "logits_scaling": _Unsupported((1,), "granite"),
    "logit_scale": _Unsupported((1,)),
    "use_qk_norm": _Unsupported((False,)),
    "qk_norm": _Unsupported((False,)),
    "qk_layernorm": _Unsupported((False,)),
    "no_rope_layers": _Unsupported(([], ()), "smollm3"),
    "no_rope_layer_interval": _Unsupported((0,), "smollm3"),
    "position_embedding_type": _Unsupported(("rope", "rotary")),
    "rope_local_base_freq": _Unsupported(families="gemma3_text"),
    "sliding_window_pattern": _Unsupported((0, 1), "gemma3_text, exaone4"),
    "_sliding_window_pattern": _Unsupported((0, 1), "gemma3_text"),
    "use_mrope": _Unsupported((False,)),
    "lm_head_bias": _Unsupported((False,)),
    "full_attn_mod": _Unsupported((1,)),
    "interpolate_factor": _Unsupported((1,)),
    "use_sliding_window": _Unsupported((False,), "qwen2, qwen3"),
    "sliding_window": _Unsupported(families="mistral, qwen2, phi3"),
    "use_bidirectional_attention": _Unsupported((False,)),
    "is_causal": _Unsupported((True,)),
    "tie_encoder_decoder": _Unsupported((False,)),
    "add_cross_attention": _Unsupported((False,)),
    "pruned_heads": _Unsupported(({},)),
}


def refuse_unsupported(keys: HfKeys) -> None:
    """Refuses keys of `config.json` that jllama would compute wrongly; warns of those it does not know.

    What the family has read by now it understands.
    """
    for key, known in _UNSUPPORTED.items():
        if key in keys.read or keys.all.get(key) in (None, *known.harmless):
            continue
        if key == "quantization_config":
            raise JllamaError(_quantized_by_others(keys.all[key]))
        owners = f", or set the model_type that it is of ({known.families})" if known.families else ""
        raise JllamaError(
            f"config.json: {key}={keys.all[key]!r} is not supported: it would change the model, and "
            f"model_type {keys.all.get('model_type')} has none; remove it if the weights do without{owners}"
        )
    if "layer_types" not in keys.read and len(set(layer_types(keys, ()))) > 1:
        raise JllamaError(
            f"config.json: layer_types of kinds {FULL}, {SLIDING} are not supported by its family"
        )
    unknown = sorted(set(keys.all) - keys.read - _NEUTRAL - set(_UNSUPPORTED))
    if unknown:
        warnings.warn(
            escaped(f"config.json: keys that jllama does not know: {', '.join(unknown)}"), stacklevel=4
        )


def _quantized_by_others(settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    return (
        f"config.json: the weights are quantised by {method!r} (quantization_config), which jllama does not "
        "read; fetch the model's original weights, which --quantize=int8 or int4 makes small, or a GGUF of it"
    )


def hf_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig`, with the defaults that Hugging Face's own classes give.

    Raises:
      JllamaError: a model type, key or value that is not supported.
    """
    stated = text_keys(given)
    family = of_model_type(stated.get("model_type"))
    keys = HfKeys(stated, family.defaults)
    fields = _common(keys) | dict(family.fields) | family.hf(keys)
    if "rope" not in fields:
        fields["rope"] = rope_from_hf(keys)
    refuse_unsupported(keys)
    return fields


def _common(keys: HfKeys) -> dict[str, Any]:
    hidden, heads = keys.get("hidden_size", 4096), keys.get("num_attention_heads", 32)
    implied_head_dim = hidden // heads if isinstance(heads, int) and heads > 0 else 0
    return dict(
        vocab_size=keys.get("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=keys.get("intermediate_size", 11008),
        num_hidden_layers=keys.layers(),
        num_attention_heads=heads,
        num_key_value_heads=keys.get("num_key_value_heads", heads),
        head_dim=keys.get("head_dim", implied_head_dim),
        max_position_embeddings=longest_text(keys),
        rms_norm_eps=keys.get("rms_norm_eps", 1e-6),
        hidden_act=keys.get("hidden_act", "silu"),
        tie_word_embeddings=keys.get("tie_word_embeddings", False),
        attention_bias=keys.get("attention_bias", False),
        mlp_bias=keys.get("mlp_bias", False),
    )
