"""Phi-3, 3.5, 4 and 4-mini: fused projections, LongRoPE, rotations of a part of each head."""

from typing import Any

from jllama.errors import JllamaError
from jllama.families.family import GGUF_LAYER, Family
from jllama.families.keys import HfKeys
from jllama.families.rope import rope_from_hf


def _phi3(keys: HfKeys) -> dict[str, Any]:
    if keys.get("attention_bias", False) is not False:
        raise JllamaError(
            f"config.json: attention_bias={keys.get('attention_bias')!r} is not supported: model_type phi3 "
            "has no biases; set it to false"
        )
    keys.ignore("resid_pdrop", "embd_pdrop")
    return dict(rope=rope_from_hf(keys, partly=True), sliding_window=keys.nullable("sliding_window"))


PHI3 = Family(
    model_types=("phi3",),
    architectures=("phi3",),
    defaults=dict(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    ),
    hf=_phi3,
    gguf_layer={**GGUF_LAYER, "ffn_up": "mlp.gate_up_proj"},
)
