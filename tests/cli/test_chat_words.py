"""What the chat says, word for word, and how it reads what was typed: no model."""

import json
import subprocess
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from jllama.answer import Result
from jllama.chat.branches import Branch, Message, Round, TreeNode
from jllama.chat.conversation import Conversation
from jllama.cli.terminal import batch, clipboard, keeping, loop, tool_calls, wording
from jllama.cli.terminal import settings as chat_settings
from jllama.cli.terminal.attachments import Attachment, file_and_words, with_files
from jllama.cli.terminal.line_editor import ChatCompleter, Terminal, unfinished, unquoted, without_surrogates
from jllama.cli.terminal.screen import Screen
from jllama.cli.terminal.state import Chat
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox
from tests.support.screens import PlainScreen


def turn(question, answer, ids=None):
    return (Message("user", question), Message("assistant", answer, ids))


def result(**fields):
    counts = dict(prompt_tokens=30, reused_tokens=10, token_ids=[1, 2, 3, 4])
    times = dict(prefill_seconds=2.0, decode_seconds=3.0)
    return Result(**dict(text="x", finish_reason="stop", **counts, **times) | fields)


class Talk:
    """A conversation that answers from a list."""

    calls, toolbox = (), Toolbox([])

    def __init__(self, *turns, system=None, dropped=0, **fields):
        messages = tuple(message for pair in turns for message in pair)
        self.branch = Branch(session=None, system=system, messages=messages, dropped=dropped)
        self.branches, self.current = {"main": self.branch}, "main"
        self.context_used, self.max_seq_len, self.on_overflow = 34, 100, "drop"
        self.result, self.transcript = result(**fields), SimpleNamespace(turn_ends=("<|end|>",))
        encode = lambda text, add_special=True: [0] * (len(text) + add_special)  # noqa: E731
        tokenizer = SimpleNamespace(encode=encode)
        words = dict(dtype="float32", name="tiny", config=SimpleNamespace(context_length=9))
        words |= dict(params=jnp.zeros(1))
        self.model = SimpleNamespace(need_tokenizer=lambda: tokenizer, **words)
        self.answers, self.asked = [], []

    @property
    def messages(self):
        return self.branch.messages

    @property
    def turns(self):
        return len(self.messages) // 2

    def ask(self, message, settings):
        self.asked.append(message)
        pieces = self.answers.pop(0)
        if isinstance(pieces, BaseException):
            raise pieces
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        if pieces:  # else it was stopped before its first word
            self.branch.messages += turn(message, "".join(pieces))
        self.branch.dropped += self.drops.pop(0) if getattr(self, "drops", None) else 0


# How an answer ended.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(), "complete"),
        (dict(finish_reason="interrupted"), "interrupted"),
        (dict(finish_reason="length"), "max_new_tokens reached"),
        (dict(finish_reason="length", prompt_tokens=95), "max_new_tokens reached"),
        (dict(finish_reason="length", prompt_tokens=96), "the context is full"),
        (dict(finish_reason="length", prompt_tokens=97), "the context is full"),
        (dict(stop_string="<|end|>"), "complete"),
        (dict(stop_string="User:\n"), "stopped at 'User:\\n'"),
    ],
)
def test_why_an_answer_ended(fields, words):
    assert wording.reason(Talk(**fields)) == words


def test_statistics_in_one_line():
    assert wording.statistics(Talk()) == (
        "read 20 tokens at 10 tok/s, reused 10 · wrote 4 at 1.0 tok/s · context 34 of 100 · complete"
    )


def test_numbers_of_things():
    assert [wording.turns(n) for n in (0, 1, 2, 2000)] == ["0 turns", "1 turn", "2 turns", "2,000 turns"]
    assert wording.unsaved(0) == ""
    assert wording.unsaved(1) == "1 turn is not saved (/save FILE): "
    assert wording.unsaved(2) == "2 turns are not saved (/save FILE): "
    gone = "context full: the oldest {} in the context, the model does not see that any more"
    assert wording.dropped(1) == gone.format("turn no longer fits").replace(" in the context", "")
    assert wording.dropped(3) == gone.format("3 turns no longer fit").replace(" in the context", "")


def test_a_text_in_one_line():
    assert wording.one_line(" a\n b\t c ") == "a b c"
    assert wording.one_line("x" * 72) == "x" * 72
    assert wording.one_line("x" * 73) == "x" * 71 + "…"
    assert wording.one_line("ab cd", 4) == "ab …"
    assert wording.one_line("a" + " " * 300 + "b") == "a"


