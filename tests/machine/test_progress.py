"""The progress bar: silent when quick, on stderr alone when not."""

import fcntl
import io
import os
import pty
import struct
import termios
import threading
from types import SimpleNamespace

import pytest

from jllama.machine import progress
from jllama.machine.progress import ByteBar, PromptBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch):
    """Puts a terminal in the place of stderr; a call, because pytest puts its own there before each test."""

    def put() -> Terminal:
        terminal = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", terminal)
        return terminal

    return put


def test_quick_work_shows_nothing(screen):
    terminal = screen()
    with ByteBar("loading", 10) as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""


def test_a_bar_appears_behind_a_second(screen, monkeypatch):
    terminal, clock = screen(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with PromptBar(500) as bar:
        for clock[0], shows in ((100.9, False), (101.0, False), (101.1, True)):
            bar.advance(1)
            assert bool(terminal.getvalue()) is shows


def test_a_bar_is_told_what_came_since_it_was_told_last(screen, monkeypatch):
    screen()
    told = []

    def drawing(*, initial, total, **look):
        told.append((initial, total))
        return SimpleNamespace(update=told.append, close=lambda: told.append("closed"))

    monkeypatch.setattr(progress, "_drawing", lambda: drawing)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with ByteBar("loading", 100) as bar:
        for clock[0], count in ((0.5, 3), (1.5, 4), (1.6, 5), (1.7, 6)):
            bar.advance(count)
    assert told == [(7, 100), 5, 6, "closed"]


def test_slow_work_shows_label_and_bytes(screen, monkeypatch):
    terminal, out = screen(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(progress, "REDRAWN", 0.0)
    with ByteBar("loading", 4000) as bar:
        threads = [threading.Thread(target=bar.advance, args=(1000,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("answer")
    assert "loading" in terminal.getvalue()
    assert "75%" in terminal.getvalue()
    assert "3.00k/4.00kB" in terminal.getvalue()
    assert out.getvalue() == "answer\n"


def test_what_was_done_before_the_bar_appears_counts(screen, monkeypatch):
    terminal = screen()
    monkeypatch.setattr(progress, "PATIENCE", 1e9)
    with ByteBar("loading", 4000) as bar:
        bar.advance(1000)
        bar.advance(1000)
        monkeypatch.setattr(progress, "PATIENCE", -1.0)
        bar.advance(1000)
    assert "3.00k/4.00kB" in terminal.getvalue()


def test_a_bar_has_no_thread_that_watches_it_and_no_lock_of_several_processes(screen, monkeypatch):
    screen()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    drawing = progress._drawing()
    monkeypatch.setattr(drawing, "monitor", None)
    with ByteBar("loading", 4000) as bar:
        bar.advance(1000)
        assert drawing.monitor is None
    assert isinstance(drawing.get_lock(), type(threading.RLock()))


def test_the_bar_leaves_nothing_behind_and_no_thread(screen, monkeypatch):
    terminal, threads = screen(), threading.active_count()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ByteBar("loading", 4000) as bar:
        bar.advance(1000)
        assert threading.active_count() == threads
    *_, blanks, rest = terminal.getvalue().split("\r")
    assert (blanks.strip(" "), rest) == ("", "")
    assert "\n" not in terminal.getvalue()


def test_a_prompt_is_counted_in_tokens(screen, monkeypatch):
    terminal = screen()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with PromptBar(500) as bar:
        bar.advance(128)
        assert "reading the prompt" in terminal.getvalue()
        assert "128/500 tokens" in terminal.getvalue()


def test_a_long_prompts_bar_stands_there_before_its_first_chunk(screen):
    terminal = screen()
    with PromptBar(512) as bar:
        bar.advance(32)
    assert terminal.getvalue() == ""
    with PromptBar(513):
        assert "0/513 tokens" in terminal.getvalue()


@pytest.mark.parametrize(("columns", "width"), [(0, 80), (60, 60), (100, 100)])
def test_the_bar_is_as_wide_as_its_terminal(monkeypatch, columns, width):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24 * bool(columns), columns, 0, 0))
    os.set_blocking(reader, False)
    with open(writer, "w", encoding="utf-8") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", terminal)
        with PromptBar(4000):
            shown = os.read(reader, 4096).decode()
    os.close(reader)
    assert shown.startswith("\rreading the prompt:")
    assert len(shown.strip()) == width - 1


def test_it_can_be_switched_off(screen, monkeypatch):
    terminal = screen()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ByteBar("loading", 10, enabled=False) as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_log_file_gets_nothing_not_even_an_empty_line(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    for bar in (ByteBar("loading", 10), PromptBar(4000)):
        with bar:
            bar.advance(10)
    assert log.getvalue() == ""
    monkeypatch.setattr("sys.stderr", None)  # as `pythonw` has it
    assert not progress.shown()


@pytest.mark.parametrize("name", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_nothing(screen, monkeypatch, name):
    terminal = screen()
    monkeypatch.setenv("TERM", name)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with ByteBar("loading", 10) as bar:
        bar.advance(10)
    assert terminal.getvalue() == ""
