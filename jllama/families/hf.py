"""Hugging Face's `config.json` -> the fields of `ModelConfig`."""

import warnings
from collections.abc import Mapping
from typing import Any

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
# Keys that would change it, with the values that leave it alone.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "vision_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "use_qk_norm": (None, False),
    "qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "no_rope_layers": (None, [], ()),
    "no_rope_layer_interval": (None, 0),
    "position_embedding_type": (None, "rope", "rotary"),
    "rope_local_base_freq": (None,),
    "sliding_window_pattern": (None, 0, 1),
    "_sliding_window_pattern": (None, 0, 1),
    "use_mrope": (None, False),
    "lm_head_bias": (None, False),
    "full_attn_mod": (None, 1),
    "interpolate_factor": (None, 1),
    "use_sliding_window": (None, False),
    "sliding_window": (None,),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "tie_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}
# Whose fields some of them are.
_OF_OTHERS = {
    "attn_logit_softcapping": "gemma2",
    "final_logit_softcapping": "gemma2, gemma3_text",
    "query_pre_attn_scalar": "gemma2, gemma3_text",
    "embedding_multiplier": "granite",
    "residual_multiplier": "granite",
    "attention_multiplier": "granite",
    "logits_scaling": "granite",
    "no_rope_layers": "smollm3",
    "no_rope_layer_interval": "smollm3",
    "rope_local_base_freq": "gemma3_text",
    "sliding_window_pattern": "gemma3_text, exaone4",
    "_sliding_window_pattern": "gemma3_text",
    "use_sliding_window": "qwen2, qwen3",
    "sliding_window": "mistral, qwen2, phi3",
    "vision_config": "gemma3, mistral3",
}


def refuse_unsupported(keys: HfKeys) -> None:
    """Refuses keys of `config.json` that jllama would compute wrongly; warns of those it does not know.

    What the family has read by now it understands.
    """
    for key, harmless in _UNSUPPORTED.items():
        if key in keys.read or keys.all.get(key) in (None, *harmless):
            continue
        if key == "quantization_config":
            raise JllamaError(_quantized_by_others(keys.all[key]))
        owners = f", or set the model_type that it is of ({_OF_OTHERS[key]})" if key in _OF_OTHERS else ""
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
