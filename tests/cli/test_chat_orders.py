"""Each command of the chat by itself: what it asks of the conversation, what it says; no model."""

import io
import json
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from jllama.chat.branches import Branch, Branches, Message, Round
from jllama.cli.terminal import batch, commands, keeping, loop
from jllama.cli.terminal.attachments import Attachment
from jllama.cli.terminal.state import Chat, LeaveError
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox


class Screen:
    def __init__(self):
        self.lines, self.styles, self.begun, self.markdown = [], [], [], True

    def say(self, text, style="dim"):
        self.lines.append(text)
        self.styles.append(style)

    def error(self, text):
        self.lines.append(f"error: {text}")

    def raw(self, sequence):
        self.lines.append(f"raw: {sequence}")

    def stream(self, pieces, begun=""):
        self.begun.append(begun)
        self.lines.append("".join(pieces))


class NoSession:
    def fork(self):
        return NoSession()


class Talk(Branches):
    """A conversation that answers `fine` and notes what it was asked."""

    calls, toolbox = (), Toolbox([])

    def __init__(self, *turns):
        super().__init__(NoSession())
        self.branch.messages = tuple(
            Message(role, text)
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        )
        self.asked, self.on_overflow = [], "drop_oldest"
        self.result = SimpleNamespace(
            generated_tokens=1,
            finish_reason="stop",
            stop_string=None,
            text="fine",
            prompt_tokens=3,
            reused_tokens=1,
            prefill_tokens_per_second=5.0,
            decode_tokens_per_second=7.0,
        )
        self.context_used, self.max_seq_len = 9, 64
        self.transcript = SimpleNamespace(turn_ends=())

    def _answer(self, kind, *given):
        self.asked.append((kind, *given))
        self.branch.messages = (*self.messages, Message("user", kind), Message("assistant", "fine"))
        yield "fine"

    def ask(self, text, settings):
        return self._answer("ask", text)

    def retry(self, settings):
        return self._answer("retry", settings)

    def resume(self, settings):
        return self._answer("resume")

    def edit(self, number, text, settings):
        return self._answer("edit", number, text)

    def undo(self, count):
        kept = len(self.messages) - 2 * count
        undone, self.branch.messages = self.messages[kept:], self.messages[:kept]
        return undone

    def clear(self):
        self.asked.append(("clear",))
        self.branch.messages = ()

    def set_system(self, text):
        self.asked.append(("system", text))
        self.branch.system = text


UNKNOWN = (
    "error: unknown command '/undoo' (did you mean '/undo'?); /help lists all, a blank before / sends it"
)


@pytest.fixture
def chat():
    return Chat(
        Talk(("one", "1"), ("two", "2"), ("three", "3")), GenerationSettings(max_new_tokens=9), Screen()
    )


def said(chat, text):
    chat.screen.lines.clear()
    loop.handle(chat, text)
    return chat.screen.lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("/show 1", ["> one", "1"]),
        ("/show 3", ["> three", "3"]),
        ("/show 0", ["error: turn 0 does not exist: there are 3 turns"]),
        ("/show 4", ["error: turn 4 does not exist: there are 3 turns"]),
        ("/edit 0", ["error: turn 0 does not exist: there are 3 turns"]),
        ("/edit 4 x", ["error: turn 4 does not exist: there are 3 turns"]),
        ("/show", ["  1  one\n     ↳ 1\n  2  two\n     ↳ 2\n  3  three\n     ↳ 3"]),
        (
            "/stats",
            ["read 2 tokens at 5 tok/s, reused 1 · wrote 1 at 7.0 tok/s · context 9 of 64 · complete"],
        ),
        ("/stats on", ["stats=on"]),
        ("/stats off", ["stats=off"]),
        ("/undo", ["taken back: three"]),
        ("/undo 2", ["taken back: two", "taken back: three"]),
        ("/set top_k=5", ["top_k=5"]),
        ("/system", ["system: (none)"]),
        ("/system Be kind.", ["system: Be kind."]),
        ("/exit now", ["error: /exit takes nothing behind it: 'now'"]),
        ("/model x", ["error: /model takes nothing behind it: 'x'; for another model start another chat"]),
        ("/clear", ["cleared"]),
        ("/undo 1234567890", ["error: '1234567890' is no number of a turn: /undo N"]),
        ("/show ²", ["error: '²' is no number of a turn: /show N"]),
        ("/show ٣", ["error: '٣' is no number of a turn: /show N"]),
        ("/fork b", ["on branch b; /switch main goes back"]),
        ("/fork", ["error: give the branch a name: /fork NAME"]),
        ("/switch", ["error: which branch? /switch NAME; there are main"]),
        ("/switch main", ["on branch main, 3 turns: three"]),
        ("/help undo", ["/undo [N]: takes back the last turn, or the last N"]),
        ("/help /undo", ["/undo [N]: takes back the last turn, or the last N"]),
        ("/help undoo", ["error: no command 'undoo' (did you mean '/undo'?)"]),
        ("/undoo", [UNKNOWN]),
        ("hello", ["fine"]),
        (" /undo", ["fine"]),
        ("/usr/bin\nis a path", ["fine"]),
        ("  \n", []),
    ],
)
def test_what_each_command_says(chat, text, lines):
    assert said(chat, text) == lines


