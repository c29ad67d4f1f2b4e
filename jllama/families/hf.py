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
    chunk_size_feed_forward dtype eos_token_id hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id max_length min_length
    model_type num_labels output_attentions output_hidden_states pad_token_id pretraining_tp
    problem_type return_dict rope_interleaved task_specific_params tokenizer_class torch_dtype
    torchscript transformers_version transformers.js_config unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache use_return_dict""".split()
)
# Keys that would change it, with the values that leave it alone.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_local_experts": (None, 0, 1),
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
    "no_rope_layers": (None, [], ()),
    "use_sliding_window": (None, False),
    "sliding_window": (None,),
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "tie_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
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
        raise JllamaError(f"config.json: {key}={keys.all[key]!r} is not supported")
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