def test_a_long_text_is_shortened():
    assert wording.shortened("x\n" * 500) == "x\n" * 500
    assert wording.shortened("x" * 1001) == "x" * 1000 + "… (1,001 characters)"
    assert wording.call(Call("1", "f", "y" * 2000)) == f"f({'y' * 1000}… (2,000 characters))"


def test_control_characters_are_shown():
    assert wording.printable("a\x00\x1b\t\n\r\x7f\x80\x9f\xa0é") == "a␀␛\t\n␍\ufffd\ufffd\ufffd\xa0é"


def test_the_tokens_of_each_message():
    talk = Talk(turn("abc", "de"), turn("f", "ghij", (1, 2)), system="be kind")
    assert wording.tokens(talk).splitlines() == [
        "context 34 of 100 tokens",
        "system      7",
        "  1  message      3  answer      2",
        "  2  message      1  answer      2",
    ]
    assert wording.tokens(talk, last=1).splitlines()[2:] == [
        "… the last 1 of 2 turns:",
        "  2  message      1  answer      2",
    ]
    assert "… the last" not in wording.tokens(talk, last=2)
    assert len(wording.tokens(Talk(*[turn("a", "b")] * 30)).splitlines()) == 22


def test_the_history_tells_what_left_the_context():
    talk = Talk(turn("one", "1"), turn("two", "2"), system="kind", dropped=1)
    assert wording.history(talk).splitlines() == [
        "system: kind", "  1  one (no longer in the context)", "     ↳ 1", "  2  two", "     ↳ 2",
    ]  # fmt: skip
    assert wording.history(Talk()) == ""


def test_the_tree_of_branches():
    a, b, c, d = (turn(letter, letter.upper()) for letter in "abcd")
    leaf = dict(children=[])
    root = TreeNode(
        turns=[a],
        ends=["main"],
        children=[
            TreeNode(turns=[b, c], ends=["x", "y"], **leaf),
            TreeNode(turns=[d], ends=["z"], **leaf),
        ],
    )
    talk = SimpleNamespace(tree=lambda: root, current="y")
    assert wording.tree(talk).splitlines() == [
        "  1  a  ↳ A",
        "  ◆  main",
        "├─  2  b  ↳ B",
        "│   3  c  ↳ C",
        "│   ◆  x",
        "│   ◆  y  ← here",
        "└─  2  d  ↳ D",
        "    ◆  z",
    ]
    nothing = SimpleNamespace(tree=lambda: TreeNode(turns=[], ends=[], children=[]), current="main")
    assert wording.tree(nothing) == "nothing was said yet"


# Settings as they are typed.


@pytest.fixture(autouse=True)
def matched(monkeypatch):
    """What was compiled: the tokenizer, the size of the vocabulary, and what must match."""
    seen = []
    monkeypatch.setattr(
        chat_settings,
        "matcher_for",
        lambda words, size, settings: seen.append((words, size, settings.constraint)),
    )
    return seen


def settings_chat(**fields):
    screen = SimpleNamespace(markdown=True)
    model = SimpleNamespace(need_tokenizer=lambda: "words", config=SimpleNamespace(vocab_size=9))
    talk = SimpleNamespace(on_overflow="drop", model=model)
    return SimpleNamespace(
        settings=GenerationSettings(**fields), conversation=talk, screen=screen, show_stats=False
    )