def test_what_the_model_may_call_is_listed(chat):
    def sun(city: str, hour: int = 12) -> bool:
        """Is it up?

        More.
        """

    def now() -> str:
        """The time."""

    assert said(chat, "/tools") == ["none: start the chat with --tools=FILE.py"]
    chat.conversation.toolbox = Toolbox([sun, now])
    assert said(chat, "/tools") == ["sun(city, hour) Is it up? More.\nnow() The time."]


def test_tokens_of_the_messages_are_told(chat, monkeypatch):
    monkeypatch.setattr(commands.wording, "tokens", lambda conversation: f"{conversation.turns} turns")
    assert said(chat, "/tokens") == ["3 turns"]


@pytest.mark.parametrize("saved", [True, False])
def test_a_turn_with_calls_is_shown_whole(chat, saved):
    calls = (Call("1", "sun", '{"city": "Oslo"}'), Call("2", "now", "{}"))
    one = Round("I look.", calls, ("true", "x" * 1001))
    chat.conversation.branch.messages = (Message("user", "?"), Message("assistant", "Yes.", rounds=(one,)))
    assert said(chat, "/show 1") == [
        "> ?",
        'call: sun({"city": "Oslo"})\ngave: true',
        f"call: now({{}})\ngave: {'x' * 1000}… (1,001 characters)",
        "Yes.",
    ]


def test_an_answer_is_shown_in_no_style(chat):
    said(chat, "/show 1")
    assert chat.screen.styles == ["dim", ""]


def test_a_system_message_is_removed_by_a_dash(chat):
    assert said(chat, "/system -") == ["system: (none)"]
    said(chat, "/system")
    assert chat.conversation.asked == [("system", None)]


def test_nothing_was_said_yet():
    chat = Chat(Talk(), GenerationSettings(), Screen())
    chat.conversation.result.generated_tokens = 0
    chat.conversation.branch.messages = (Message("user", "a"), Message("assistant", "b"))
    assert said(chat, "/stats") == ["no answer yet"]  # those were loaded
    chat.conversation.branch.messages = ()
    assert said(chat, "/show") == ["nothing was said yet"]
    assert said(chat, "/stats") == ["no answer yet"]
    assert said(chat, "/tree") == ["  ◆  main  ← here"]
    assert said(chat, "/copy") == ["error: nothing to copy: there is no answer yet"]
    assert said(chat, "/switch main") == ["on branch main, 0 turns"]
    said(chat, "/continue")
    assert chat.screen.begun == [""]
    chat.settings = GenerationSettings(temperature=0.0)
    chat.conversation.branch.messages = ()
    assert said(chat, "/redo") == ["fine"]


@pytest.mark.parametrize(("temperature", "drawn"), [(0.0, (0.8, 0.95)), (0.5, (0.5, 1.0))])
def test_another_answer_is_drawn_where_greedy_would_repeat(chat, temperature, drawn):
    chat.settings = GenerationSettings(temperature=temperature, max_new_tokens=5)
    lines = said(chat, "/redo")
    ((_, used),) = chat.conversation.asked
    assert (used.temperature, used.top_p, used.max_new_tokens) == (*drawn, 5)
    assert len(lines) == (1 if temperature else 2)
    assert chat.settings.temperature == temperature


def test_what_stopped_before_its_first_word_calls_nothing(chat):
    """Though the answer before it has a call, which the user declined to wait for."""
    ran = []
    chat.conversation.calls = (Call("1", "sun", "{}"),)
    chat.tools = SimpleNamespace(results=ran.append)
    chat.conversation.ask = lambda text, settings: iter(())
    assert said(chat, "hello") == ["", "stopped before the first word: the conversation is as it was"]
    assert ran == []


