"""Markdown as it streams: styles are laid over the text, and what was written is never touched again.

The cursor never moves back, so neither a long answer nor a resized window can garble anything. A marker such
as `**` waits until its partner comes in the same line; without one it is shown as it is. Words wait for their
end, tables for their last row, and program text in a known language for the end of its line, when its colours
are certain.
"""

import re
from collections.abc import Callable

from jllama.cli.terminal.colours import Colours, colours
from jllama.cli.terminal.wrap import certain

Paint = Callable[[str, str], str]  # text of one line, or "\n", and a style's name: what the terminal gets
Table = Callable[[list[list[str]]], str | None]  # rows of cells; None: it does not fit

HELD_AT_MOST = 500
_SPANS = (
    ("code", re.compile(r"(`+)(?!`)(?P<text>[^\n]+?)(?<!`)\1(?!`)")),
    ("bold italic", re.compile(r"\*{3}(?=[^\s*])(?P<text>[^\n]+?)(?<=[^\s*])\*{3}(?!\*)")),
    ("bold", re.compile(r"\*\*(?=[^\s*])(?P<text>[^\n]+?)(?<=\S)\*\*(?!\*)")),
    ("italic", re.compile(r"\*(?=[^\s*])(?P<text>[^\n*]+?)(?<=[^\s*])\*(?!\*)")),
)
_MARKER = re.compile(r"`+|\*+")
# What may still become the beginning of a heading, list, fence, quotation or table row.
_UNDECIDED = re.compile(r" *(?:#{0,6}|[-*+]|`{1,2}|~{1,2}|\|[^\n]*|(?:```|~~~)[^\n]*)")
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_HEADING = re.compile(r" *#{1,6} +")
_BULLET = re.compile(r"( *)[-*+]( +)")
_DELIMITERS = re.compile(r" *\|?( *:?-+:? *\|)+ *:?-*:? *")


class MarkdownStream:
    """Takes pieces of Markdown and returns what can be shown of it already."""

    def __init__(self, paint: Paint, table: Table) -> None:
        self._paint, self._table = paint, table
        self._held = ""
        self._at_line_start = True
        self._line_style = ""
        self._fence = ""
        self._colours: Colours | None = None  # of the block that the fence opened
        self._rows: list[str] = []
        self._before = ""  # the last character shown

    def push(self, text: str) -> str:
        """The next piece; returns what is certain."""
        self._held += text
        return self._advance(final=False)

    def end(self) -> str:
        """The text ends here: returns all that was held back."""
        return self._advance(final=True) + self._end_table()

    def _advance(self, final: bool) -> str:
        shown = ""
        while self._held:
            complete = final or "\n" in self._held
            if self._at_line_start:
                if not complete and self._is_undecided():
                    break
                shown += self._begin_line()
            else:
                before = len(self._held)
                shown += self._code(complete) if self._fence else self._inline(complete)
                if len(self._held) == before:
                    break
        return shown

    def _is_undecided(self) -> bool:
        if self._fence:
            return self._fence.startswith(self._held.strip()) or _FENCE.match(self._held) is not None
        return len(self._held) <= HELD_AT_MOST and _UNDECIDED.fullmatch(self._held) is not None

    def _begin_line(self) -> str:
        """Takes what makes the line special, and shows it."""
        self._at_line_start, self._line_style = False, ""
        fence = _FENCE.match(self._held)
        if self._fence:
            return self._close_fence() if fence and self._closes(fence[1]) else ""
        if self._is_row():
            return self._take_row()
        shown = self._end_table()
        if fence:
            self._fence, self._colours = fence[1], colours(self._held.partition("\n")[0])
            return shown + self._rest_of_line("block dim")
        return shown + self._heading_or_bullet()

    def _heading_or_bullet(self) -> str:
        if _HEADING.match(self._held):
            self._line_style = "bold"
        elif self._held.startswith(">"):
            self._line_style = "italic"
        elif bullet := _BULLET.match(self._held):
            self._held = self._held[bullet.end() :]
            return self._paint(f"{bullet[1]}•{bullet[2]}", "")
        return ""

    def _closes(self, run: str) -> bool:
        line = self._held.partition("\n")[0].strip()
        return line == run and run.startswith(self._fence)

    def _close_fence(self) -> str:
        self._fence = ""
        return self._rest_of_line("block dim")

    def _rest_of_line(self, style: str) -> str:
        line, newline, self._held = self._held.partition("\n")
        self._at_line_start = bool(newline)
        return self._paint(line, style) + self._line_end(newline)

    def _code(self, complete: bool) -> str:
        """The line as it comes, or, in colours, once it is whole or very long."""
        if self._colours is None:
            return self._rest_of_line("block")
        if not complete and len(self._held) <= HELD_AT_MOST:
            return ""
        line, newline, self._held = self._held.partition("\n")
        self._at_line_start = bool(newline)
        stretches = ((text.rstrip("\n"), style) for text, style in self._colours(line + newline))
        return "".join(self._paint(text, style) for text, style in stretches if text) + self._line_end(
            newline
        )

    def _line_end(self, newline: str) -> str:
        return self._paint(newline, "") if newline else ""

    def _inline(self, complete: bool) -> str:
        """The text up to the next span or the line's end, or that; nothing if it is not decided yet."""
        line, newline, _ = self._held.partition("\n")
        marker = _MARKER.search(line)
        if marker is None:
            return self._take(len(line) if complete else certain(line), newline)
        if marker.start():
            return self._take(marker.start())
        is_product = marker[0] == "*" and self._before.isalnum()  # 2*3*4
        for style, pattern in () if is_product else _SPANS:
            span = pattern.match(line)
            if span and (complete or span.end() < len(line)):
                self._held = self._held[span.end() :]
                self._before = span["text"][-1]
                return self._paint(span["text"], f"{self._line_style} {style}".strip())
        follows = line[marker.end() : marker.end() + 1]
        alone = marker[0][0] == "*" and follows == " "  # program text may begin with a blank
        literal = complete or (is_product and follows) or alone or len(line) > HELD_AT_MOST
        return self._take(marker.end() if literal else 0)

    def _take(self, count: int, newline: str = "") -> str:
        text, self._held = self._held[:count], self._held[count + len(newline) :]
        self._at_line_start, self._before = bool(newline), (self._before + text + newline)[-1:]
        return self._paint(text, self._line_style) + self._line_end(newline)

    def _is_row(self) -> bool:
        """Whether a table's row stands here. A longer line was not held until its end: it is text."""
        line = self._held.partition("\n")[0]
        return len(line) <= HELD_AT_MOST and line.lstrip(" ").startswith("|")

    def _take_row(self) -> str:
        line, _, self._held = self._held.partition("\n")
        self._rows.append(line)
        self._at_line_start = True
        return ""

    def _end_table(self) -> str:
        rows, self._rows = self._rows, []
        table = None
        if len(rows) > 2 and _DELIMITERS.fullmatch(rows[1]):
            table = self._table([_cells(row) for row in (rows[0], *rows[2:])])
        if table is not None:
            return table
        return "".join(self._paint(row, "block") + self._paint("\n", "") for row in rows)


def _cells(row: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
