"""A progress bar on stderr for what takes over a second, or surely will; quicker work shows nothing."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, Self

PATIENCE = 1.0  # seconds before the bar appears
REDRAWN = 0.1  # seconds from one drawing to the next
LONG_PROMPT = 512  # tokens: the bar of a longer one does not wait


def shown(wanted: bool = True) -> bool:
    """Whether there is a person to show progress to: a log file gets nothing, not even an empty line."""
    can_show = sys.stderr is not None and sys.stderr.isatty()
    return wanted and can_show and os.environ.get("TERM") not in ("dumb", "unknown")


class Bar:
    """Counts towards a total; safe to advance from several threads."""

    look: ClassVar[Mapping[str, Any]] = {}  # what is counted, as tqdm is told

    def __init__(self, label: str, total: int, *, enabled: bool = True) -> None:
        self._label, self._total, self._enabled = label, total, shown(enabled)
        self._done, self._started = 0, time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None

    def advance(self, count: int) -> None:
        """Counts `count` more."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif self._enabled and time.monotonic() - self._started > PATIENCE:
                self._show()

    def _show(self) -> None:
        self._bar = _drawing()(
            desc=self._label,
            total=self._total,
            initial=self._done,
            leave=False,
            miniters=1,
            mininterval=REDRAWN,
            **_width(),
            **self.look,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class ByteBar(Bar):
    """Counts bytes."""

    look: ClassVar[Mapping[str, Any]] = {
        "unit": "B",
        "unit_scale": True,
        "bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt}B [{remaining}, {rate_fmt}]",
    }


class PromptBar(Bar):
    """Counts a prompt's tokens while the model reads them."""

    look: ClassVar[Mapping[str, Any]] = {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} tokens"}

    def __init__(self, total: int) -> None:
        super().__init__("reading the prompt", total)
        self._is_long = total > LONG_PROMPT

    def __enter__(self) -> Self:
        if self._is_long and self._enabled:
            self._show()  # the first chunk alone may take many seconds
        return self


def _width() -> dict[str, Any]:
    """As wide as the terminal, also when that changes; as most are where it does not know how wide it is."""
    with contextlib.suppress(OSError, ValueError):
        if os.get_terminal_size(sys.stderr.fileno()).columns == 0:
            return {"ncols": 79, "nrows": 24}
    return {"dynamic_ncols": True}


@functools.cache
def _drawing() -> Any:
    """tqdm, without the thread that watches slow bars and without its lock between processes."""
    from tqdm import tqdm  # imported late: most runs never show a bar

    class Drawing(tqdm):
        monitor_interval = 0

    Drawing.set_lock(threading.RLock())
    return Drawing