@pytest.mark.parametrize(
    ("typed", "held", "shown"),
    [
        ("temperature=0.5", 0.5, "0.5"),
        ("temperature 0.5", 0.5, "0.5"),
        ("--temperature = 0.5", 0.5, "0.5"),
        ("temperature =0.5", 0.5, "0.5"),
        ("top_k=7", 7, "7"),
        ("seed=5", 5, "5"),
        ("seed=none", None, "none"),
        ("seed=NONE", None, "none"),
        ("seed=", None, "none"),
        ("ignore_eos=on", True, "on"),
        ("ignore_eos=TRUE", True, "on"),
        ("ignore_eos 1", True, "on"),
        ("ignore_eos=off", False, "off"),
        ("ignore_eos=false", False, "off"),
        ("ignore_eos=0", False, "off"),
        ("stop=a\\nb", ("a\nb",), '["a\\nb"]'),
        ('stop=["a","é"]', ("a", "é"), '["a", "é"]'),
        ("stop=", (), ""),
        ("stop_token_ids=5", (5,), "(5,)"),
        ("stop_token_ids=5, 6 7", (5, 6, 7), "(5, 6, 7)"),
        ("stop_token_ids=(5, 6)", (5, 6), "(5, 6)"),
        ("stop_token_ids=[5]", (5,), "(5,)"),
        ("stop_token_ids=", (), "()"),
        ("stop_token_ids=none", (), "()"),
        ("stop a = b", ("a = b",), '["a = b"]'),
        ('choice=["none", " "]', ("none", " "), '["none", " "]'),
        ("choice=none", (), "none"),
        ("grammar=none", None, "none"),
        ("logit_bias=3=1.5,4=-2", {3: 1.5, 4: -2.0}, "3=1.5,4=-2.0"),
        ("logit_bias=", {}, ""),
        ("logit_bias=3=1,", {3: 1.0}, "3=1.0"),
    ],
)
def test_a_setting_is_taken_as_typed_and_shown(typed, held, shown):
    chat = settings_chat(temperature=1.0, top_k=3, seed=1, ignore_eos="on" not in typed, stop=("z",))
    name = chat_settings.change(chat, typed)
    assert typed.startswith((name, f"--{name}"))
    kept = getattr(chat.settings, name)
    assert (dict(kept) if name == "logit_bias" else kept) == held
    assert chat_settings.value(chat, name) == shown
    others = {n for n in GenerationSettings.__dataclass_fields__ if n != name}
    before = settings_chat(
        temperature=1.0, top_k=3, seed=1, ignore_eos="on" not in typed, stop=("z",)
    ).settings
    assert all(getattr(chat.settings, n) == getattr(before, n) for n in others)


def test_what_an_answer_must_match_is_a_text_or_a_file_and_one_at_a_time(tmp_path):
    pytest.importorskip("llguidance")
    chat, schema, grammar = settings_chat(), tmp_path / "s.json", tmp_path / "g.gbnf"
    schema.write_text('{"const": 7}')
    grammar.write_text('root ::= "a"')
    for typed in (f"json_schema={schema}", 'json_schema={"const": 7}'):
        chat_settings.change(chat, typed)
        assert chat.settings.constraint == ("json_schema", '{"const": 7}')
    for typed, words in (
        (f"grammar={grammar}", "json_schema holds already: /set json_schema=none first"),
        ("json_schema={", "is no JSON"),
        ("json_schema=nowhere.json", "cannot read nowhere.json"),
    ):
        with pytest.raises(JllamaError, match=words):
            chat_settings.change(chat, typed)
    for typed in ("json_object=off", "json_schema=none", f"grammar={grammar}"):
        chat_settings.change(chat, typed)
    assert chat.settings.constraint == ("grammar", 'root ::= "a"')
    chat_settings.change(chat, 'grammar=root ::= "b"')
    assert chat.settings.constraint == ("grammar", 'root ::= "b"')


@pytest.mark.parametrize(
    ("typed", "constraint"),
    [("regex=(", ("regex", "(")), ("json_object=on", ("json_object", '{"type": "object"}'))],
)
def test_what_can_not_be_matched_is_refused_at_once(monkeypatch, matched, typed, constraint):
    chat = settings_chat(temperature=0.5)
    before = chat.settings
    for other in ("top_k=3", "regex=none", "json_object=off"):
        chat_settings.change(chat, other)
    assert matched == []
    chat.settings = before
    chat_settings.change(chat, typed)
    assert (matched, chat.settings.constraint) == ([("words", 9, constraint)], constraint)
    chat.settings = before

    def refuse(*given):
        raise JllamaError("unclosed")

    monkeypatch.setattr(chat_settings, "matcher_for", refuse)
    with pytest.raises(JllamaError, match="unclosed"):
        chat_settings.change(chat, typed)
    assert chat.settings is before


