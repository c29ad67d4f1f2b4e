"""Hugging Face's `config.json` -> the fields of `ModelConfig`."""

import warnings
from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError, escaped
from jllama.families.checks import check_size
from jllama.families.rope import rope_from_hf

MODEL_TYPES = ("llama", "mistral")
_READ = frozenset(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps hidden_act tie_word_embeddings attention_bias mlp_bias
    sliding_window layer_types rope_theta rope_scaling rope_parameters
    original_max_position_embeddings""".split()
)
# Keys of config.json that do not change what inference computes. `use_sliding_window` is Qwen's: Hugging
# Face's Mistral slides whatever it says.
_NEUTRAL = frozenset(
    """_name_or_path architectures attention_dropout auto_map bad_words_ids bos_token_id
    chunk_size_feed_forward dtype eos_token_id hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id max_length min_length
    model_type num_labels output_attentions output_hidden_states pad_token_id pretraining_tp
    problem_type return_dict rope_interleaved task_specific_params tokenizer_class torch_dtype
    torchscript transformers_version transformers.js_config unk_token_id unsloth_fixed
    unsloth_version use_bfloat16 use_cache use_return_dict use_sliding_window""".split()
)
# Keys that would change it, with the values that leave it alone.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
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
    "is_causal": (None, True),
    "tie_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}


def refuse_unsupported(keys: Mapping[str, Any]) -> None:
    """Refuses keys of `config.json` that jllama would compute wrongly; warns of those it does not know."""
    for key, harmless in _UNSUPPORTED.items():
        if key in keys and keys[key] not in harmless:
            if key == "quantization_config":
                raise JllamaError(_quantized_by_others(keys[key]))
            raise JllamaError(f"config.json: {key}={keys[key]!r} is not supported")
    unknown = sorted(set(keys) - _READ - _NEUTRAL - set(_UNSUPPORTED))
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


def hf_fields(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig`, with the defaults that Hugging Face's own classes give.

    Raises:
      JllamaError: a model type, key or value that is not supported.
    """
    if keys.get("model_type") not in MODEL_TYPES:
        raise JllamaError(
            f"model_type {keys.get('model_type')!r} is not supported; jllama runs {' and '.join(MODEL_TYPES)}"
        )
    refuse_unsupported(keys)
    mistral = keys["model_type"] == "mistral"

    def get(key: str, default: Any) -> Any:
        value = keys.get(key)
        return default if value is None else value

    hidden, heads = get("hidden_size", 4096), get("num_attention_heads", 32)
    implied_head_dim = hidden // heads if isinstance(heads, int) and heads > 0 else 0
    max_positions = get("max_position_embeddings", 131072 if mistral else 2048)
    check_size("max_position_embeddings", max_positions)
    return dict(
        vocab_size=get("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=get("intermediate_size", 14336 if mistral else 11008),
        num_hidden_layers=get("num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=get("num_key_value_heads", 8 if mistral else heads),
        head_dim=get("head_dim", implied_head_dim),
        max_position_embeddings=max_positions,
        rms_norm_eps=get("rms_norm_eps", 1e-6),
        rope=rope_from_hf(keys, max_positions),
        hidden_act=get("hidden_act", "silu"),
        tie_word_embeddings=get("tie_word_embeddings", False),
        attention_bias=get("attention_bias", False),
        mlp_bias=get("mlp_bias", False),
        sliding_window=_hf_window(keys, mistral),
    )


def _hf_window(keys: Mapping[str, Any], mistral: bool) -> int | None:
    """Mistral slides (4096 where the key is missing, as in its own class) unless the key is null."""
    kinds = set(keys.get("layer_types") or ())
    if not kinds <= {"full_attention", "sliding_attention"} or len(kinds) > 1:
        raise JllamaError(f"config.json: layer_types of kinds {sorted(kinds)} are not supported")
    window = keys.get("sliding_window", 4096 if mistral else None)
    if not mistral and window is not None:
        raise JllamaError("config.json: model_type llama has no sliding_window; use model_type mistral")
    return window
