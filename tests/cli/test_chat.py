"""The chat's parts: commands, Markdown, line breaking, the prompt; and the chat in a pipe."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import unicodedata
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from jllama import loading
from jllama.chat.conversation import Conversation
from jllama.cli.terminal import clipboard, commands, loop, wording
from jllama.cli.terminal import screen as chat_screen
from jllama.cli.terminal import settings as chat_settings
from jllama.cli.terminal import wrap as chat_wrap
from jllama.cli.terminal.line_editor import Terminal, unfinished, unquoted
from jllama.cli.terminal.markdown import MarkdownStream
from jllama.cli.terminal.state import Chat, LeaveError
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from tests.support.screens import PlainScreen, cut
from tests.support.scripts_helpers import PATIENCE, ROOT
from tests.support.terminal import command

STYLES = re.compile(r"</?[a-z ]*>")


@pytest.fixture(scope="module")
def story(plain_dir):
    return loading.load(str(plain_dir), dtype="float32")


@pytest.fixture
def chat(story):
    chat = Chat(Conversation(story), GenerationSettings(max_new_tokens=5), PlainScreen())
    for text in ("Hello", "Who are you?"):
        loop.handle(chat, text)
    chat.screen.lines.clear()
    return chat


def said(chat, text):
    """What the chat says to an input."""
    chat.screen.lines.clear()
    loop.handle(chat, text)
    return "\n".join(chat.screen.lines)


HUGE = "9" * 6000
WRONG = [
    *("/set temperature=hot", "/set temperature=-1", "/set temperature=nan", f"/set temperature={HUGE}"),
    *(
        "/set temprature=1",
        "/set =",
        "/set temperature",
        "/set temperature=",
        f"/set seed={HUGE}",
        "/set top_k=1.5",
    ),
    *(
        "/set max_new_tokens=0",
        "/set stop=[1]",
        "/set stop=[",
        "/set logit_bias=x",
        "/set ignore_eos=perhaps",
    ),
    *("/set logit_bias=3=inf", "/set stats=2", "/set on_overflow=never", f"/set {'k' * 5000}=1"),
    *("/undo 0", "/undo -1", "/undo 3", "/undo two", f"/undo {HUGE}", "/undo ²"),
    *("/edit", "/edit x", "/edit 0 text", "/edit 9", "/edit 9 text", f"/edit 1 {'word ' * 2000}"),
    *(
        "/fork",
        "/fork main",
        "/fork a b",
        f"/fork {'n' * 5000}",
        "/switch",
        "/switch nowhere",
        "/show 9",
        "/show x",
    ),
    *("/save", "/save /", "/save /no/such/dir/file", f"/save {'n' * 5000}", "/save a\0b", "/save --cache"),
    *("/load", "/load /", "/load /no/such/file", "/load /dev/zero", f"/load {'n' * 5000}", "/load a\0b"),
    *("/save ~none", "/load ~none"),
    *("/stats maybe", "/help nothing", "/hlep", "/", "/ ", "//", f"/{'x' * 5000}", "word " * 2000),
]


@pytest.mark.parametrize("text", WRONG, ids=[text[:24] for text in WRONG])
def test_a_mistake_is_one_line_and_the_conversation_goes_on(chat, text):
    before, settings = chat.conversation.messages, chat.settings
    answer = said(chat, text)
    assert answer.startswith("error: ")
    assert "\n" not in answer
    assert chat.conversation.messages is before
    assert chat.settings is settings
    assert said(chat, "Go on")


def test_the_screen_keeps_errors_short(capsys):
    chat_screen.Screen().error("a\nb\x1b[2J" + "c" * 5000)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert len(shown) < 500
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), r"^out of memory: choose .*--dtype=bfloat16 or a smaller model$"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), r"^out of memory: .* \(RESOURCE_EXHAUSTED: Out"),
        (OSError(errno.ENOSPC, "No space"), "^cannot write the output: No space$"),
        (OSError(errno.EIO, "Input/output error"), "^cannot write the output: Input/output error$"),
        (OSError(errno.EIO, "Input/output error", "a.gguf"), "^cannot use a.gguf: Input/output error$"),
        (OSError("odd"), None),
        (ValueError("odd"), None),
    ],
    ids=str,
)
def test_what_no_code_foresaw_is_explained_where_it_can_be(error, says):
    said = loop.explanation(error)
    assert said is None if says is None else re.search(says, said)


def test_settings_are_set_listed_and_shown(chat):
    for text, name, value in (
        ("temperature=0.7", "temperature", 0.7),
        ("--top_k 40", "top_k", 40),
        ("seed = 5", "seed", 5),
        ("seed=none", "seed", None),
        (r"stop=\nUser:", "stop", ("\nUser:",)),
        ('stop=["a", "b=c"]', "stop", ("a", "b=c")),
        ("stop a=b", "stop", ("a=b",)),
        ("logit_bias=3=-1.5,4=2", "logit_bias", {3: -1.5, 4: 2.0}),
        ("ignore_eos=on", "ignore_eos", True),
    ):
        said(chat, f"/set {text}")
        assert getattr(chat.settings, name) == value
    assert "\n" in said(chat, "/set")
    for name in chat_settings.NAMES:
        assert chat_settings.change(chat, f"{name}={chat_settings.value(chat, name)}") == name
    assert said(chat, "/set on_overflow=stop") == "on_overflow=stop"
    assert chat.conversation.on_overflow == "stop"
    said(chat, "/set stats=on")
    assert "tok/s" in said(chat, "More")


def test_undo_redo_edit(chat):
    assert said(chat, "/undo") == "taken back: Who are you?"
    assert "drawn at 0.8" in said(chat, "/redo")
    assert chat.conversation.turns == 1
    said(chat, "/edit 1 Good morning")
    assert chat.conversation.messages[0].content == "Good morning"
    said(chat, "/edit 1")
    assert chat.prefill == "/edit 1 Good morning"
    said(chat, "/undo 1")
    assert said(chat, "/retry").startswith("error: nothing to redo")


def test_fork_switch_tree_show_tokens_clear(chat):
    said(chat, "/fork other")
    said(chat, "Left")
    assert "on branch main, 2 turns: Who are you?" in said(chat, "/switch main")
    said(chat, "Right")
    tree = said(chat, "/tree")
    assert [tree.count(word) for word in ("Hello", "Left", "Right", "main  ← here")] == [1, 1, 1, 1]
    assert said(chat, "/show").count("↳") == 3
    assert "> Right" in said(chat, "/show 3")
    assert said(chat, "/tokens").count("answer") == 3
    assert "tok/s" in said(chat, "/stats")
    assert said(chat, "/clear") == "1 turn is not saved (/save FILE): /clear again drops it"
    assert said(chat, "/clear") == "cleared"
    assert said(chat, "/tree").count("◆") == 2
    assert said(chat, "/show") == "nothing was said yet"


def test_system_help_exit(chat):
    assert said(chat, "/system") == "system: (none)"
    assert said(chat, "/system Be kind.") == "system: Be kind."
    assert "Be kind." in said(chat, "/tokens") + said(chat, "/show")
    assert said(chat, "/system -") == "system: (none)"
    assert all(name in said(chat, "/help") for name in commands.COMMANDS.keys() - commands.ALIASES)
    for name in commands.COMMANDS:
        assert said(chat, f"/help {name[1:]}").startswith("/")
    for name in ("/exit", "/quit"):
        assert said(chat, name) == "2 turns are not saved (/save FILE): /exit again drops them"
        with pytest.raises(LeaveError):
            loop.handle(chat, name)


def test_save_and_load(chat, tmp_path):
    said(chat, "/set temperature=0.25")
    assert said(chat, f'/save "{tmp_path}/a talk.json" --cache').count("a talk.json") == 2
    said(chat, "/clear")
    said(chat, "/set temperature=1")
    assert said(chat, f"/load '{tmp_path}/a talk.json'") == "on branch main, 2 turns"
    assert (chat.settings.temperature, chat.conversation.turns) == (0.25, 2)
    said(chat, "Go on")
    assert chat.conversation.result.reused_tokens > 20


def test_save_remembers_the_file(chat, tmp_path):
    assert "give a file" in said(chat, "/save")
    said(chat, f"/save {tmp_path}/a.json")
    said(chat, "More")
    assert said(chat, "/save") == f"saved {tmp_path}/a.json"
    assert said(chat, "/save --cache").count("a.json") == 2
    said(chat, f"/save {tmp_path}/b--cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.json.safetensors", "b--cache"]
    said(chat, f"/load {tmp_path}/a.json")
    assert "error" in said(chat, f"/save {tmp_path}")
    assert said(chat, "/save") == f"saved {tmp_path}/a.json"


def test_what_is_not_saved_is_counted_once(chat, tmp_path):
    assert chat.unsaved_turns() == 2
    said(chat, "/fork other")
    said(chat, "More")
    assert chat.unsaved_turns() == 3
    said(chat, f"/save {tmp_path}/a.json")
    said(chat, "/undo 2")
    assert chat.unsaved_turns() == 0
    said(chat, "/retry")
    assert chat.unsaved_turns() == 1
    assert said(chat, f"/load {tmp_path}/a.json").startswith("1 turn is not saved (/save FILE): /load again")
    assert said(chat, f"/load {tmp_path}/a.json").startswith("on branch other, 3 turns")
    assert chat.unsaved_turns() == 0
    again = Chat(chat.conversation, chat.settings, chat.screen, file=f"{tmp_path}/a.json")
    assert again.unsaved_turns() == 0
    assert said(again, "/save") == f"saved {tmp_path}/a.json"


def test_leaving_warns_once_of_what_is_not_saved(chat, tmp_path):
    class Keys:
        """Ends of input, whatever is asked."""

        typed = ""

        def __init__(self, *errors):
            self.errors = list(errors)

        def read(self, *_):
            raise self.errors.pop(0)

    def left(*errors):
        chat.screen.lines.clear()
        keys = Keys(*errors)
        with pytest.raises(errors[-1]):
            loop.read(chat, keys)
        assert not keys.errors
        return chat.screen.lines

    ctrl_c, ctrl_d = KeyboardInterrupt, EOFError
    assert left(ctrl_d, ctrl_d) == ["2 turns are not saved (/save FILE): Ctrl-D again leaves"]
    assert left(ctrl_c, ctrl_d) == ["2 turns are not saved (/save FILE): Ctrl-C again or Ctrl-D leaves"]
    said(chat, f"/save {tmp_path}/a.json")
    assert left(ctrl_d) == []
    assert left(ctrl_c, ctrl_c) == ["Ctrl-C again or Ctrl-D leaves"]
    said(chat, "More")
    assert left(ctrl_d, ctrl_d)[0].startswith("1 turn is not saved")


def test_a_text_that_was_dropped_in_between_is_no_second_press(chat):
    class Keys:
        """Ctrl-C, at a prompt with these texts."""

        def read(self, *_):
            self.typed = texts.pop(0)
            raise KeyboardInterrupt

    texts = ["", "typed", "", ""]
    with pytest.raises(KeyboardInterrupt):
        loop.read(chat, Keys())
    assert (texts, len(chat.screen.lines)) == ([], 2)


def test_a_blank_or_several_lines_make_a_message_of_what_begins_with_a_slash(chat):
    assert commands.find(" /undo") is None
    assert commands.find("/etc/hosts says\n127.0.0.1") is None
    with pytest.raises(JllamaError, match="a blank before / sends it"):
        commands.find("/etc/hosts says")


def test_copy(chat, monkeypatch, tmp_path):
    tool = tmp_path / "xsel"
    tool.write_text(f'#!/bin/sh\ncat > "{tmp_path}/clipboard"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(clipboard.shutil, "which", lambda name: str(tool) if name == "xsel" else None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert "with xsel" in said(chat, "/copy")
    assert (tmp_path / "clipboard").read_text() == chat.conversation.messages[-1].content
    assert chat.screen.lines[0].startswith("\x1b]52;c;")
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert "if the terminal allows it" in said(chat, "/copy")
    assert clipboard.osc52("x" * 75_000).startswith("\x1b]52;c;")
    assert clipboard.osc52("x" * 75_001) == ""
    assert clipboard.osc52("\u00e9\udcff") == "\x1b]52;c;w6k/\a"
    chat.conversation.clear()
    assert said(chat, "/copy").startswith("error: nothing to copy")


def test_the_end_of_an_answer_is_explained(story):
    chat = Chat(Conversation(story, max_seq_len=64), GenerationSettings(max_new_tokens=500), PlainScreen())
    chat.settings = GenerationSettings(max_new_tokens=500, ignore_eos=True)
    assert said(chat, "Hello").endswith("[the context is full]")
    assert "the oldest turn no longer fits" in said(chat, "Hello")


def test_control_characters_of_a_model_do_not_reach_the_terminal():
    shown = wording.printable("a\x1b[2Jb\x07\x9b31m\tc\n")
    assert not [letter for letter in shown if unicodedata.category(letter) == "Cc" and letter not in "\t\n"]


# Markdown.

MARKDOWN = """# A **title**

