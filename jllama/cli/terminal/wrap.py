"""Breaks lines between words at the window's edge, whatever its width is at that moment."""

import os
import re
import sys
from collections.abc import Callable

from rich.cells import cell_len

_WIDE = "⺀-힣豈-﫿︰-﹏＀-￯"  # Chinese, Japanese and Korean, where a line may break anywhere
_WORDS = re.compile(f" +|[{_WIDE}]|[^ {_WIDE}]+")
_LAST_WORD = re.compile(f"[^\\s{_WIDE}]{{1,40}}\\Z")


def certain(text: str) -> int:
    """How much of a text can be laid out: all but a last word that may go on."""
    word = _LAST_WORD.search(text)
    return word.start() if word else len(text)


class WordWrap:
    """Lays out text that comes in pieces which end between words."""

    def __init__(self, paint: Callable[[str, str], str]) -> None:
        """`paint` gives a text its style, named by its second argument."""
        self._paint = paint
        self._column = 0
        self._blanks = ""  # before the next word, if that still fits

    def __call__(self, text: str, style: str) -> str:
        """The piece with line breaks; program text (style `block`) is left alone."""
        if text == "\n" or style == "block":
            blanks, self._blanks, self._column = self._blanks, "", 0
            return blanks + self._paint(text, style)
        width = window_width()
        return self._paint("".join(self._place(word, width) for word in _WORDS.findall(text)), style)

    def _place(self, word: str, width: int) -> str:
        if word.isspace():
            self._blanks += word
            return ""
        size, blanks = cell_len(word), self._blanks
        self._blanks = ""
        if self._column and self._column + len(blanks) + size > width >= size:
            self._column = size
            return "\n" + word
        self._column = (self._column + len(blanks) + size - 1) % width + 1
        return blanks + word


def window_width() -> int:
    """Columns of the window."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