def test_the_chats_own_settings():
    chat = settings_chat()
    for typed, name in (
        ("stats=on", "stats"),
        ("markdown=off", "markdown"),
        ("on_overflow=stop", "on_overflow"),
    ):
        assert chat_settings.change(chat, typed) == name
    assert (chat.show_stats, chat.screen.markdown, chat.conversation.on_overflow) == (True, False, "stop")
    listed = dict(line.strip().split("=", 1) for line in chat_settings.listing(chat).splitlines())
    assert list(listed) == [*GenerationSettings.__dataclass_fields__, "on_overflow", "stats", "markdown"]
    assert (listed["stats"], listed["markdown"], listed["on_overflow"]) == ("on", "off", "stop")
    assert listed["temperature"] == str(GenerationSettings().temperature)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("temprature=1", "no setting 'temprature' (did you mean 'temperature'?)"),
        ("temperature", "give a value: /set KEY=VALUE"),
        ("temperature=x", "temperature=x must be a number"),
        ("top_k=1.5", "top_k=1.5 must be a whole number"),
        ("seed=x", "seed=x must be a whole number"),
        ("stats=2", "stats=2 must be on or off"),
        ("stop_token_ids=5,x", "stop_token_ids=x must be a whole number"),
        ("stop=[", "stop must be one text or a JSON list"),
        ("stop=" + "[" * 100_000, "stop must be one text or a JSON list"),
        ("stop=[1", "stop must be one text or a JSON list"),
        ("logit_bias=x", "give TOKEN_ID=VALUE"),
        (f"temperature={'y' * 50}", f"temperature={'y' * 40} must be a number"),
        (f"{'k' * 50}=1", f"no setting '{'k' * 40}'"),
    ],
)
def test_a_setting_that_is_none_is_refused_and_nothing_changes(typed, words):
    chat = settings_chat()
    before = chat.settings
    with pytest.raises(JllamaError) as error:
        chat_settings.change(chat, typed)
    assert words in str(error.value)
    assert chat.settings is before


# Files in messages.


@pytest.mark.parametrize(
    ("argument", "name", "words"),
    [
        ("notes", "notes", ""),
        ("notes what is  it", "notes", "what is  it"),
        ("my notes.txt", "my notes.txt", ""),
        ("my notes.txt  what ", "my notes.txt", "what"),
        ("'my notes.txt' what", "my notes.txt", "what"),
        ('"my notes.txt"', "my notes.txt", ""),
        ("'open what", "'open", "what"),
        ("absent  what is", "absent", "what is"),
        ("~/at home.txt what", "~/at home.txt", "what"),
    ],
)
def test_a_file_and_the_words_behind_it(tmp_path, monkeypatch, argument, name, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for known in ("my notes.txt", "my", "at home.txt"):
        (tmp_path / known).touch()
    assert file_and_words(argument) == (name, words)


def test_files_stand_before_the_words():
    files = [Attachment("a", "\none\n\n", 1), Attachment("b", "two", 1)]
    assert with_files(files, "words") == "one\n\ntwo\n\nwords"
    assert with_files(files, "") == "one\n\ntwo"
    assert with_files([], "words") == "words"
    assert with_files([Attachment("a", "\n  indented \n", 1)], "words") == "  indented \n\nwords"


def file_talk(max_seq_len):
    talk = Talk()
    talk.max_seq_len = max_seq_len
    talk.may_grow = Conversation.may_grow.fget(talk)
    talk.encode = lambda messages: [0] * sum(len(message.content) + 3 for message in messages)
    return talk


@pytest.mark.parametrize(("size", "fits"), [(8, False), (9, True)])
def test_a_file_leaves_room_for_a_token(tmp_path, size, fits):
    (tmp_path / "a").write_text("12345")
    if fits:
        file = Attachment.read(str(tmp_path / "a"), file_talk(size), [])
        assert (file.name, file.text, file.tokens) == (str(tmp_path / "a"), "12345", 5)
    else:
        with pytest.raises(
            JllamaError,
            match="has 5 tokens: too long for the context of 8; give a part of it, or start with a larger",
        ):
            Attachment.read(str(tmp_path / "a"), file_talk(size), [])
    with pytest.raises(
        JllamaError, match=r"too long behind the other files for the context of 11; give a part of it$"
    ):
        Attachment.read(str(tmp_path / "a"), file_talk(11), [Attachment("b", "x", 1)])


def test_a_file_is_read_up_to_what_any_context_takes(tmp_path):
    talk = file_talk(100)
    talk.encode = lambda messages: []
    (tmp_path / "a").write_bytes(b"x" * 3200)
    assert len(Attachment.read(str(tmp_path / "a"), talk, []).text) == 3200
    (tmp_path / "a").write_bytes(b"x" * 3201)
    with pytest.raises(JllamaError, match="has more than 3,200 bytes"):
        Attachment.read(str(tmp_path / "a"), talk, [])
    (tmp_path / "a").write_bytes("\ufeffa\r\nb\r".encode())
    assert Attachment.read(str(tmp_path / "a"), talk, []).text == "a\nb\r"


# The clipboard.


def test_the_terminals_own_sequence():
    assert clipboard.osc52("hé\ud800") == "\x1b]52;c;aMOpPw==\a"
    assert len(clipboard.osc52("x" * 75_000)) == 100_000 + 8
    assert clipboard.osc52("x" * 75_001) == ""


def test_the_first_tool_that_works_copies(monkeypatch):
    tried = []

    def run(tool, *, input, timeout, **quiet):
        tried.append((*tool, input))
        assert set(quiet) == {"stdout", "stderr", "check"}
        assert quiet["stdout"] == quiet["stderr"] == subprocess.DEVNULL
        if tool[0] == "wl-copy":
            raise subprocess.TimeoutExpired(tool, timeout)
        if tool[0] == "pbcopy":
            raise OSError
        return SimpleNamespace(returncode=int(tool[0] == "xclip"))

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert clipboard.copy_with_tool("é") is None
    assert tried == []
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert clipboard.copy_with_tool("é\ud800") == "xsel"
    given = "é?".encode()
    assert tried == [
        ("pbcopy", given), ("wl-copy", given), ("xclip", "-selection", "clipboard", given),
        ("xsel", "--clipboard", "--input", given),
    ]  # fmt: skip


# What is typed.


def test_a_question_about_a_tool_is_asked_at_the_terminal(monkeypatch):
    session = SimpleNamespace(prompt=lambda question: f"{question}!")
    monkeypatch.setattr(tool_calls, "PromptSession", lambda: session)
    runner = tool_calls.ToolRunner(Toolbox([]), None)
    assert runner._ask("run it? ") == "run it? !"


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ("a", False),
        ("a\\", True),
        ("a\\\\", False),
        ("\\\\\\", True),
        ("", False),
        ('"""', True),
        ('"""a\\', True),
        ('"""a"""', False),
        (' """a', True),
        ('"""a"""\\', False),
        ('a"""', False),
        ('a """ \\', True),
    ],
)
def test_a_line_that_goes_on(text, goes_on):
    assert unfinished(text) == goes_on


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ('"""a"""', "a"),
        (' """\na\nb\n""" ', "a\nb"),
        ('""""""', ""),
        ('"""""', '"""""'),
        ('"""a', '"""a'),
        ('a"""', 'a"""'),
        (" a ", " a "),
        ('""" a """', " a "),
        ('"""a""" b', '"""a""" b'),
    ],
)
def test_quotes_around_a_text_go(text, inner):
    assert unquoted(text) == inner


