"""What the attention kernels' source says of rotation and scores."""

import dataclasses
from collections.abc import Iterable

from jax import Array

from jllama.config import ModelConfig
from jllama.layers.attention import PLAIN_SCORES
from jllama.layers.kind import ScoreRule

PANEL = 64  # columns of the activations that `wide_product.cu` copies together
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu", "relu")  # as primitives.cu counts them


@dataclasses.dataclass(frozen=True)
class Constants:
    """Numbers of the source, by their names in it; these of a head of which `ROTARY` elements turn."""

    ROTARY: int  # 0: none
    SCALE: str  # of the products of queries and keys
    CAP: str  # no score lies beyond; 0: they may

    @classmethod
    def of(cls, rotary: int, scores: ScoreRule = PLAIN_SCORES) -> "Constants":
        """Of heads of which so many elements turn."""
        scale = "rsqrtf((float)H)" if scores.scale is None else literal(scores.scale)
        return cls(rotary, scale, "0" if scores.softcap is None else literal(scores.softcap))


def constants(scores: ScoreRule, rope: tuple[Array, Array] | None) -> Constants:
    """Of a call: `rope` is cosines and sines `[B, T, R/2]`, or None where nothing turns."""
    return Constants.of(0 if rope is None else 2 * rope[0].shape[-1], scores)


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How activations lie that `wide_product.cu` multiplies: in pieces, for weights of so many bits."""

    bits: int = 0  # 0: as any array `[tokens, columns]`
    room: int = 0  # tokens that there is room for: those of a batch, to a multiple of 8

    def shape(self, tokens: int, columns: int) -> tuple[int, ...]:
        """Of the array that holds them."""
        return (columns // PANEL, 8, self.room, 8) if self.bits else (tokens, columns)


PLAIN = Arrangement()


def literal(value: float) -> str:
    """A float32 as C++ writes it."""
    return f"{value:.9e}f"


def unless(value: float, neutral: int) -> str:
    """A float32 as C++ writes it; the neutral one as a whole number, which leaves nothing behind."""
    return str(neutral) if value == neutral else literal(value)


def rotary_dims(config: ModelConfig) -> list[int]:
    """R of each kind of rotation among the layers."""
    ropes = {config.kind_of(layer).rope for layer in range(config.num_hidden_layers)}
    return sorted({rope.rotary_dim(config.head_dim) for rope in ropes if rope is not None})


def rotary_refusal(dims: Iterable[int]) -> str | None:
    """Why the kernels can't turn so much of heads, whose pieces are of 8 elements; None if they can."""
    strange = next((R for R in dims if R % 16), None)
    if strange is None:
        return None
    return f"the kernel does not know {strange} rotated elements of a head (multiples of 16)"
