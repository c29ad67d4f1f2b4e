"""Refuses GGUF keys that would change what a model computes and that its architecture does not read.

The names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from jllama.errors import JllamaError, escaped
from jllama.families.keys import GgufKeys

# Keys that change nothing: those of experts where there are none, and of rotations of another type.
_HARMLESS = frozenset(
    """vocab_size tensor_data_layout attention.layer_norm_epsilon decoder_start_token_id
    experts_per_group interleave_moe_layer_step leading_dense_block_count moe_every_n_layers moe_latent_size
    rope.scaling.finetuned rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    rope.scaling.yarn_log_multiplier""".split()
)
# What has tensors of its own shows by them: a dense Granite's file describes state-space layers all the same.
_HARMLESS_GROUPS = tuple(
    "altup. attention.indexer. convnext. expert_ kda. posnet. shortconv. ssm. wkv.".split()
)
# Keys that would change it; 0, false and none in a list leave it alone, and so do the values of `_NEUTRAL`.
_CHANGES = frozenset(
    """activation_sparsity_scale attention.causal attention.clamp_kqv attention.decay_lora_rank
    attention.gate_lora_rank attention.group_norm_epsilon attention.group_norm_groups
    attention.iclr_lora_rank attention.key_length_mla attention.key_length_swa attention.kv_lora_rank
    attention.max_alibi_bias attention.output_scale attention.q_lora_rank
    attention.relative_buckets_count attention.scale attention.shared_kv_layers
    attention.sliding_window_pattern attention.temperature_length attention.temperature_scale
    attention.value_length_mla attention.value_length_swa attention.value_residual_mix_lora_rank
    attn_logit_softcapping classifier.output_labels decoder_block_count embedding_length_out
    embedding_length_per_layer_input embedding_scale features_length final_logit_softcapping
    full_attention_interval logit_scale n_deepstack_layers nextn_predict_layers pooling_type
    rescale_every_n_layers residual_scale rope.dimension_count_swa rope.dimension_sections
    rope.freq_base_swa router_logit_softcapping swiglu_clamp_exp swiglu_clamp_shexp swin_norm
    time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual""".split()
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.output_scale": (0, 1),
    "embedding_scale": (0, 1),
    "full_attention_interval": (0, 1),
    "logit_scale": (0, 1),
    "pooling_type": (0, -1),
    "residual_scale": (0, 1),
}


def refuse_unread(keys: GgufKeys, fields: Mapping[str, Any]) -> None:
    """Refuses keys that jllama would compute wrongly without; warns of those that it does not know.

    Args:
      keys: of the file; what the family has read by now it understands.
      fields: of `ModelConfig`, as made of them.

    Raises:
      JllamaError: names the key.
    """
    same, unknown = _same_as(keys, fields), []
    for key, value in keys.unread().items():
        if key in _HARMLESS or key.startswith(_HARMLESS_GROUPS):
            continue
        if key not in _CHANGES:
            unknown.append(f"{keys.prefix}.{key}")
        elif not _is_neutral(value, (*_NEUTRAL.get(key, (0,)), *same.get(key, ()))):
            raise JllamaError(
                f"GGUF: {keys.prefix}.{key}={value!r:.80} is not supported: {keys.prefix} has nothing of the "
                "kind here; download a file of the model's own architecture, or convert the model again"
            )
    if unknown:
        warnings.warn(
            escaped(f"GGUF: keys that jllama does not know: {', '.join(sorted(unknown))}"), stacklevel=4
        )


def _is_neutral(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Numbers that a file holds in float32 are near enough."""
    if isinstance(value, list):
        return all(_is_neutral(one, allowed) for one in value)
    if not isinstance(value, int | float):
        return False
    return any(math.isclose(value, one, rel_tol=1e-6) for one in allowed)


def _same_as(keys: GgufKeys, fields: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a key may say again: sliding layers are like the others, scores are scaled as they are anyway."""
    width, base = keys.head_dim(), keys.get("rope.freq_base", 10000.0)
    rotated, trained = keys.get("rope.dimension_count", width), keys.get("context_length")
    said = {
        "attention.key_length_swa": width,
        "attention.scale": fields.get("attention_multiplier") or (width**-0.5 if width else None),
        "attention.temperature_length": keys.get("rope.scaling.original_context_length", trained),
        "attention.value_length_swa": width,
        "embedding_length_out": keys.get("embedding_length"),
        "rope.dimension_count_swa": rotated,
        "rope.freq_base_swa": base,
    }
    return {key: (value,) for key, value in said.items() if isinstance(value, int | float)}
