"""Llama itself, and what differs from it by biases alone."""

from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import GGUF_LAYER, Family
from jllama.families.keys import HfKeys


def _llama(keys: HfKeys) -> dict[str, Any]:
    if keys.nullable("sliding_window") is not None:
        raise JllamaError("config.json: model_type llama has no sliding_window; use model_type mistral")
    return {}


def _seed_oss(keys: HfKeys) -> dict[str, Any]:
    keys.ignore("residual_dropout")
    return dict(attention_out_bias=keys.get("attention_out_bias", False))


LLAMA = Family(model_types=("llama",), architectures=("llama",), hf=_llama, rotary_interleaved=True)

# The norm before the feed-forward layer has the name that Hugging Face gives it.
_SEED_OSS_GGUF = {
    name: ours for name, ours in GGUF_LAYER.items() if ours not in ("ffn_norm", "attn_post_norm")
}
_SEED_OSS_GGUF |= {"post_attention_norm": "ffn_norm"}

SEED_OSS = Family(
    model_types=("seed_oss",),
    architectures=("seed_oss",),
    defaults=dict(
        vocab_size=155136,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=80,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=524288,
        attention_bias=True,
    ),
    hf=_seed_oss,
    gguf_layer=_SEED_OSS_GGUF,
)
