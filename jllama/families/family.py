"""What the files of one family of models mean: everything in which they differ from Llama's."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jllama.families.keys import GgufKeys, HfKeys

Names = Mapping[str, str]  # a tensor of a layer, as a file names it -> as we do

# The two norms of Llama's layers. `post_attention_layernorm` stands behind the attention in some families.
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {
    "post_attention_layernorm": "attn_post_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}
FOUR_NORMS = POST_NORMS | {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm"}

GGUF_LAYER = {
    "attn_norm": "attn_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "attn_post_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "ffn_post_norm",
}


def nothing(keys: Any) -> dict[str, Any]:
    """No field differs."""
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family. A field that is left out means: as in Llama."""

    model_types: tuple[str, ...]  # of config.json
    architectures: tuple[str, ...] = ()  # of GGUF files
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of config.json's keys
    # Of `ModelConfig`, that no key states.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hf: Callable[[HfKeys], dict[str, Any]] = nothing  # fields of `ModelConfig` from config.json
    gguf: Callable[[GgufKeys], dict[str, Any]] = nothing  # and from GGUF metadata
    hf_layer: Names = dataclasses.field(default_factory=lambda: PRE_NORMS)
    gguf_layer: Names = dataclasses.field(default_factory=lambda: GGUF_LAYER)
    rotary_interleaved: bool = False  # its GGUF files' q and k rows pair element 2i with 2i + 1
