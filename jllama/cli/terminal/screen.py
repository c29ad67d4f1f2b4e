"""The terminal's output side: streamed answers, remarks, and Ctrl-C while an answer comes."""

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import rich.box
import rich.console
import rich.style
import rich.table
import rich.text

from jllama.cli.terminal.markdown import MarkdownStream
from jllama.cli.terminal.wording import printable
from jllama.cli.terminal.wrap import WordWrap, window_width

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

_STYLES = {name: name for name in ("dim", "bold", "italic")} | {
    "code": "cyan",
    "block": "cyan",
    "error": "red",
    # Of program text in colours; from the terminal's own palette, so that they suit its background.
    "text": "default",
    "comment": "dim default",
    "keyword": "magenta",
    "string": "green",
    "number": "cyan",
    "name": "bright_blue",
}


class Screen:
    """Writes to a terminal, in styles if it has them."""

    def __init__(self, *, markdown: bool = True) -> None:
        self._console = rich.console.Console()
        self._can_style = self._console.is_terminal and not self._console.is_dumb_terminal
        self.markdown = markdown

    def say(self, text: str, style: str = "dim") -> None:
        """A remark of the chat's own, on lines of its own."""
        wrap = WordWrap(self._paint, soft=self._can_style)
        self._write("".join(wrap(line, style) + wrap("\n", "") for line in printable(text).split("\n")))

    def error(self, text: str) -> None:
        """A mistake, in one line."""
        line = " ".join(text.split())
        self.say(f"error: {line if len(line) <= 400 else line[:399] + '…'}", "error")

    def raw(self, sequence: str) -> None:
        """A control sequence of ours."""
        self._write(sequence)

    def stream(self, pieces: Iterator[str], begun: str = "") -> None:
        """Shows an answer as it comes; Ctrl-C ends it and leaves what came.

        Args:
          pieces: of the answer.
          begun: what was shown of it before, and is not shown again; a line that was all blanks begins anew.
        """
        writer = self._writer(printable(begun))
        last = "\n"
        with pressed_ctrl_c() as stop, contextlib.suppress(KeyboardInterrupt):
            try:
                for piece in pieces:
                    shown = printable(piece)
                    last = self._write(writer.push(shown) if writer else shown) or last
                    if stop:
                        break
            finally:
                pieces.close()  # type: ignore[attr-defined]
                last = self._write(writer.end() if writer else "") or last
                self._write("" if last == "\n" else "\n")

    def _writer(self, begun: str) -> MarkdownStream | None:
        """Shows Markdown where the terminal can, from where `begun` ends."""
        indentation = begun[begun.rfind("\n") + 1 :]
        indentation = "" if indentation.strip() else indentation
        if not (self.markdown and self._can_style):
            self._write(indentation)
            return None
        wrap = WordWrap(self._paint, soft=self._can_style)
        writer = MarkdownStream(wrap, self._table)
        writer.push(begun)
        writer.end()
        wrap("\n", "")
        self._write(wrap(indentation, ""))
        return writer

    def _write(self, text: str) -> str:
        sys.stdout.write(text)
        sys.stdout.flush()
        return text[-1:]

    def _paint(self, text: str, style: str) -> str:
        if not (text and style and self._can_style):
            return text
        chosen = rich.style.Style.parse(" ".join(_STYLES[name] for name in style.split()) or "none")
        if self._console.no_color:
            chosen = chosen.without_color
        return chosen.render(
            text, color_system=rich.console.COLOR_SYSTEMS.get(self._console.color_system or "")
        )

    def _table(self, rows: list[list[str]]) -> str | None:
        """A table within the window's width; None if that leaves its columns no room."""
        columns, width = max(map(len, rows)), window_width()
        if columns * 8 > width:
            return None
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        for place in range(columns):
            table.add_column(self._cell(rows[0], place), overflow="fold")
        for row in rows[1:]:
            table.add_row(*(self._cell(row, place) for place in range(columns)))
        buffer = io.StringIO()
        style: Any = self._console.color_system
        console = rich.console.Console(file=buffer, width=width, force_terminal=True, color_system=style)
        console.print(table, end="")
        return buffer.getvalue().strip("\n") + "\n"

    def _cell(self, row: list[str], place: int) -> rich.text.Text:
        inline = MarkdownStream(self._paint, lambda rows: None)
        text = row[place] if place < len(row) else ""
        return rich.text.Text.from_ansi(inline.push(text) + inline.end())


@contextlib.contextmanager
def pressed_ctrl_c() -> Iterator[list[int]]:
    """A list that is filled when Ctrl-C is pressed; pressed again, it interrupts whatever runs.

    The first one only leaves a note: an exception between two steps of the engine would cost the cache.
    """
    presses: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        if len(presses) > 1 and not _is_importing(frame):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


def _is_importing(frame: FrameType | None) -> bool:
    """C code of NumPy and JAX does not survive an exception then, and the next press is not far."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def quiet_typing() -> Iterator[None]:
    """What is typed while no prompt stands there does not show up in answers; the next prompt gets it.

    Ctrl-Z gives the shell its terminal as it was, and takes it back afterwards.
    """
    if termios is None or not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = list(before)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)

    def suspend(number: int, frame: FrameType | None) -> None:
        ours = termios.tcgetattr(descriptor)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # comes back when the shell lets us go on
        signal.signal(signal.SIGTSTP, suspend)
        termios.tcsetattr(descriptor, termios.TCSANOW, ours)

    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    stop_before = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, stop_before)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
