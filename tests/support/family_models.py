"""Small random checkpoints of every family: name -> class of transformers and what differs from `BASE`.

Texts of 96 tokens pass every window, every original length and every position that counts.
"""

import math
from typing import Any

BASE: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LENGTH = 96
FULL, SLIDING = "full_attention", "sliding_attention"
_SHORT, _LONG = [1.0, 1.1, 1.3, 1.5, 1.8, 2.0], [1.0, 2.0, 3.0, 5.0, 8.0, 12.0]
_YARN = dict(
    rope_type="yarn",
    rope_theta=1000000.0,
    factor=8.0,
    original_max_position_embeddings=16,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)
_LONGROPE = dict(rope_type="longrope", short_factor=_SHORT, long_factor=_LONG, rope_theta=10000.0)

# name: (prefix of the classes, changes)
FAMILY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2_window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=2, tie_word_embeddings=False),
    ),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1)),
    "gemma2": ("Gemma2", dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=7)),
    "gemma2_caps": (
        "Gemma2",
        dict(head_dim=16, attn_logit_softcapping=3.0, final_logit_softcapping=9.0, sliding_window=64),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=7, num_hidden_layers=7),
    ),
    "gemma3_linear": (
        "Gemma3Text",
        dict(
            head_dim=16,
            sliding_window=9,
            layer_types=[SLIDING, FULL, SLIDING, FULL],
            rope_parameters={
                FULL: dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                SLIDING: dict(rope_type="default", rope_theta=10000.0),
            },
        ),
    ),
    "phi3": ("Phi3", dict(num_key_value_heads=4, sliding_window=11)),
    "phi3_longrope": (
        "Phi3",
        dict(original_max_position_embeddings=32, rope_parameters=_LONGROPE, sliding_window=None),
    ),
    "phi3_partial": (
        "Phi3",
        dict(
            hidden_size=64,
            original_max_position_embeddings=32,
            rope_parameters=_LONGROPE | dict(partial_rotary_factor=0.75),
            tie_word_embeddings=True,
        ),
    ),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2)),
    "smollm3_list": (
        "SmolLM3",
        dict(no_rope_layers=[0, 1, 1, 0], use_sliding_window=True, sliding_window=6, attention_bias=True),
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        dict(
            sliding_window=9,
            rope_parameters={
                FULL: dict(
                    rope_type="yarn",
                    rope_theta=500000.0,
                    factor=4.0,
                    original_max_position_embeddings=16,
                    attention_factor=0.1 * math.log(4.0) + 1,
                ),
                SLIDING: dict(rope_type="default", rope_theta=500000.0),
            },
        ),
    ),
    "granite": (
        "Granite",
        dict(
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.015625,
            logits_scaling=8.0,
            attention_bias=True,
        ),
    ),
    "mistral": ("Mistral", dict(head_dim=16, sliding_window=7)),
    "ministral": (
        "Ministral",
        dict(head_dim=16, sliding_window=7, layer_types=[FULL, SLIDING, SLIDING, FULL]),
    ),
    "ministral3": ("Ministral3", dict(head_dim=16, rope_parameters=_YARN)),
    "llama_longrope": (
        "Llama",
        dict(rope_parameters=_LONGROPE | dict(original_max_position_embeddings=32, factor=4.0)),
    ),
    "llama_biases": ("Llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "seed_oss": ("SeedOss", dict(head_dim=16)),
    "exaone4": ("Exaone4", dict(sliding_window=7, sliding_window_pattern=4)),
    "exaone4_full": (
        "Exaone4",
        dict(sliding_window=None, sliding_window_pattern=None, layer_types=[FULL] * 4),
    ),
}
