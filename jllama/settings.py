"""How a text is generated: every setting that a user may turn, checked in one place."""

import dataclasses
import math
import secrets
from typing import Any

from jllama.errors import JllamaError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """The names, meanings and neutral values of `jllama.sampling.Sampling`, and when to stop.

    Raises:
      JllamaError: a value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None  # None: one is drawn, and reported
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._use_plain_values()
        for name, low, high, wanted in _RANGES:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high or (wanted is int and not isinstance(value, int)):
                kind = "a whole number" if wanted is int else "a number"
                raise JllamaError(f"{name}={value!r} must be {kind} from {low:g} to {high:g}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**63):
            raise JllamaError(f"seed={self.seed!r} must be a whole number from 0 to 2^63 - 1")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise JllamaError("a stop string is empty; leave it out")
        if not all(type(token) is int for token in self.logit_bias):
            raise JllamaError(
                "logit_bias must hold token ids (whole numbers) and what to add to their logits"
            )
        if not all(math.isfinite(value) for value in self.logit_bias.values()):
            raise JllamaError("logit_bias must hold finite numbers; use -1000 to ban a token")

    def _use_plain_values(self) -> None:
        """One stop string is not a sequence of letters; NumPy's numbers become Python's."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if getattr(value, "ndim", None) == 0:
                object.__setattr__(self, name, value.item())

    def seeded(self) -> "GenerationSettings":
        """These settings with a seed: their own, or one drawn now."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))


def build_settings(**settings: Any) -> GenerationSettings:
    """`GenerationSettings` from keyword arguments; an unknown name is a `JllamaError`."""
    known = GenerationSettings.__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise JllamaError(f"unknown setting {', '.join(unknown)}; there are {', '.join(known)}")
    return GenerationSettings(**settings)


# name, smallest, largest, kind
_RANGES = (
    ("max_new_tokens", 1, 10_000_000, int),
    ("temperature", 0.0, 100.0, float),
    ("top_k", 0, 10_000_000, int),
    ("top_p", 1e-9, 1.0, float),
    ("min_p", 0.0, 1.0, float),
    ("repetition_penalty", 0.01, 100.0, float),
    ("presence_penalty", -100.0, 100.0, float),
    ("frequency_penalty", -100.0, 100.0, float),
)
