"""How a text is generated: every setting that a user may turn, checked in one place."""

import dataclasses
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from jllama.errors import JllamaError, nearest

# How a token is chosen: the numbers among the settings; `logit_bias` stands beside them.
CHOICES = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
LARGEST_BIAS = 1e9  # far beyond any logit, and float32 has it
BAN = -1000.0  # a logit with such a bias never wins; where an answer must match, such tokens are not allowed
# What an answer must match: at most one of these.
CONSTRAINTS = ("json_schema", "json_object", "regex", "grammar", "choice")
LONGEST_CONSTRAINT = 1 << 18  # characters
DEEPEST_SCHEMA = 64  # brackets within brackets


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """The names, meanings and neutral values of `jllama.layers.sampling.Sampling`, when to stop, and what the
    answer must match (`jllama.grammar`), whose fields exclude each other.

    Raises:
      JllamaError: a value is out of its range.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0  # before so many nothing ends the answer
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
    stop_token_ids: tuple[int, ...] = ()  # end the answer as the model's own ends do, even with `ignore_eos`
    ignore_eos: bool = False
    json_schema: Any = None  # a schema as a mapping, True, False or JSON text; kept as text
    json_object: bool = False  # any JSON object
    regex: str | None = None  # the whole answer, in the syntax of Rust's `regex`
    grammar: str | None = None  # Lark as llguidance has it, or llama.cpp's GBNF
    choice: tuple[str, ...] = ()  # one of these texts

    def __post_init__(self) -> None:
        """None is none; one stop string is not a sequence of letters; NumPy's numbers become Python's."""
        for name in self.__dataclass_fields__:
            object.__setattr__(self, name, _plain(getattr(self, name)))
        object.__setattr__(self, "stop", _texts("stop", self.stop))
        object.__setattr__(self, "choice", _texts("choice", self.choice))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        for name, low, high, wanted in _RANGES:
            value = getattr(self, name)
            if not _within(value, low, high) or (wanted is int and not isinstance(value, int)):
                kind = "a whole number" if wanted is int else "a number"
                raise JllamaError(f"{name}={_shown(value)} must be {kind} from {low:g} to {high:,.0f}")
        if self.min_new_tokens > self.max_new_tokens:
            raise JllamaError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}: "
                "lower the one or raise the other"
            )
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < 2**63):
            raise JllamaError(f"seed={_shown(self.seed)} must be a whole number from 0 to 2^63 - 1")
        self._check_constraint()

    def _check_constraint(self) -> None:
        if type(self.json_object) is not bool:
            raise JllamaError(f"json_object={_shown(self.json_object)} must be True or False")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema(self.json_schema))
        for name in ("regex", "grammar"):
            _check_source(name, getattr(self, name))
        _check_source("choice", "".join(self.choice) or None)
        given = [name for name in CONSTRAINTS if getattr(self, name) not in (None, False, ())]
        if len(given) > 1:
            raise JllamaError(f"{' and '.join(given)} can't hold at once: give one of them")
        if given and self.ignore_eos:
            raise JllamaError(
                f"ignore_eos goes on behind an answer's end, where {given[0]} allows nothing: drop one"
            )

    @property
    def constraint(self) -> tuple[str, str] | None:
        """What the answer must match: the name of its field, and its text (of choices a JSON list)."""
        if self.choice:
            return "choice", json.dumps(self.choice, ensure_ascii=False)
        if self.json_object:
            return "json_object", '{"type": "object"}'
        given = ((name, getattr(self, name)) for name in ("json_schema", "regex", "grammar"))
        return next(((name, text) for name, text in given if text is not None), None)

    def seeded(self) -> "GenerationSettings":
        """These settings with a seed: their own, or one drawn now."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _shown(value: Any) -> str:
    """A value in a message, cut; Python writes no integers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "(thousands of digits)"
    return text if len(text) <= 80 else text[:79] + "…"


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _schema(given: Any) -> str:
    """A schema as JSON text, in the order of its own keys."""
    remedy = "give a JSON Schema: an object, true or false"
    try:
        if isinstance(given, str):
            if len(given) > LONGEST_CONSTRAINT:
                raise JllamaError(f"json_schema has more than {LONGEST_CONSTRAINT:,} characters")
            given = json.loads(given, parse_constant=_no_number)
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise JllamaError(f"json_schema nests deeper than {DEEPEST_SCHEMA} levels") from None
    except (ValueError, TypeError) as error:
        raise JllamaError(f"json_schema is no JSON ({error}): {remedy}") from None
    if not isinstance(given, Mapping | bool):
        raise JllamaError(f"json_schema={_shown(given)} is no schema: {remedy}")
    if _depth(given) > DEEPEST_SCHEMA:
        raise JllamaError(f"json_schema nests deeper than {DEEPEST_SCHEMA} levels")
    _check_source("json_schema", text)
    return text


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _depth(value: Any) -> int:
    """Levels of lists and mappings, as far as `DEEPEST_SCHEMA` and one more."""
    level, depth = [value], 0
    while level and depth <= DEEPEST_SCHEMA:
        inner = [
            v.values() if isinstance(v, Mapping) else v
            for v in level
            if isinstance(v, Mapping | list | tuple)
        ]
        level, depth = [item for items in inner for item in items], depth + bool(inner)
    return depth


def _check_source(name: str, text: Any) -> None:
    """Refuses what can't be the text of a constraint."""
    if text is None:
        return
    if not isinstance(text, str):
        raise JllamaError(f"{name}={_shown(text)} must be a text")
    if name != "choice" and not text.strip():
        raise JllamaError(f"{name} is empty: leave it out, or say what the answer must match")
    if len(text) > LONGEST_CONSTRAINT:
        raise JllamaError(f"{name} has {len(text):,} characters; at most {LONGEST_CONSTRAINT:,} may be")
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise JllamaError(f"{name} holds a character that is no text (NUL, or half of a surrogate pair)")


