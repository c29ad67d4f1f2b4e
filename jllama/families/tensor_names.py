"""Tensor names: ours are those of Hugging Face without the prefix `model.`; GGUF has its own.

Sources: transformers' `modeling_llama.py`; the table "Standardized tensor names" of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re

EMBED, NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"

_GGUF_TOP = {EMBED: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_OF_GGUF = {theirs: ours for ours, theirs in _GGUF_TOP.items()}
_LAYER_OF_GGUF = {theirs: ours for ours, theirs in _GGUF_LAYER.items()}

GGUF_ROPE_FACTORS = "rope_freqs.weight"


def from_hf(name: str) -> str | None:
    """Our name of a safetensors tensor; None for a buffer that carries no weight."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    return name.removeprefix("model.")


def to_hf(name: str) -> str:
    """How a safetensors file spells our name."""
    return name if name == HEAD else f"model.{name}"


def from_gguf(name: str) -> str | None:
    """Our name of a GGUF tensor (unchanged if unknown); None for what belongs to the configuration."""
    if name == GGUF_ROPE_FACTORS:
        return None
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _LAYER_OF_GGUF:
        return f"layers.{layer[1]}.{_LAYER_OF_GGUF[layer[2]]}.{layer[3]}"
    return _TOP_OF_GGUF.get(name, name)


def to_gguf(name: str) -> str:
    """How a GGUF file spells our name."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"blk.{layer[1]}.{_GGUF_LAYER[layer[2]]}.{layer[3]}"
    return _GGUF_TOP[name]