Some *text* and **bold words**, `code * here`, ***both***, 2*3*4, 5 * 3, a_b_c, **never closed
* one
- two *three
  + four `open

```python
def f(x):
    return x ** 2  # * `not` **styled**

  ```not the end
```
> quoted **text**
| a | b |
|---|:-:|
| 1 | **2** \\| 3 |
after ~~~
| no | table |
漢字かな交じり文**太字**です。😀😀
~~~
tilde"""


def styled(pieces, wrap=False):
    def paint(text, style):
        return f"<{style}>{text}</>" if style and text else text

    stream = MarkdownStream(
        chat_wrap.WordWrap(paint, soft=False) if wrap else paint, lambda rows: f"{rows}\n"
    )
    return "".join([*map(stream.push, pieces), stream.end()])


def test_markdown_is_styled():
    shown = styled([MARKDOWN])
    for wanted in (
        "<bold># A </><bold bold>title</>",
        "<italic>text</> and <bold>bold words</>, <code>code * here</>, <bold italic>both</>",
        ", 2*3*4, 5 * 3, a_b_c, ",
        "**never closed\n• one\n• two *three\n  • four `open\n",
        "<block dim>```python</>\n<block keyword>def</><block text> </><block name>f</><block text>(x):</>\n",
        "<block keyword>return</><block text> x ** </><block number>2</><block text>  </>"
        "<block comment># * `not` **styled**</>\n\n<block text>  ```</><block keyword>not</>"
        "<block text> the end</>\n<block dim>```</>\n",
        "<block dim>~~~</>\n<block>tilde</>",
        "<italic>> quoted </>",
        "[['a', 'b'], ['1', '**2** | 3']]\nafter",
        "<block>| no | table |</>\n",
        "<bold>太字</>です",
    ):
        assert wanted in shown


@pytest.mark.parametrize("seed", range(60))
def test_markdown_does_not_depend_on_how_the_text_was_cut(seed):
    assert STYLES.sub("", styled(cut(MARKDOWN, seed))) == STYLES.sub("", styled([MARKDOWN]))


def test_text_streams_word_by_word():
    stream = MarkdownStream(lambda text, style: text, lambda rows: None)
    assert [stream.push(piece) for piece in ("He", "llo", " wor", "ld, **bo", "ld** x", " ")] == [
        *("", "", "Hello ", "world, ", "bold ", "x "),
    ]


@pytest.mark.parametrize("width", [7, 20, 80])
def test_lines_break_between_words_and_nothing_is_lost(width, monkeypatch):
    monkeypatch.setattr(chat_wrap, "window_width", lambda: width)
    wrapped = STYLES.sub("", styled(cut(MARKDOWN, width), wrap=True))
    assert "".join(wrapped.split()) == "".join(STYLES.sub("", styled([MARKDOWN])).split())
    text = "some words that are short and 漢字かな交じり文漢字かな交じり文 and then more of them, to the end"
    lines = styled(cut(text, 1), wrap=True).split("\n")
    assert max(map(chat_wrap.cell_len, lines)) <= width


def test_a_narrowed_window_breaks_no_word_of_what_comes_next(monkeypatch):
    words = ("extraordinary circumstances, **very important**, `surround` all of them here " * 9).split(" ")
    widths = [72] * 40 + [31] * 60
    monkeypatch.setattr(chat_wrap, "window_width", lambda: widths.pop(0) if len(widths) > 1 else widths[0])
    lines = STYLES.sub("", styled([f"{word} " for word in words], wrap=True)).split("\n")
    assert [word for line in lines for word in line.split()] == [
        word.replace("*", "").replace("`", "") for word in words if word
    ]
    narrow = next(place for place, line in enumerate(lines) if len(line) <= 31)
    assert 0 < narrow < len(lines) - 3
    assert all(chat_wrap.cell_len(line) <= 31 for line in lines[narrow:])


def test_the_first_ctrl_c_leaves_a_note_and_the_second_interrupts(capsys):
    before = signal.getsignal(signal.SIGINT)

    def pieces():
        try:
            yield "one "
            os.kill(os.getpid(), signal.SIGINT)
            yield "two "
            closed.append("never reached")
        finally:
            closed.append("closed")

    closed = []
    held = pieces()
    chat_screen.Screen().stream(held)
    assert (capsys.readouterr().out, closed) == ("one two \n", ["closed"])

    def slow():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        closed.append("never reached")
        yield ""

    chat_screen.Screen().stream(slow())
    assert closed == ["closed"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_table_is_drawn_within_the_window(capsys):
    screen = chat_screen.Screen()
    rows = [["name", "what it is"], ["a" * 30, "long " * 30], ["b"]]
    table = screen._table(rows)
    assert max(map(chat_wrap.cell_len, re.sub(r"\x1b\[[\d;]*m", "", table).split("\n"))) <= 80
    assert re.sub(r"\W|\d", "", re.sub(r"\x1b\[[\d;]*m", "", table)).count("a") >= 30
    assert screen._table([["x"] * 40]) is None


# The prompt.


@pytest.fixture
def keyboard(monkeypatch, tmp_path):
    """Types keys at a prompt; returns what it read."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        terminal = Terminal(commands.COMMANDS, lambda name: ["temperature=", "top_k="])

        def read(keys, default=""):
            pipe.send_text(keys)
            return terminal.read("> ", default)

        read.terminal = terminal
        yield read


