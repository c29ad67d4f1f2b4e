"""What a terminal makes of a text: rows of cells, which row goes on in the next, and what is copied of them.

As xterm and its kin do it: a letter in the last column leaves the cursor there, and only the next one begins
a new row, which then belongs to the one before (DECAWM with a deferred wrap). Cells that were never written
copy as blanks, but for those at a line's end. tmux 3.3a agrees (`capture-pane -J`), reflow included.
"""

import re

from rich.cells import cell_len

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
EMPTY, SECOND_HALF = "", "\0"


class Emulator:
    """A window that never scrolls anything away."""

    def __init__(self, columns: int, *, reflows: bool = True) -> None:
        """`reflows`: lays lines out anew when its width changes; else what stands beyond the edge is lost."""
        self.columns, self._reflows = columns, reflows
        self.cells: list[list[str]] = [[]]
        self.goes_on: list[bool] = [False]  # by row: the next one belongs to it
        self._row, self._column = 0, 0

    @property
    def rows(self) -> list[str]:
        """What each row shows."""
        return [_text(cells).rstrip() for cells in self.cells]

    def copied(self) -> str:
        """All of it, selected and copied."""
        lines = [""]
        for cells, goes_on in zip(self.cells, self.goes_on, strict=True):
            lines[-1] += _text(cells)
            lines += [] if goes_on else [""]
        return "\n".join(line.rstrip() for line in lines[:-1])

    def feed(self, text: str) -> None:
        """Writes to it; a line's end also goes back to the first column."""
        while text:
            sequence = _SEQUENCE.match(text)
            if sequence:
                self._obey(sequence[1], sequence[2])
                text = text[sequence.end() :]
            else:
                self._write(text[0])
                text = text[1:]

    def resize(self, columns: int) -> None:
        """The window gets another width."""
        self.columns = columns
        if not self._reflows:
            self.cells = [cells[:columns] for cells in self.cells]
            self._column = min(self._column, columns)
            return
        lines: list[list[str]] = [[]]
        for cells, goes_on in zip(self.cells, self.goes_on, strict=True):
            lines[-1] += cells
            lines += [] if goes_on else [[]]
        self.cells, self.goes_on, self._row, self._column = [[]], [False], 0, 0
        for number, line in enumerate(lines[:-1]):
            if number:
                self._write("\n")
            for cell in line:
                self._put(cell, 1)

    def _obey(self, numbers: str, letter: str) -> None:
        if letter == "G":
            self._column = min(int(numbers or 1), self.columns) - 1
        else:
            assert letter == "m", f"a sequence that moves or erases: {letter}"

    def _write(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._next_row()
        else:
            self._put(letter, cell_len(letter))

    def _put(self, letter: str, size: int) -> None:
        if self._column + size > self.columns:
            self.goes_on[self._row] = True
            self._next_row()
        cells = self.cells[self._row]
        cells += [EMPTY] * (self._column + size - len(cells))
        cells[self._column : self._column + size] = [letter, *[SECOND_HALF] * (size - 1)]
        self._column += size

    def _next_row(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.cells):
            self.cells.append([])
            self.goes_on.append(False)


def _text(cells: list[str]) -> str:
    return "".join(cell or " " for cell in cells if cell != SECOND_HALF)