def test_an_answer_that_goes_on_begins_with_what_stands_there(chat):
    said(chat, "/continue")
    assert chat.screen.begun == ["3"]


@pytest.mark.parametrize(
    ("text", "asked", "prefill"),
    [
        ("/edit 2 new  words", ("edit", 2, "new  words"), ""),
        ("/edit 1", None, "/edit 1 one"),
        ("/edit 3", None, "/edit 3 three"),
        ("/edit 4", None, ""),
        ("/edit 0", None, ""),
    ],
)
def test_a_turn_is_edited_or_laid_before_the_user(chat, text, asked, prefill):
    said(chat, text)
    assert (chat.conversation.asked, chat.prefill) == ([asked] if asked else [], prefill)


def test_clearing_forgets_the_files_too(chat):
    chat.attached.append(Attachment("a", "text", 1))
    said(chat, "/clear")
    assert (chat.conversation.asked, chat.attached) == ([("clear",)], [])


@pytest.mark.parametrize(
    ("sequence", "tool", "lines"),
    [
        ("\x1b]", None, ["raw: \x1b]", "copied 1 characters if the terminal allows it"]),
        ("\x1b]", "xsel", ["raw: \x1b]", "copied 1 characters with xsel"]),
        ("", "xsel", ["raw: ", "copied 1 characters with xsel"]),
        (
            "",
            None,
            ["error: the answer is too long for the terminal's clipboard, and there is no clipboard tool"],
        ),
    ],
)
def test_the_last_answer_is_copied(chat, monkeypatch, sequence, tool, lines):
    monkeypatch.setattr(commands.clipboard, "osc52", lambda text: sequence)
    monkeypatch.setattr(commands.clipboard, "copy_with_tool", lambda text: tool if text == "3" else 1 / 0)
    assert said(chat, "/copy") == lines


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/switch", ["main", "b"]),
        ("/delete", ["main"]),
        ("/stats", ["on", "off"]),
        ("/undo", []),
        ("/save", []),
    ],
)
def test_what_may_follow_a_command(chat, command, words):
    chat.conversation.fork("b")
    assert list(commands.arguments(command, chat.conversation)) == words
    assert "top_k=" in list(commands.arguments("/set", chat.conversation))
    assert "/undo" in list(commands.arguments("/help", chat.conversation))


def test_help_lists_each_command_once_with_its_meaning(chat):
    (text,) = said(chat, "/help")
    lines = text.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  /")]
    assert sorted(listed) == sorted(set(commands.COMMANDS) - set(commands.ALIASES))
    assert "  /undo [N]              takes back the last turn, or the last N" in lines
    assert lines[-1].startswith("Ctrl-C stops an answer")


def test_loading_tells_where_one_is(chat, monkeypatch):
    def load(conversation, path):
        conversation.fork("b")
        return GenerationSettings(top_k=7), ["a remark"]

    monkeypatch.setattr(keeping.archive, "load", load)
    assert said(chat, "/load 'my talk.json'") == ["a remark", "on branch b, 3 turns, 2 branches"]
    assert (chat.file, chat.settings.top_k, chat.unsaved_turns()) == ("my talk.json", 7, 0)
    chat.conversation.delete("main")
    monkeypatch.setattr(keeping.archive, "load", lambda conversation, path: (GenerationSettings(), []))
    assert said(chat, "/load x") == ["on branch b, 3 turns"]
    assert said(chat, "/load")[0].startswith("error: give a file: /load FILE")


WARNED = "{} not saved (/save FILE): {} again drops {}"


@pytest.fixture
def talked(chat, monkeypatch, tmp_path):
    """A turn on `main` is not saved, and two on `b` of which `c` has one."""
    for text in ("/fork b", "four", "/fork c", "/switch b", "five", "/switch main", "six"):
        said(chat, text)
    monkeypatch.setattr(keeping, "read_document", lambda path: None)
    monkeypatch.setattr(keeping.archive, "load", lambda *given: (GenerationSettings(), []))
    return chat


