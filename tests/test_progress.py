"""The progress bar: silent when quick, on stderr alone when not."""

import io
import threading

import pytest

from jllama import progress
from jllama.progress import ByteBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_quick_work_shows_nothing(terminal):
    with ByteBar("loading", 10) as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""


def test_slow_work_shows_label_and_bytes(terminal, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ByteBar("loading", 4000) as bar:
        threads = [threading.Thread(target=bar.advance, args=(1000,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "loading" in terminal.getvalue()
    assert "3.0/4.0 kB" in terminal.getvalue()
    assert out.getvalue() == ""


def test_it_can_be_switched_off(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ByteBar("loading", 10, enabled=False) as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""


def test_no_bar_in_a_log_file(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with ByteBar("loading", 10) as bar:
        bar.advance(10)
    assert log.getvalue().strip() == ""
