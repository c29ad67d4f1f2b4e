"""Text whose characters know their origin: the template's own, or what the template was given.

A chat template joins its text with the conversation's, trims it, cuts it, changes its case; and only special
tokens that it wrote itself count. So each character carries its origin through all of that. What an
operation unknown here returns is an ordinary `str`, whose characters count as given: an origin may get lost,
never forged.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, SupportsIndex

import numpy as np

from jllama.text.surrogates import SURROGATES, has_utf8_form, without_surrogates

OWN, GIVEN = "t", "g"
# A field of `%`: its name in a mapping, the rest, and the letter that says how.
PERCENT = re.compile(r"%(?:\((?P<name>[^)]*)\))?(?P<rest>[^a-zA-Z%]*)[hlL]?(?P<kind>[a-zA-Z%])")


class Traced(str):
    """A text and, for each of its characters, one character of `origins`.

    `OWN` and `GIVEN` are the common origins; a caller may give others to texts that are to be found again.
    """

    __slots__ = ("origins",)
    origins: str

    def __new__(cls, text: str, origins: str = GIVEN) -> "Traced":
        """One origin is that of the whole text."""
        made = super().__new__(cls, text)
        made.origins = origins if len(origins) == len(text) else origins * len(text)
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        # Text that is marked as HTML escapes what it is added to.
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return Traced(str.__add__(self, other), self.origins + _origins(other))

    def __radd__(self, other: str) -> str:
        return Traced(str.__add__(other, self), _origins(other) + self.origins)

    def __mul__(self, times: SupportsIndex) -> "Traced":
        return Traced(str.__mul__(self, times), self.origins * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return _percent(self, values)

    def __getitem__(self, key: Any) -> "Traced":
        return Traced(str.__getitem__(self, key), self.origins[key])

    def __iter__(self) -> Iterator[str]:
        return (Traced(*pair) for pair in zip(str.__iter__(self), self.origins, strict=True))

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def center(self, width: SupportsIndex, fill: str = " ", /) -> "Traced":
        padded = str.center(self, width, fill)
        missing = len(padded) - len(self)
        # As Python has it: of an odd number, the greater half is on the left in an odd width.
        return self._padded(padded, missing // 2 + (missing & len(padded) & 1), fill)

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> "Traced":
        return self._padded(str.ljust(self, width, fill), 0, fill)

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> "Traced":
        padded = str.rjust(self, width, fill)
        return self._padded(padded, len(padded) - len(self), fill)

    def zfill(self, width: SupportsIndex, /) -> str:
        padded = str.zfill(self, width)
        sign = self[: int(self.startswith(("+", "-")))]
        return join_traced([sign, self[len(sign) :].rjust(len(padded) - len(sign), "0")])

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._found(str.splitlines(self, True), "")
        return lines if keepends else [line[: len(str.splitlines(line)[0])] for line in lines]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._found(str.partition(self, sep), "")
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._found(str.rpartition(self, sep), "")
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        # Nothing is everywhere: that is left to Python.
        return traced(new).join(self.split(old, count)) if old else str.replace(self, old, new, count)

    def join(self, parts: Iterable[str], /) -> str:
        parts = [*parts]
        return Traced(str.join(self, parts), self.origins.join(map(_origins, parts)))

    def lower(self) -> str:
        return self._recased(str.lower)

    def upper(self) -> str:
        return self._recased(str.upper)

    def title(self) -> str:
        return self._recased(str.title)

    def capitalize(self) -> str:
        return self._recased(str.capitalize)

    def swapcase(self) -> str:
        return self._recased(str.swapcase)

    def casefold(self) -> str:
        return self._recased(str.casefold)

    def _padded(self, padded: str, before: int, fill: str) -> "Traced":
        behind = len(padded) - len(self) - before
        return Traced(padded, _origins(fill) * before + self.origins + _origins(fill) * behind)

    def _recased(self, change: Callable[[str], str]) -> str:
        # No change of case drops a character, so that of an equal length each stands for itself.
        text = change(self)
        return Traced(text, self.origins) if len(text) == len(self) else text

    def _found(self, pieces: Iterable[str], sep: str | None) -> list[str]:
        """The pieces of this text, in their order, with their origins; `sep` (None: blanks) between them."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            at = str.find(self, piece, at) if sep is None else at
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return found


