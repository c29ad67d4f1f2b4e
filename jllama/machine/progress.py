"""A progress bar on stderr for what takes over a second, or surely will; quicker work shows nothing."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

PATIENCE = 1.0  # seconds before the bar appears
LONG_PROMPT = 512  # tokens: the bar of a longer one does not wait


def shown(wanted: bool = True) -> bool:
    """Whether there is a person to show progress to: a log file gets nothing, not even an empty line."""
    can_show = sys.stderr is not None and sys.stderr.isatty()
    return wanted and can_show and os.environ.get("TERM") not in ("dumb", "unknown")


class Bar:
    """Counts towards a total; safe to advance from several threads."""

    def __init__(self, label: str, total: int, *, enabled: bool = True) -> None:
        self._label, self._total, self._enabled = label, total, shown(enabled)
        self._done, self._started = 0, time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, count: int) -> None:
        """Counts `count` more."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            elif self._enabled and time.monotonic() - self._started > PATIENCE:
                self._show()

    def _show(self) -> None:
        # Imported late: most runs never show a bar.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), *self._counts())
        console = Console(stderr=True)
        # Left alone, rich would send what is printed meanwhile to the bar's stream.
        self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self._task = self._bar.add_task(self._label, total=self._total, completed=self._done)
        self._bar.start()

    def _counts(self) -> tuple[Any, ...]:
        """Columns that say how much of the total is done."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class ByteBar(Bar):
    """Counts bytes."""

    def _counts(self) -> tuple[Any, ...]:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        return DownloadColumn(), TransferSpeedColumn()


class PromptBar(Bar):
    """Counts a prompt's tokens while the model reads them."""

    def __init__(self, total: int) -> None:
        super().__init__("reading the prompt", total)
        self._is_long = total > LONG_PROMPT

    def __enter__(self) -> Self:
        if self._is_long and self._enabled:
            self._show()  # the first chunk alone may take many seconds
        return self

    def _counts(self) -> tuple[Any, ...]:
        from rich.progress import TextColumn

        return (TextColumn("{task.completed:.0f}/{task.total:.0f} tokens"),)