def test_bytes_that_were_no_utf8():
    assert without_surrogates("a\udcffé") == "a\ufffdé"


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [
        ("/s", [("/save", -2), ("/set", -2)]),
        ("/", [("/save", -1), ("/set", -1), ("/load", -1)]),
        ("/set te", [("temperature=", -2)]),
        ("/set ", [("temperature=", 0), ("top_k=", 0)]),
        ("s", []),
        (" /s", []),
        ("/s\n", []),
        ("hello /s", []),
        ("/load no", [("tes", 0)]),
        ("/read no", [("tes", 0)]),
        ("/save no", [("tes", 0)]),
    ],
)
def test_what_completes(tmp_path, monkeypatch, begun, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    words = {"/set": ["temperature=", "top_k="]}
    completer = ChatCompleter(["/save", "/set", "/load"], lambda command: words[command])
    found = [(c.text, c.start_position) for c in completer.get_completions(Document(begun), CompleteEvent())]
    assert found == wanted


# The loop.


class Typist:
    """A terminal at which keys are pressed: texts, or exceptions with what stood there."""

    def __init__(self, *presses):
        self.presses, self.typed, self.prompts = list(presses), False, []

    def read(self, prompt, default=""):
        self.prompts.append((prompt, default))
        press = self.presses.pop(0)
        if isinstance(press, str):
            return press
        error, self.typed = press
        raise error


C, D = KeyboardInterrupt, EOFError
HINT_C, HINT_D = "Ctrl-C again or Ctrl-D leaves", "Ctrl-D again leaves"
LOST = "1 turn is not saved (/save FILE): "


@pytest.mark.parametrize(
    ("saved", "presses", "ends", "said"),
    [
        (True, [(C, False), (C, False)], C, [HINT_C]),
        (True, [(D, False)], D, []),
        (True, [(C, False), (D, False)], D, [HINT_C]),
        (True, [(C, True), "x"], "x", []),
        (True, [(C, False), (C, True), (C, False), "x"], "x", [HINT_C, HINT_C]),
        (False, [(D, False), (D, False)], D, [LOST + HINT_D]),
        (False, [(D, False), "x"], "x", [LOST + HINT_D]),
        (False, [(C, False), (D, False)], D, [LOST + HINT_C]),
        (False, [(D, True), (D, True)], D, [LOST + HINT_D]),
    ],
)
def test_leaving_takes_two_presses_where_something_would_be_lost(saved, presses, ends, said):
    chat = Chat(Talk(), GenerationSettings(), PlainScreen())
    if not saved:
        chat.conversation.branch.messages = turn("a", "b")
    chat.prefill = "/edit 1 a"
    typist = Typist(*presses)
    if isinstance(ends, str):
        assert loop.read(chat, typist) == ends
    else:
        with pytest.raises(ends):
            loop.read(chat, typist)
    assert chat.screen.lines == said
    assert typist.prompts[0] == ("> ", "/edit 1 a")
    assert all(prompt == ("> ", "") for prompt in typist.prompts[1:])


@pytest.mark.parametrize(
    ("error", "code"), [(EOFError(), 0), (loop.LeaveError(), 0), (KeyboardInterrupt(), 130)]
)
def test_a_chat_offers_its_commands_and_ends(monkeypatch, error, code):
    made = []
    talk = Talk(turn("a", "b"))
    chat = Chat(talk, GenerationSettings(), PlainScreen())
    talk.ask = lambda *given: iter(())
    typed = iter(["", "/stats on", error])

    def read(chat, terminal):
        text = next(typed)
        if isinstance(text, BaseException):
            raise text
        return text

    monkeypatch.setattr(loop, "Terminal", lambda *given: made.append(given))
    monkeypatch.setattr(loop, "read", read)
    assert loop.run(chat, "a banner") == code
    assert chat.screen.lines == ["a banner", "stats=on"]
    ((offered, arguments),) = made
    assert "/undo" in offered
    assert not {"/quit", "/retry"} & set(offered)  # other names of the same
    assert list(arguments("/switch")) == ["main"]


def test_the_prompt_names_the_branch_where_there_are_several():
    chat = Chat(Talk(), GenerationSettings(), PlainScreen())
    chat.conversation.branches["other"] = chat.conversation.branch
    typist = Typist("x")
    loop.read(chat, typist)
    assert typist.prompts == [("main> ", "")]


def test_an_answer_and_what_is_said_about_it():
    talk = Talk(turn("a", "b"))
    chat = Chat(talk, GenerationSettings(max_new_tokens=7), PlainScreen())
    talk.answers, talk.drops = [["c", "d"], ["e"], [], JllamaError("no room")], [0, 2, 0]
    chat.ask("hello")
    assert chat.screen.lines == ["cd"]
    chat.screen.lines.clear()
    chat.show_stats = True
    chat.attached = [Attachment("f", "file", 1)]
    talk.result = result(finish_reason="length")
    chat.ask("more")
    assert talk.asked[-1] == "file\n\nmore"
    assert chat.attached == []
    assert chat.screen.lines == [
        "e", wording.dropped(2), "[max_new_tokens reached: /continue, or /set max_new_tokens=14]",
        wording.statistics(talk),
    ]  # fmt: skip
    chat.show_stats = False
    chat.attached = [Attachment("f", "file", 1)]
    chat.ask("stopped before the first word")
    assert [file.name for file in chat.attached] == ["f"]
    assert chat.screen.lines[-1].startswith("stopped before the first word: ")
    with pytest.raises(JllamaError, match="no room"):
        chat.ask("too long")
    assert len(chat.attached) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(), []),
        (dict(finish_reason="interrupted"), ["[stopped]"]),
        (dict(text=" \n"), ["[an empty answer]"]),
        (dict(finish_reason="interrupted", text=""), ["[stopped]"]),
        (dict(finish_reason="length", prompt_tokens=96), ["[the context is full]"]),
    ],
)
def test_the_end_of_an_answer(fields, said):
    talk = Talk(**fields)
    talk.answers = [["x"]]
    chat = Chat(talk, GenerationSettings(), PlainScreen())
    chat.ask("a")
    assert chat.screen.lines == ["x", *said]


