"""Breaks lines between words at the window's edge, whatever its width is at that moment."""

import os
import re
import sys
from collections.abc import Callable

from rich.cells import cell_len

_WIDE = "⺀-힣豈-﫿︰-﹏＀-￯"  # Chinese, Japanese and Korean, where a line may break anywhere
_WORDS = re.compile(f" +|[{_WIDE}]|[^ {_WIDE}]+")
# A blank, the cursor to the row's last column, and a blank there: the next letter begins another row.
_SOFT_BREAK = " \x1b[9999G "
_LAST_WORD = re.compile(f"[^\\s{_WIDE}]{{1,40}}\\Z")


def certain(text: str) -> int:
    """How much of a text can be laid out: all but a last word that may go on."""
    word = _LAST_WORD.search(text)
    return word.start() if word else len(text)


class WordWrap:
    """Lays out text that comes in pieces which end between words.

    A soft break fills the row with blanks and leaves it to the terminal to begin the next one: to it both are
    one line, which is copied as one, with those blanks in it, and laid out anew in a window of another width.
    So a line breaks at blanks alone; what has none is the terminal's to break. A hard break is a line's end.
    """

    def __init__(self, paint: Callable[[str, str], str], *, soft: bool) -> None:
        """`paint` gives a text its style, named by its second argument; `soft`: break lines softly."""
        self._paint, self._soft = paint, soft
        self._column, self._width = 0, 0
        self._blanks = ""  # before the next word, if that still fits
        self._is_stale = False  # the window has changed: nobody knows where the cursor is

    def __call__(self, text: str, style: str) -> str:
        """The piece with line breaks; program text (style `block …`) is left alone."""
        width = self._look()
        if text == "\n" or style.startswith("block"):
            blanks = self._blanks[: max(width - self._column, 0)]
            self._blanks, self._column, self._is_stale = "", 0, False
            return blanks + self._paint(text, style)
        return self._paint("".join(self._place(word, width) for word in _WORDS.findall(text)), style)

    def _look(self) -> int:
        """The window's width now."""
        before, self._width = self._width, window_width()
        self._is_stale |= before != self._width and self._column > 0
        return self._width

    def _place(self, word: str, width: int) -> str:
        if word.isspace():
            self._blanks += word
            return ""
        size, blanks = cell_len(word), self._blanks
        self._blanks = ""
        if self._breaks(bool(blanks), len(blanks) + size, size, width):
            return self._broken(word, size, width)
        if size == 2 and len(word) == 1 and self._column == width - 1:
            self._column = width  # a wide letter is not cut in two
        self._advance(len(blanks) + size, width)
        return blanks + word

    def _breaks(self, is_apart: bool, wanted: int, size: int, width: int) -> bool:
        """Whether a word goes to the next row.

        Args:
          is_apart: there are blanks before it.
          wanted: its cells and theirs.
          size: its cells.
          width: of the window.
        """
        if self._soft:  # one blank more stays free, to be the one between it and the next word
            is_full = self._column + wanted >= width > size
            return is_apart and self._column > 0 and (is_full or self._is_stale)
        return self._column > 0 and self._column + wanted > width >= size

    def _broken(self, word: str, size: int, width: int) -> str:
        is_full = self._column == width and not self._is_stale
        self._column, self._is_stale = 0, False
        if self._soft and is_full:  # the terminal breaks here by itself: the blank begins the next row
            word, size = " " + word, size + 1
        elif self._soft:
            word = _SOFT_BREAK + word
        else:
            word = "\n" + word
        self._advance(size, width)
        return word

    def _advance(self, size: int, width: int) -> None:
        """Where the cursor is after so many cells: behind the last one of a row, not before the next."""
        self._column = (self._column + size - 1) % width + 1


def window_width() -> int:
    """Columns of the window."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
