"""OLMo 2 and 3: norms behind the layers, queries and keys normalised over their full width."""

import dataclasses
from typing import Any

from jllama.families.family import POST_NORMS, Family
from jllama.families.keys import GgufKeys, HfKeys
from jllama.families.kinds import alternating, every, gguf_slides, layer_types
from jllama.families.rope import rope_from_gguf, rope_from_hf
from jllama.layers.rope import Rope

_PATTERN = 4


def _olmo3(keys: HfKeys) -> dict[str, Any]:
    """Stretched rotations on full layers only."""
    keys.ignore("rope_local_base_freq")  # transformers 4 writes it, and no code reads it
    slides = layer_types(keys, every(_PATTERN, keys.layers()))
    full = rope_from_hf(keys, "full_attention")
    local = rope_from_hf(keys, "sliding_attention", theta=full.rope_theta)
    return alternating(slides, keys.nullable("sliding_window"), full, local)


def _olmo_gguf(keys: GgufKeys) -> dict[str, Any]:
    """OLMo 3's files have OLMo 2's architecture and a window."""
    full, window = rope_from_gguf(keys), keys.get("attention.sliding_window") or None
    slides = gguf_slides(keys, _PATTERN, window)
    local = Rope(rope_theta=float(keys.get("rope.freq_base_swa", full.rope_theta)))
    return alternating(slides, window, full, local)


OLMO2 = Family(
    model_types=("olmo2",),
    architectures=("olmo2",),
    defaults=dict(vocab_size=50304, rms_norm_eps=1e-5),
    fields=dict(norm_placement="post", qk_norm="full"),
    gguf=_olmo_gguf,
    hf_layer=POST_NORMS,
)

OLMO3 = dataclasses.replace(
    OLMO2,
    model_types=("olmo3",),
    architectures=("olmo3",),
    defaults=dict(vocab_size=50304, rms_norm_eps=1e-5, sliding_window=4096, rope_theta=500000.0),
    hf=_olmo3,
)