def test_what_is_saved_is_told_by_the_messages_themselves():
    talk = Talk(turn("a", "b"))
    chat = Chat(talk, GenerationSettings(), PlainScreen(), file="x.json")
    assert (chat.file, chat.unsaved_turns()) == ("x.json", 0)
    talk.branches["other"] = Branch(session=None, messages=talk.branch.messages + turn("c", "d"))
    talk.branch.messages += turn("c", "d")
    assert chat.unsaved_turns() == 2
    chat.mark_saved("y.json")
    assert (chat.file, chat.unsaved_turns()) == ("y.json", 0)
    talk.branch.messages = talk.branch.messages[:2] + turn("c", "d")
    assert chat.unsaved_turns() == 1


@pytest.mark.parametrize(
    ("typed", "file", "path", "cache"),
    [
        ("a.json", "", "a.json", False),
        ("", "old.json", "old.json", False),
        ("a", "old.json", "a", False),
        ('"a b"', "", "a b", False),
        ("'a b'", "", "a b", False),
        ("'a", "", "'a", False),
        ("''", "", "''", False),
        ("'a\"", "", "'a\"", False),
        ("a b --cache", "", "a b", True),
        ("--cache", "old.json", "old.json", True),
        ("'a b' --cache", "", "a b", True),
        ("--cache x", "", "x", True),
        ("--cache 'a b'", "", "a b", True),
        ("--cache a b", "", "a b", True),
        ("'a --b'", "", "a --b", False),
        ('"--cache"', "", "--cache", False),
        ("./--cache", "", "./--cache", False),
        ("a--cache", "", "a--cache", False),
    ],
)
def test_a_conversation_is_saved_where_it_was_typed(monkeypatch, typed, file, path, cache):
    asked = []
    monkeypatch.setattr(
        keeping.archive,
        "save",
        lambda *given, cache: asked.append((given[2], cache)) or ["a file", "another"],
    )
    chat = Chat(Talk(turn("a", "b")), GenerationSettings(), PlainScreen(), file=file)
    keeping.save(chat, typed)
    assert asked == [(path, cache)]
    assert (chat.file, chat.screen.lines) == (path, ["saved a file and another"])


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("b.json --cach", "--cach"),
        ("--force b.json", "--force"),
        ("b.json --force --cache", "--force"),
        ("a --cache b", "--cache"),
        ("'a' --b", "--b"),
        ("a --b'", "--b'"),
    ],
)
def test_what_looks_like_a_flag_is_no_part_of_a_file_s_name(monkeypatch, typed, named):
    monkeypatch.setattr(keeping.archive, "save", None)
    with pytest.raises(JllamaError) as error:
        keeping.save(Chat(Talk(), GenerationSettings(), PlainScreen()), typed)
    assert str(error.value) == (
        f"{named!r} is no part of a file's name: /save [FILE] [--cache], or quotes around the name"
    )