def test_lines_are_edited_continued_and_pasted(keyboard):
    assert keyboard("Helo\x1b[Dl\x05!\r") == "Hello!"
    assert keyboard("one\\\rtwo\r") == "one\ntwo"
    assert keyboard("one\x1b\rtwo\r") == "one\ntwo"
    assert keyboard("one\x1b\ntwo\\\nthree\n") == "one\ntwo\nthree"  # typed ahead
    assert keyboard('"""one\r\rtwo"""\r') == "one\n\ntwo"
    assert keyboard("\x1b[200~def f():\r\treturn 1\r\r/help\x1b[201~\r") == "def f():\n\treturn 1\n\n/help"
    assert keyboard(" more\r", default="/edit 1 text") == "/edit 1 text more"
    assert keyboard("\x1b[A\x1b[A\x1b[A\r") == "def f():\n\treturn 1\n\n/help"


def test_ctrl_c_and_ctrl_d(keyboard):
    for keys, typed in (("abc\x03", True), ("\x03", False)):
        with pytest.raises(KeyboardInterrupt):
            keyboard(keys)
        assert keyboard.terminal.typed is typed
    with pytest.raises(EOFError):
        keyboard("\x04")


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [("/sy", ["/system"]), ("/set te", ["temperature="]), ("hello", []), ("/x", []), ("/help", ["/help"])],
)
def test_completion(keyboard, begun, wanted):
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    completer = keyboard.terminal._session.completer
    assert [c.text for c in completer.get_completions(Document(begun), CompleteEvent())] == wanted


