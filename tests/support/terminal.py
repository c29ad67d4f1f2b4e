"""A pseudo-terminal with a script in it: types, pastes, resizes, hangs up, and reads what is shown."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ESCAPES = re.compile(rb"\x1b\][^\x07]*\x07|\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0-9A-B]?")
CURSOR_QUESTION = b"\x1b[6n"
PROMPT_BEGINS = b"\x1b[?2004h"  # a prompt asks for pasted text in brackets
PROMPT = "\N{BLACK DIAMOND}"
SECONDS = 500
ROOT = Path(__file__).resolve().parents[2]


def command(script: str, *arguments: str) -> list[str]:
    """A script as a user starts it, every warning an error."""
    return [sys.executable, "-W", "error", str(ROOT / "scripts" / script), *arguments]


class Terminal:
    """One process, whose controlling terminal this is."""

    def __init__(self, command: list[str], env: dict[str, str], *, rows: int = 24, columns: int = 80) -> None:
        self._master, slave = os.openpty()
        self.resize(rows, columns)
        # The shell opens the terminal by name: the first one that a new session opens becomes its own.
        shell = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave), *command]
        self.process = subprocess.Popen(
            shell,
            env=env | {"TERM": "xterm-256color"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        self._slave: int | None = slave
        self.raw = b""
        self._seen = 0  # of the plain text
        self._answered = 0  # questions where the cursor is

    @property
    def text(self) -> str:
        """All that was shown so far, without control sequences; `PROMPT` where a prompt began."""
        marked = self.raw.replace(PROMPT_BEGINS, PROMPT.encode())
        return ESCAPES.sub(b"", marked).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def paste(self, text: str) -> None:
        """As terminals do it: between brackets, line ends as carriage returns."""
        self.type(f"\x1b[200~{text.replace(chr(10), chr(13))}\x1b[201~")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, wanted: str) -> str:
        """Reads until `wanted` shows up after what was waited for last; returns what came before it.

        Raises:
          AssertionError: it does not come.
        """
        end = time.monotonic() + SECONDS
        while wanted not in self.text[self._seen :]:
            assert time.monotonic() < end, (
                f"{wanted!r} did not come; the end of what did: {self.text[-2000:]!r}"
            )
            assert self._read() or self.process.poll() is None, f"it ended: {self.text[-2000:]!r}"
        before, _, _ = self.text[self._seen :].partition(wanted)
        self._seen += len(before) + len(wanted)
        return before

    def hang_up(self) -> int:
        """Closes the terminal; returns how the process ended."""
        os.close(self._master)
        self._master = -1
        return self.end()

    def end(self) -> int:
        """Waits for the process; returns its exit code."""
        end = time.monotonic() + SECONDS
        while self._master >= 0 and self.process.poll() is None and time.monotonic() < end:
            self._read()
        return self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        for descriptor in (self._master, self._slave):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)

    def _read(self) -> bool:
        """Takes what is there, and answers the question where the cursor is. False: nothing came."""
        ready, _, _ = select.select([self._master], [], [], 0.1)
        if not ready:
            return False
        os.set_blocking(self._master, False)  # a Ctrl-C or Ctrl-Z that was typed may throw away what is ready
        try:
            self.raw += os.read(self._master, 65536)
        except BlockingIOError:
            return False
        finally:
            os.set_blocking(self._master, True)
        asked = self.raw.count(CURSOR_QUESTION)  # a read may end amid one
        while self._answered < asked:
            self._answered += 1
            self.type("\x1b[1;1R")
        return True