@pytest.mark.parametrize("typed", ["", "--cache", "a\0b"])
def test_without_a_file_nothing_is_saved(monkeypatch, typed):
    monkeypatch.setattr(keeping.archive, "save", None)
    with pytest.raises(JllamaError, match="give a file: /save FILE"):
        keeping.save(Chat(Talk(), GenerationSettings(), PlainScreen()), typed)


# Without a terminal.


def run_batch(talk, messages, capsys, **how):
    code = batch.run(talk, GenerationSettings(), messages, **(dict(as_json=False, stats=False) | how))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_answers_and_nothing_else_on_stdout(capsys):
    talk = Talk()
    talk.answers, talk.drops = [["a", "b"], JllamaError("too long", "mend it"), ["c"], ["d"]], [0, 1, 0]
    code, out, err = run_batch(talk, ["1", "2", "3", "4"], capsys)
    assert (code, out) == (2, "ab\nc\nd\n")
    assert err.splitlines() == ["error: too long", "mend it", wording.dropped(1)]


def test_a_failure_amid_an_answer_ends_its_line(capsys):
    talk = Talk()
    talk.answers = [["a", JllamaError("broke off")], ["b"]]
    assert run_batch(talk, ["1", "2"], capsys)[:2] == (2, "a\nb\n")


