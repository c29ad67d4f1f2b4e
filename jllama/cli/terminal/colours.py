"""Colours for program text that comes line by line, by pygments' lexers."""

import functools
import itertools
import re
from typing import Any

Token = tuple[int, Any, str]  # where it begins, its type, its text
LOOKS_BACK = 2000  # characters: to colour a line, no more before it is read again
# By pygments' token types, each for all below it; the names are styles of the screen.
_STYLES = {
    "Comment": "comment",
    "Keyword": "keyword",
    "Operator.Word": "keyword",
    "Literal.String": "string",
    "Literal.Number": "number",
    "Name.Function": "name",
    "Name.Class": "name",
    "Name.Builtin": "name",
    "Name.Decorator": "name",
    "Name.Tag": "name",
    "Name.Attribute": "name",
    "Name.Variable": "name",
    "Generic.Inserted": "string",
    "Generic.Deleted": "error",
    "Generic.Heading": "keyword",
    "Generic.Prompt": "comment",
}
_LANGUAGE = re.compile(r"[`~\s{.]*([A-Za-z0-9_+#.-]{1,40})")
_TOP_LEVEL = re.compile(r"\n\n(?=\S)")  # where a lexer may begin amid a program


class Colours:
    """Styles for the text of one block: it is never altered, only cut into stretches."""

    def __init__(self, lexer: Any) -> None:
        """`lexer`: of pygments."""
        self._lexer = lexer
        self._before = ""  # what came last

    def __call__(self, text: str) -> list[tuple[str, str]]:
        """The next text in stretches with a style each, which begins with `block`.

        A line may stand in a string or comment that began above, so that the block is read again from where
        that can't be. What a later line makes of an earlier one is not seen: what was written stays.
        """
        start, whole = len(self._before), self._before + text
        tokens = self._tokens(whole)
        self._before = self._needed(whole, tokens)
        stretches = _stretches(tokens, start)
        is_sound = "".join(piece for piece, _ in stretches) == text
        return stretches if is_sound else [(text, "block")]

    def _tokens(self, text: str) -> list[Token]:
        try:
            return list(self._lexer.get_tokens_unprocessed(text))
        except Exception:  # hundreds of lexers by as many hands, and a model's text: plain text will do
            return []

    def _needed(self, whole: str, tokens: list[Token]) -> str:
        """The end of the text that the next line depends on: from a blank line on, if it reads so alone."""
        at = max((found.end() for found in _TOP_LEVEL.finditer(whole)), default=0)
        if at and self._tokens(whole[at:]) == [(place - at, *rest) for place, *rest in tokens if place >= at]:
            return whole[at:]
        return whole if len(whole) <= LOOKS_BACK else _end(whole)


def _stretches(tokens: list[Token], start: int) -> list[tuple[str, str]]:
    """What stands from `start` on, neighbours of one style in one."""
    new = ((value[max(start - at, 0) :], _style(str(kind))) for at, kind, value in tokens)
    groups = itertools.groupby(filter(lambda piece: piece[0], new), key=lambda piece: piece[1])
    return [("".join(text for text, _ in pieces), style) for style, pieces in groups]


def _end(whole: str) -> str:
    start = len(whole) - LOOKS_BACK
    return whole[whole.find("\n", start) + 1 or start :]


def colours(fence: str) -> Colours | None:
    """Colours for a block that a fence such as "```python" opens; None if pygments knows no such language."""
    named = _LANGUAGE.match(fence)
    if named is None:
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return Colours(get_lexer_by_name(named[1]))
    except ClassNotFound:
        return None


@functools.cache
def _style(kind: str) -> str:
    """Of a token type, such as `Token.Literal.String.Doc`."""
    parts = kind.split(".")[1:]
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return "block " + next((_STYLES[name] for name in names if name in _STYLES), "text")
