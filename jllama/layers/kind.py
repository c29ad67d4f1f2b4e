"""What may differ from layer to layer, and how scores are made of queries and keys."""

import dataclasses

from jllama.layers.rope import Rope


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ from layer to layer."""

    window: int | None = None  # positions that a token sees, itself included; None: all
    rope: Rope | None = Rope()  # None: without positions


@dataclasses.dataclass(frozen=True)
class ScoreRule:
    """How queries and keys become scores. Hashable: constants of a kernel."""

    window: int | None = None  # positions that a token sees, itself included; None: all
    scale: float | None = None  # of the products (config key `attention_multiplier`); None: H^-0.5
    softcap: float | None = None  # no score lies beyond (config key `attn_logit_softcapping`)

    def factor(self, head_dim: int) -> float:
        """What the products of heads of so many elements are multiplied by."""
        return head_dim**-0.5 if self.scale is None else self.scale
