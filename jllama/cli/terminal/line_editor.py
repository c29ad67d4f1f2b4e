"""The terminal's input side: line editing, history, completion, several lines, pasted text."""

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir

QUOTES = '"""'
Words = Callable[[str], Iterable[str]]  # the possible arguments of a command


class Terminal:
    """Reads messages and commands."""

    def __init__(self, commands: Iterable[str], arguments: Words) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=ChatCompleter(list(commands), arguments),
            complete_while_typing=False,
            multiline=True,
            key_bindings=_bindings(),
            prompt_continuation="… ",
            enable_open_in_editor=True,
            enable_suspend=True,
        )

    def read(self, prompt: str, default: str = "") -> str:
        """One message or command, which may have several lines.

        Raises:
          EOFError: Ctrl-D, or the terminal is gone.
          KeyboardInterrupt: Ctrl-C; `self.typed` tells whether that dropped a text.
        """
        return unquoted(without_surrogates(self._session.prompt(prompt, default=default)))

    @property
    def typed(self) -> bool:
        """Whether a text stood at the prompt when it was left."""
        return bool(self._session.default_buffer.text)


class ChatCompleter(Completer):
    """Commands, and what may follow them."""

    def __init__(self, commands: list[str], arguments: Words) -> None:
        self._commands, self._arguments = commands, arguments
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Those that fit what stands before the cursor."""
        command, blank, argument = document.text_before_cursor.partition(" ")
        if not command.startswith("/") or "\n" in command:
            return
        if not blank:
            yield from _fitting(command, self._commands)
        elif command in ("/save", "/load", "/read"):
            yield from self._paths.get_completions(Document(argument), complete_event)
        else:
            yield from _fitting(argument, self._arguments(command))


def _fitting(begun: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, start_position=-len(begun)) for word in words if word.startswith(begun))


def unfinished(text: str) -> bool:
    """The line goes on: it ends in a backslash, or triple quotes are open."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) % 2 == 1
    return (len(text) - len(text.rstrip("\\"))) % 2 == 1


def unquoted(text: str) -> str:
    """The text without the triple quotes around it."""
    inner = text.strip()
    if len(inner) >= 2 * len(QUOTES) and inner.startswith(QUOTES) and inner.endswith(QUOTES):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def without_surrogates(text: str) -> str:
    """Bytes of the terminal that were no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: Any) -> None:
        buffer = event.current_buffer
        if not unfinished(buffer.text) or not buffer.document.is_cursor_at_the_end:
            buffer.validate_and_handle()
            return
        if buffer.text.endswith("\\") and not buffer.text.lstrip().startswith(QUOTES):
            buffer.delete_before_cursor()
        buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    @bindings.add("escape", "c-j")  # typed before the prompt stood there: the terminal made it a line's end
    def new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add(Keys.Vt100MouseEvent)
    def ignore(event: Any) -> None:
        """Nobody asked for the mouse: it is a typed colour code, and prompt_toolkit would fail to read it."""

    return bindings


class _SafeHistory(FileHistory):
    """Readable by the user alone; goes on without a file that can't be read or written."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            _close_to_others(os.fsdecode(self.filename))
            super().store_string(without_surrogates(string))


def _close_to_others(path: str) -> None:
    """The file may be new, or one that others could read until now."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def _history() -> History:
    try:
        return _SafeHistory(str(cache_dir() / "chat_history"))
    except JllamaError:
        return InMemoryHistory()