def test_history_survives_and_a_spoilt_file_does_not_matter(keyboard, tmp_path, monkeypatch):
    keyboard("remember me\r")
    assert "remember me" in (tmp_path / "chat_history").read_text()
    again = Terminal([], lambda name: [])
    assert list(again._session.history.load_history_strings()) == ["remember me"]
    monkeypatch.setenv("JLLAMA_CACHE", "/dev/null/nowhere")
    Terminal([], lambda name: [])
    (tmp_path / "chat_history").unlink()
    (tmp_path / "chat_history").mkdir()
    assert keyboard("still here\r") == "still here"


def test_only_the_user_can_read_the_history(keyboard, tmp_path):
    tmp_path.chmod(0o755)
    for text in ("a new file", "one that others could read"):
        keyboard(f"{text}\r")
        assert stat.S_IMODE((tmp_path / "chat_history").stat().st_mode) == 0o600
        (tmp_path / "chat_history").chmod(0o644)


def test_what_is_unfinished():
    assert [unfinished(text) for text in ("a\\", "a\\\\", '"""a', '"""a"""', 'a"""', "")] == [
        *(True, False, True, False, False, False)
    ]


def test_quotes_around_a_text_are_six():
    texts = ('"""', '"""""', '""""""', '"""a"""', ' """a\n""" ')
    assert [unquoted(text) for text in texts] == ['"""', '"""""', "", "a", "a"]


