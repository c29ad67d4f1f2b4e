"""The chat's line editor, with keys out of a pipe, and its loop; no model, no terminal."""

import contextlib
import stat
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from jllama.cli.terminal import line_editor, loop
from jllama.cli.terminal.state import LeaveError


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """What is read when these keys come."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(create_pipe_input())
        stack.enter_context(create_app_session(input=pipe, output=DummyOutput()))
        terminal = line_editor.Terminal(["/help", "/load"], lambda command: ["one"])

        def typed(keys, default=""):
            pipe.send_text(keys)
            return terminal.read("> ", default)

        typed.terminal, typed.history = terminal, tmp_path / "chat_history"
        yield typed


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("one\r", "one"),
        ("one \\\rtwo\r", "one \ntwo"),
        ("one\\\\\r", "one\\\\"),
        ('"""a\rb"""\r', "a\nb"),
        ('"""a\\\rb"""\r', "a\\\nb"),
        ("a\x1b\rb\r", "a\nb"),
        ("a\x1b\nb\r", "a\nb"),
        ("a\\\x1b[D\r", "a\\"),  # the cursor stands before the backslash
        ("\x1b[200~a\r/b\x1b[201~\r", "a\n/b"),
    ],
)
def test_keys_become_a_message(typed, keys, text):
    assert typed(keys) == text


def test_a_prompt_takes_lines_and_lends_its_text_to_an_editor_and_its_terminal_to_the_shell(typed):
    session = typed.terminal._session
    assert (session.multiline, session.complete_while_typing) == (True, False)
    assert (session.enable_open_in_editor, session.enable_suspend) == (True, True)
    assert session.prompt_continuation == "… "


def test_what_stands_there_already_is_edited(typed):
    assert typed("!\r", "given") == "given!"
    assert typed("new\r") == "new"


def test_how_a_prompt_is_left(typed):
    with pytest.raises(KeyboardInterrupt):
        typed("half\x03")
    assert typed.terminal.typed
    with pytest.raises(KeyboardInterrupt):
        typed("\x03")
    assert not typed.terminal.typed
    with pytest.raises(EOFError):
        typed("\x04")


def test_lines_are_kept_for_the_user_alone(typed):
    typed.history.touch()
    typed.history.chmod(0o644)
    assert typed("first\r") == "first"
    assert "+first" in typed.history.read_text()
    assert stat.S_IMODE(typed.history.stat().st_mode) == 0o600
    assert typed("\x1b[A\r") == "first"


def test_a_history_that_can_not_be_kept_costs_nothing(typed):
    typed.history.mkdir()
    assert typed("first\r") == "first"


# The loop.


class Keys:
    """Gives what was typed; an exception is how the prompt was left."""

    typed = False

    def __init__(self, *given):
        self._given, self.asked = [*given], []

    def read(self, prompt, default=""):
        self.asked.append((prompt, default))
        given = self._given.pop(0)
        if isinstance(given, str):
            return given
        raise given


def talking():
    said = []
    screen = SimpleNamespace(say=said.append)
    conversation = SimpleNamespace(current="main", branches={"main": 0})
    chat = SimpleNamespace(conversation=conversation, prefill="", screen=screen, said=said, inputs=0)
    chat.unsaved_turns = lambda: 0
    return chat


CTRL_C, CTRL_D = KeyboardInterrupt, EOFError


def test_the_prompt_names_the_branch_where_there_are_several():
    chat, keys = talking(), Keys("a", "b")
    chat.prefill = "/edit 1 x"
    assert loop.read(chat, keys) == "a"
    chat.conversation.branches["other"] = 0
    assert loop.read(chat, keys) == "b"
    assert keys.asked == [("> ", "/edit 1 x"), ("main> ", "")]


def test_an_input_is_a_command_or_a_message(monkeypatch):
    chat, done = talking(), []
    chat.ask = done.append
    commands = {"/c": lambda chat, words: done.append(("/c", words))}
    monkeypatch.setattr(loop.commands, "find", lambda text: commands.get(text.split()[0]))
    for text in ("hello", " \n", "/c  a b \n", "/c"):
        loop.handle(chat, text)
    assert done == ["hello", ("/c", "a b"), ("/c", "")]


@pytest.mark.parametrize(
    ("given", "code"), [([CTRL_D()], 0), ([CTRL_C(), CTRL_C()], 130), (["a", "leave"], 0)]
)
def test_a_talk_has_a_banner_and_an_end(monkeypatch, given, code):
    chat, handled = talking(), []

    def handle(chat, text):
        handled.append(text)
        if text == "leave":
            raise LeaveError

    monkeypatch.setattr(loop, "Terminal", lambda names, arguments: Keys(*given))
    monkeypatch.setattr(loop, "quiet_typing", contextlib.nullcontext)
    monkeypatch.setattr(loop, "handle", handle)
    assert loop.run(chat, "banner") == code
    assert chat.said[0] == "banner"
    assert handled == [text for text in given if isinstance(text, str)]