def traced(value: Any) -> Any:
    """A text as a `Traced` one, given if nothing else is known; anything else as it is."""
    return Traced(value) if type(value) is str else value


def printed(value: Any) -> Traced:
    """`str(value)`. A number counts as the template's own: no text hides in it."""
    if isinstance(value, Traced):
        return value
    return Traced(str(value), OWN if isinstance(value, int | float) else GIVEN)


def join_traced(parts: Iterable[str], otherwise: str = GIVEN) -> Traced:
    """All the parts in a row; plain `str`s among them are of the origin `otherwise`."""
    parts = [*parts]
    if len(parts) == 1 and isinstance(parts[0], Traced):
        return parts[0]
    return Traced("".join(parts), "".join(_origins(part, otherwise) for part in parts))


def concatenate(pieces: Iterable[str]) -> Traced:
    """What a template put out. Jinja leaves its literal text as plain `str`s; all others are `printed`."""
    return join_traced(pieces, OWN)


def trace_data(value: Any) -> Any:
    """A copy of plain data with its texts traced as given, half surrogates in them replaced."""
    if isinstance(value, Traced):
        return value
    if isinstance(value, str):
        return Traced(without_surrogates(value))
    if isinstance(value, Mapping):
        return {key: trace_data(item) for key, item in value.items()}
    return [trace_data(item) for item in value] if isinstance(value, list) else value


def runs(text: str) -> Iterator[tuple[int, int, str]]:
    """The start, end and origin of each stretch of one origin; a plain text is its writer's own."""
    if not isinstance(text, Traced):
        yield 0, len(text), OWN
        return
    # An origin may be any character, half a surrogate pair, too.
    codes = np.frombuffer(text.origins.encode("utf-32-le", "surrogatepass"), np.uint32)
    borders = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist(), len(text)]
    for start, end in pairwise(borders if text else ()):
        yield start, end, text.origins[start]


def blotted(text: Traced) -> Traced:
    """The text, each half of a surrogate pair in it replaced: what a template wrote may hold some."""
    return text if has_utf8_form(text) else Traced(SURROGATES.sub("\ufffd", text), text.origins)


def _percent(pattern: Traced, values: Any) -> Traced:
    """`pattern % values`, field by field."""
    whole = str.__mod__(pattern, values)  # refuses what Python refuses
    try:
        return checked(_percent_pieces(pattern, values), whole)
    except (KeyError, StopIteration, TypeError, ValueError):  # a field that `PERCENT` reads otherwise
        return Traced(whole)


def _percent_pieces(pattern: Traced, values: Any) -> list[str]:
    origin = OWN if set(pattern.origins) <= {OWN} else GIVEN
    plain, rest = str.__str__(pattern), iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    at = 0
    for match in PERCENT.finditer(pattern):
        pieces += [Traced(plain[at : match.start()], origin), _percent_field(match, values, rest, origin)]
        at = match.end()
    return [*pieces, Traced(plain[at:], origin)]


def _percent_field(match: re.Match[str], values: Any, rest: Iterator[Any], origin: str) -> str:
    if match["kind"] == "%":
        return Traced("%", origin)
    value = values[match["name"]] if match["name"] is not None else next(rest)
    if isinstance(value, Traced) and match["kind"] == "s" and not match["rest"]:
        return value
    return str.__mod__("%" + match["rest"] + match["kind"], (value,))


def checked(pieces: list[str], whole: str) -> Traced:
    """The pieces in a row, if they make `whole`; else that, given."""
    made = join_traced(pieces)
    return made if made == whole else Traced(whole)


def _origins(text: str, otherwise: str = GIVEN) -> str:
    return text.origins if isinstance(text, Traced) else otherwise * len(text)