def test_answers_as_json(capsys):
    talk = Talk()
    talk.answers = [["é"], JllamaError("no")]
    code, out, err = run_batch(talk, ["1", "2"], capsys, as_json=True)
    first, second = map(json.loads, out.splitlines())
    assert code == 2
    assert "é" in out
    assert {"text": "é", "model": "tiny", "dtype": "float32"}.items() <= first.items()
    assert first["finish_reason"] == "stop"
    assert "device" in first
    assert (second, err) == ({"error": "no"}, "error: no\n")


def sun(city: str) -> bool:
    return city == "Oslo"


@pytest.mark.parametrize("as_json", [True, False])
def test_calls_are_run_and_told_without_a_terminal(capsys, as_json):
    talk, call = Talk(), Call("1", "sun", '{"city": "Oslo"}')
    talk.toolbox, talk.run, given = Toolbox([sun]), lambda call: talk.toolbox.run(call)[0], []

    def ask(message, settings):
        yield "I look. "
        talk.calls = (call,)

    def reply(results, settings):
        given.append(results)
        yield f"Yes {len(given)}. "
        if len(given) == 2:  # the second time it calls nothing more
            talk.calls = ()
            rounds = (Round("I look. ", (call,), ("true",)), Round("", (call,), ("true",)))
            talk.branch.messages = (Message("user", "?"), Message("assistant", "Yes 2.", rounds=rounds))

    talk.ask, talk.reply = ask, reply
    code, out, err = run_batch(talk, ["?"], capsys, as_json=as_json)
    assert (code, given) == (0, [["true"]] * 2)
    assert err.splitlines() == ['call: sun({"city": "Oslo"})', "gave: true"] * 2
    if as_json:
        report = json.loads(out)
        made = {"name": "sun", "arguments": '{"city": "Oslo"}', "result": "true"}
        assert (report["text"], report["calls"]) == ("Yes 2.", [made] * 2)
    else:
        assert out == "I look. Yes 1. Yes 2. \n"


def test_rounds_of_calls_have_an_end_without_a_terminal(capsys):
    talk, rounds = Talk(), []
    talk.toolbox, talk.run = Toolbox([sun]), lambda call: "true"
    talk.ask = lambda message, settings: iter(["a"])
    talk.reply = lambda results, settings: iter([f"{rounds.append(1) or len(rounds)}"])
    talk.calls = (Call("1", "sun", "{}"),)
    assert run_batch(talk, ["?"], capsys)[:2] == (0, "a12345678910\n")


def test_statistics_and_an_interrupt(capsys):
    talk = Talk()
    talk.answers = [["a"], ["b", KeyboardInterrupt()], ["c"]]
    code, out, err = run_batch(talk, ["1", "2", "3"], capsys, stats=True)
    assert (code, out, err) == (130, "a\nb\n", wording.statistics(talk) + "\n")
    assert len(talk.asked) == 2


def test_a_mistake_of_ours_is_no_json(capsys):
    talk = Talk()
    talk.answers = [JllamaError("x")]
    assert run_batch(talk, ["1"], capsys) == (2, "", "error: x\n")


def test_the_lines_of_standard_input_are_the_messages(capsys, monkeypatch):
    monkeypatch.setattr(
        batch.streams, "standard_input", lambda: iter([b"a\r\n", b" \n", b"\n", b" b\xff\n", b"c"])
    )
    assert list(batch.stdin_lines()) == ["a", " b\ufffd", "c"]
    talk = Talk()
    talk.answers = [["x"]] * 3
    assert run_batch(talk, [], capsys)[:2] == (0, "x\nx\nx\n")


def test_a_screen_without_a_terminal_writes_plain_text(capsys):
    screen = Screen()
    screen.say("a\x1b\nb")
    screen.error("two\n lines " + "x" * 500)
    screen.stream(piece for piece in ["**a", "**\n"])
    screen.stream(piece for piece in ["b"])
    screen.stream(piece for piece in [])
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["a␛", "b"]
    whole = "".join(out[2:-2]).replace(" ", "")
    assert whole == "error:twolines" + "x" * (399 - len("two lines ")) + "…"
    assert out[-2:] == ["**a**", "b"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [("plain", "plain"), ("a\udcffb", "a\N{REPLACEMENT CHARACTER}b"), ('"""\nsaid\n"""', "said")],
)
def test_what_was_typed_is_text(typed, read):
    terminal = Terminal.__new__(Terminal)
    terminal._session = SimpleNamespace(prompt=lambda prompt, default: typed)
    assert terminal.read("> ") == read
