"""Tensor names: ours are Hugging Face's without the prefix `model.`, but for norms, whose names say where
they stand; GGUF has its own.

Sources: transformers' `modeling_*.py`; the table "Standardized tensor names" of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re

from jllama.families.family import Family, Names
from jllama.families.llama import LLAMA

EMBED, NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
# Several projections in one tensor, one behind another.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
GGUF_ROPE_FACTORS = (FACTORS, LONG_FACTORS, SHORT_FACTORS)

_GGUF_TOP = {EMBED: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
_TOP_OF_GGUF = {theirs: ours for ours, theirs in _GGUF_TOP.items()}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_GGUF_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Where models of pictures and text keep the language model, in transformers 4 and 5.
_WRAPPED = ("language_model.model.", "model.language_model.", "language_model.")
_OTHER_TOWERS = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)


def from_hf(name: str, family: Family = LLAMA) -> str | None:
    """Our name of a safetensors tensor; None for what belongs to no language model, or carries no weight."""
    if name.endswith("rotary_emb.inv_freq") or name.startswith(_OTHER_TOWERS):
        return None
    prefix = next((prefix for prefix in _WRAPPED if name.startswith(prefix)), "model.")
    name = name.removeprefix(prefix)
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in family.hf_layer:
        return f"layers.{layer[1]}.{family.hf_layer[layer[2]]}.{layer[3]}"
    return name


def to_hf(name: str, family: Family = LLAMA) -> str:
    """How a safetensors file of the family spells our name."""
    layer = _LAYER.fullmatch(name)
    if layer:
        name = f"layers.{layer[1]}.{_theirs(family.hf_layer, layer[2])}.{layer[3]}"
    return name if name == HEAD else f"model.{name}"


def from_gguf(name: str, family: Family = LLAMA) -> str | None:
    """Our name of a GGUF tensor (unchanged if unknown); None for what belongs to the configuration."""
    if name in GGUF_ROPE_FACTORS:
        return None
    layer = _GGUF_LAYER.fullmatch(name)
    if layer and layer[2] in family.gguf_layer:
        return f"layers.{layer[1]}.{family.gguf_layer[layer[2]]}.{layer[3]}"
    return _TOP_OF_GGUF.get(name, name)


def to_gguf(name: str, family: Family = LLAMA) -> str:
    """How a GGUF file of the family spells our name."""
    layer = _LAYER.fullmatch(name)
    if layer:
        return f"blk.{layer[1]}.{_theirs(family.gguf_layer, layer[2])}.{layer[3]}"
    return _GGUF_TOP[name]


def _theirs(names: Names, ours: str) -> str:
    """The inverse of a table."""
    return {mine: theirs for theirs, mine in names.items()}.get(ours, ours)