# In a pipe.


def flags(plain_dir: Path) -> list[str]:
    return ["--flagfile=configs/story.cfg", f"--model={plain_dir}", "--temperature=0", "--nostats"]


def test_each_line_is_a_message_and_nothing_else_is_on_stdout(plain_dir, server):
    lines = b"Hello\n\n  \nWho are you? \xff\n" + b"word " * 2000 + b"\nBye"
    done = server.run("chat.py", *flags(plain_dir), "--json", "--max_new_tokens=6", stdin=lines)
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 2
    assert [list(report) == ["error"] for report in reports] == [False, False, True, False]
    assert reports[1]["reused_tokens"] > 0
    assert done.err.count("\n") == 1
    messages = ["--message=Hello", "--message=Who are you? \ufffd"]
    plain = server.run("chat.py", *flags(plain_dir), "--max_new_tokens=6", *messages)
    assert (plain.code, plain.err) == (0, "")
    assert plain.out == "".join(report["text"] + "\n" for report in reports[:2])


def test_a_closed_pipe_ends_it_quietly(plain_dir, server):
    chat = " ".join([*command("chat.py", *flags(plain_dir), "--max_new_tokens=100")])
    done = subprocess.run(
        ["sh", "-c", f"yes Hello | {chat} | head -1"],
        env=server.env,
        capture_output=True,
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


@pytest.mark.parametrize("bad", ["--transcript=nothing", "--load=/no/such/file", "--max_seq_len=100000000"])
def test_a_mistake_at_the_start_is_one_line_and_code_2(plain_dir, server, bad):
    done = server.run("chat.py", *flags(plain_dir), bad, "--message=x")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ")
