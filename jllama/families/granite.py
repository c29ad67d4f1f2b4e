"""Granite 3 and 4 (dense): a Llama whose embeddings, scores, residual stream and logits are scaled."""

from typing import Any

from jllama.families.family import Family
from jllama.families.keys import GgufKeys, HfKeys


def _granite(keys: HfKeys) -> dict[str, Any]:
    names = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    return {name: float(keys.get(name, 1.0)) for name in names}


def _granite_gguf(keys: GgufKeys) -> dict[str, Any]:
    """In these files `finetuned` says whether queries and keys rotate at all."""
    keys.allow_only({"rope.scaling.finetuned": True})
    return dict(
        attention_multiplier=keys.get("attention.scale") or None,
        embedding_multiplier=keys.get("embedding_scale") or 1.0,
        residual_multiplier=keys.get("residual_scale") or 1.0,
        logits_scaling=keys.need("logit_scale"),
    )


GRANITE = Family(
    model_types=("granite",),
    architectures=("granite",),
    hf=_granite,
    gguf=_granite_gguf,
    rotary_interleaved=True,
)
