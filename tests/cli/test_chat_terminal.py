"""chat.py in a real (pseudo-)terminal, with a small model whose context is so long that it can go on."""

import json
import re
import shlex
import shutil

import pytest

from tests.support.scripts_helpers import environment
from tests.support.terminal import PROMPT, Terminal, command

LONG = 16384


@pytest.fixture(scope="module")
def model(plain_dir, tmp_path_factory):
    """A model with a context so long that an answer can be interrupted."""
    place = tmp_path_factory.mktemp("long")
    for file in plain_dir.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, place / file.name)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LONG}))
    return place


@pytest.fixture
def start(model, tmp_path_factory):
    """Starts the chat; all starts share one cache, and so one history."""
    cache, open_terminals = tmp_path_factory.getbasetemp() / "chat-cache", []

    def start(*flags, **size):
        arguments = (f"--model={model}", "--dtype=float32", f"--max_seq_len={LONG}", *flags)
        terminal = Terminal(command("chat.py", *arguments), environment(cache), **size)
        open_terminals.append(terminal)
        terminal.wait_for("/help lists")
        terminal.wait_for(PROMPT)
        return terminal

    yield start
    for terminal in open_terminals:
        terminal.close()


def letters(text):
    """Without the marks that Markdown, which a random answer may be, shows as styles."""
    return re.sub(r"\W", "", text)


def test_a_session_with_paste_resize_and_ctrl_c(start, tmp_path):
    terminal = start("--max_new_tokens=16000", "--ignore_eos", columns=60)
    terminal.type("/he\t")
    terminal.wait_for("lp")
    terminal.type("\r")
    terminal.wait_for("Ctrl-C stops an answer")
    terminal.wait_for(PROMPT)

    pasted = "Once upon a time\n\tthere was a little\n/help girl"
    terminal.paste(pasted)
    terminal.wait_for("/help girl")
    terminal.type("\r")
    terminal.wait_for("\n")
    for columns in (30, 100, 7, 60):
        for _ in range(20):
            terminal.wait_for(" ")  # the answer goes on
        terminal.resize(20, columns)
    terminal.type("not shown in the answer, dropped with it\x03")
    terminal.wait_for("[stopped]")
    terminal.wait_for(PROMPT)
    terminal.type("/set max_new_tokens=5\r")
    terminal.wait_for("max_new_tokens=5\n")
    terminal.wait_for(PROMPT)  # before it, the terminal would turn the Enter after Escape into a line's end
    terminal.type("one \\\rtwo\x1b\rthree\r")
    terminal.wait_for("max_new_tokens reached")
    terminal.wait_for(PROMPT)
    terminal.type('"""four\rfive"""\r')
    terminal.wait_for("max_new_tokens reached")
    terminal.type(f"/save {tmp_path}/talk.json\r")
    terminal.wait_for("saved")

    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == [pasted, "one \ntwo\nthree", "four\nfive"]
    answer = letters(messages[1]["content"])
    assert len(answer) > 100
    assert answer in letters(terminal.text)

    terminal.wait_for(PROMPT)
    terminal.type("half a line\x03")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again or Ctrl-D leaves")
    terminal.type("\x03")
    assert terminal.end() == 130


def test_history_errors_and_ctrl_d(start):
    terminal = start("--max_new_tokens=5", "--stats")
    terminal.type("/unod\r")
    terminal.wait_for("did you mean '/undo'")
    terminal.type("\x1b[A")  # up
    terminal.wait_for("/unod")
    terminal.type("\x15Hello \udcff".encode("utf-8", "surrogateescape").decode("latin-1") + "\r")
    terminal.wait_for("tok/s")
    terminal.type("/load /nowhere\r")
    terminal.wait_for("error: cannot read /nowhere")
    terminal.type("\x04")
    terminal.wait_for("1 turn is not saved (/save FILE): Ctrl-D again leaves")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_a_terminal_that_goes_away_amid_a_message(start):
    terminal = start()
    terminal.type('"""one\rtwo')
    terminal.wait_for("two")
    assert terminal.hang_up() in (0, 2, -1)


def test_ctrl_z_suspends_at_the_prompt_and_amid_an_answer(model, tmp_path_factory, tmp_path):
    # Without questions where the cursor is: who answers the first one late (a busy machine) is warned,
    # and meanwhile the terminal edits lines itself, so that a Ctrl-Z throws away what was typed.
    quiet = dict(PS1="shell> ", ENV="", PROMPT_TOOLKIT_NO_CPR="1")
    env = environment(tmp_path_factory.getbasetemp() / "chat-cache", **quiet)
    shell = Terminal(["sh", "-i"], env)  # only a shell with jobs can stop one
    try:
        flags = (f"--model={model}", "--dtype=float32", f"--max_seq_len={LONG}", "--max_new_tokens=5")
        shell.type(shlex.join(command("chat.py", *flags)) + "\r")
        shell.wait_for("Ctrl-D leaves")
        shell.wait_for(PROMPT)
        shell.type("Hello")
        shell.wait_for("Hello")
        suspend_and_go_on(shell)
        shell.wait_for(PROMPT)
        shell.wait_for("Hello")
        shell.type(" there\r")
        shell.wait_for("max_new_tokens reached")
        shell.wait_for(PROMPT)
        shell.type("/set ignore_eos=on\r/set max_new_tokens=16000\r")
        shell.wait_for("max_new_tokens=16000\n")
        shell.wait_for(PROMPT)
        shell.type("And then?\r")
        for _ in range(30):
            shell.wait_for(" ")  # the answer comes
        suspend_and_go_on(shell)
        for _ in range(30):
            shell.wait_for(" ")
        shell.type("not echoed\x03")
        shell.wait_for("[stopped]")
        shell.wait_for(PROMPT)
        shell.type(f"/save {tmp_path}/talk.json\r")
        shell.wait_for("saved")
        shell.type("/exit\r")
        shell.wait_for("shell> ")
    finally:
        shell.close()
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == ["Hello there", "And then?"]
    assert letters(messages[3]["content"])[-20:] in letters(shell.text)
    assert "not echoed" not in shell.text


def test_a_typed_colour_code_is_no_mouse(start):
    """Without brackets around it, prompt_toolkit takes what follows an escape for a click."""
    terminal = start()
    terminal.type("/fork \x16\x1b[31mx")
    terminal.type("\x1b[31mx\x1b[96;14;13Mx\r")
    terminal.wait_for("on branch")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text
    assert "nhandled" not in terminal.text


def suspend_and_go_on(shell):
    """Ctrl-Z; the shell finds its terminal as it was; `fg`."""
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.wait_for("shell> ")
    shell.type("stty -a\r")
    found = shell.wait_for("shell> ").split()
    assert {"icanon", "isig", "echo"} <= set(found)
    shell.type("fg\r")