@pytest.mark.parametrize(
    ("command", "lost", "done"),
    [
        ("/load", "3 turns are", "on branch main, 4 turns, 3 branches"),
        ("/clear", "1 turn is", "cleared"),
        ("/delete b", "1 turn is", "deleted b, with 1 turn that no other branch has"),
    ],
)
def test_what_is_not_saved_is_dropped_at_the_second_word(talked, command, lost, done):
    text = f"{command} a.json" if command == "/load" else command
    warning = WARNED.format(lost, command, "it" if lost == "1 turn is" else "them")
    before = talked.conversation.tree()
    for between in ("/tree", "/help", "/load other.json" if command != "/load" else "/clear"):
        assert said(talked, text) == [warning]
        said(talked, between)  # so the next one is a first one
    assert talked.conversation.tree() == before
    assert said(talked, text) == [warning]
    said(talked, " ")  # is no input
    assert said(talked, text) == [done]


def test_leaving_with_turns_that_are_not_saved_takes_two_words(talked):
    for text in ("/exit", "/tree", "/quit"):
        said(talked, text)
    assert talked.screen.lines == [WARNED.format("3 turns are", "/exit", "them")]
    with pytest.raises(LeaveError):
        loop.handle(talked, "/exit")


def test_what_drops_nothing_for_good_warns_of_nothing(talked, monkeypatch):
    assert said(talked, "/delete c") == ["deleted c"]  # b has its turn
    assert said(talked, "/delete main") == [
        "error: 'main' is the current branch: switch to another one first"
    ]
    assert said(talked, "/delete nowhere")[0].startswith("error: no branch 'nowhere'")
    monkeypatch.undo()
    assert said(talked, "/load nowhere.json")[0].startswith("error: cannot read ")
    talked.mark_saved("a.json")
    assert said(talked, "/delete b") == ["deleted b, with 2 turns that no other branch has"]
    assert said(talked, "/clear") == ["cleared"]


def test_another_file_s_name_is_a_second_word_too(talked, monkeypatch):
    assert said(talked, "/load a.json")[0].startswith("3 turns are not saved")
    monkeypatch.setattr(keeping.archive, "load", None)
    with pytest.raises(TypeError):  # it is called
        loop.handle(talked, "/load b.json")


def test_leaving_and_what_is_no_mistake_of_the_user(chat):
    for text in ("/exit", "/quit"):
        with pytest.raises(LeaveError):
            loop.handle(chat, text)
    chat.conversation.ask = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.handle(chat, "hello")

    def full(*_):
        raise MemoryError

    chat.conversation.ask = full
    assert said(chat, "hello")[0].startswith("error: out of memory: choose ")

    def pressed(*_):
        raise KeyboardInterrupt

    chat.conversation.ask = pressed
    assert said(chat, "hello") == []


class Piped(io.StringIO):
    """What a reader of a pipe has seen: what was flushed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        self.seen.append(self.getvalue())


@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_in_a_pipe_is_seen_as_it_comes(monkeypatch, as_json):
    talk, pipe = Talk(), Piped()
    talk.model = SimpleNamespace(dtype="float32", name="tiny", params=jnp.zeros(1))
    talk.result = SimpleNamespace(summary=lambda: {"finish_reason": "stop"})

    def ask(text, settings):
        if text == "fail":
            raise JllamaError("né")
        for piece in ("a", "b"):
            assert as_json or piece == "a" or pipe.seen[-1].endswith("a")
            yield piece
        talk.branch.messages = (Message("user", text), Message("assistant", "ab"))

    talk.ask = ask
    monkeypatch.setattr(sys, "stdout", pipe)
    batch.run(talk, GenerationSettings(), ["x", "fail"], as_json=as_json, stats=False)
    assert pipe.seen[-1] == pipe.getvalue()
    if as_json:
        first, second = pipe.getvalue().splitlines()
        assert any(seen == first + "\n" for seen in pipe.seen)
        assert json.loads(first)["text"] == "ab"
        assert second == '{"error": "né"}'
    else:
        assert pipe.getvalue() == "ab\n"


def test_a_branch_of_a_branch_holds_what_was_said_before(chat):
    said(chat, "/fork b")
    said(chat, "four")
    assert isinstance(chat.conversation.branch, Branch)
    assert said(chat, "/tree")[0].splitlines() == [
        "  1  one  ↳ 1",
        "  2  two  ↳ 2",
        "  3  three  ↳ 3",
        "  ◆  main",
        "└─  4  ask  ↳ fine",
        "    ◆  b  ← here",
    ]
    assert chat.unsaved_turns() == 1