def _texts(name: str, given: Any) -> tuple[str, ...]:
    several = isinstance(given, Iterable) and not isinstance(given, str)
    texts = tuple(given) if several else () if given is None else (given,)
    if not all(isinstance(text, str) for text in texts):
        raise JllamaError(f"{name}={_shown(given)} must be a text or a list of texts")
    if "" in texts:
        raise JllamaError(f"a {'stop string' if name == 'stop' else name} is empty; leave it out")
    return texts


def _token_ids(given: Any) -> tuple[int, ...]:
    several = isinstance(given, Iterable) and not isinstance(given, str)
    ids = tuple(map(_plain, given)) if several else () if given is None else (given,)
    if not all(type(token) is int for token in ids):
        raise JllamaError(f"stop_token_ids={_shown(given)} must be token ids (whole numbers)")
    return ids


def _biases(given: Any) -> dict[int, float]:
    given = {} if given is None else given
    sound = isinstance(given, Mapping) and all(type(_plain(token)) is int for token in given)
    if not sound:
        raise JllamaError("logit_bias must hold token ids (whole numbers) and what to add to their logits")
    biases = {_plain(token): _plain(value) for token, value in given.items()}
    for token, value in biases.items():
        if not _within(value, -LARGEST_BIAS, LARGEST_BIAS):
            raise JllamaError(
                f"logit_bias of token {_shown(token)} is {_shown(value)}; it must be a number from "
                f"-{LARGEST_BIAS:,.0f} to {LARGEST_BIAS:,.0f} (-1000 bans a token)"
            )
    return biases


def build_settings(settings: GenerationSettings | None = None, /, **changes: Any) -> GenerationSettings:
    """What a call means that takes an object, keywords or both: keywords change the object's fields.

    Raises:
      JllamaError: `settings` is something else, a keyword is no setting, or a value is out of its range.
    """
    if settings is not None and not isinstance(settings, GenerationSettings):
        kind = type(settings).__name__
        raise JllamaError(
            f"settings is of type {kind}: give a GenerationSettings, or keywords such as max_new_tokens=64"
        )
    known = GenerationSettings.__dataclass_fields__
    for name in changes.keys() - known.keys():
        shown = name[:80]
        hint = f" ({_ELSEWHERE[name]})" if name in _ELSEWHERE else nearest(shown, known)
        raise JllamaError(f"unknown setting {shown}{hint}; there are {', '.join(known)}")
    if settings is None:
        return GenerationSettings(**changes)
    return dataclasses.replace(settings, **changes) if changes else settings


# What other calls take, or other libraries call so.
_ELSEWHERE = {
    "n": "`jllama.complete` takes it",
    "logprobs": "`jllama.complete` and `Engine.submit` take it",
    "prompt_logprobs": "`jllama.complete` and `Engine.submit` take it",
    "echo": "prompt_logprobs=0 of `jllama.complete` and `Engine.submit` scores the prompt",
    "max_tokens": "here max_new_tokens",
    "max_completion_tokens": "here max_new_tokens",
    "do_sample": "here temperature=0 takes the likeliest token",
}
# name, smallest, largest, kind
_RANGES = (
    ("max_new_tokens", 1, 10_000_000, int),
    ("min_new_tokens", 0, 10_000_000, int),
    ("temperature", 0.0, 100.0, float),
    ("top_k", 0, 10_000_000, int),
    ("top_p", 1e-9, 1.0, float),
    ("min_p", 0.0, 1.0, float),
    ("repetition_penalty", 0.01, 100.0, float),
    ("presence_penalty", -100.0, 100.0, float),
    ("frequency_penalty", -100.0, 100.0, float),
)
