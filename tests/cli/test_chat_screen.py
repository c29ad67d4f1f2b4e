"""What the terminal gets: styles, Markdown piece by piece, tables, lines; and what the model is, in words."""

import contextlib
import os
import re
import signal
import sys
import termios
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from hypothesis import example, given
from hypothesis import strategies as st

from jllama.cli.terminal import screen as chat_screen
from jllama.cli.terminal import wrap as chat_wrap
from jllama.cli.terminal.loaded import loaded, quantisation
from jllama.cli.terminal.markdown import HELD_AT_MOST, MarkdownStream
from jllama.cli.terminal.screen import Screen, pressed_ctrl_c, quiet_typing
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.qtensor import QTensor
from jllama.layers.rope import Rope
from jllama.loading import Model

ANSI = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def terminal(monkeypatch):
    """A screen on a terminal of 40 columns with colours."""
    monkeypatch.setattr(chat_wrap, "window_width", lambda: 40)
    monkeypatch.setattr(chat_screen, "window_width", lambda: 40)
    screen = Screen()
    screen._console = rich.console.Console(
        force_terminal=True, color_system="standard", width=40, no_color=False
    )
    screen._can_style = True
    return screen


CODES = {
    "dim": "2",
    "bold": "1",
    "italic": "3",
    "code": "36",
    "error": "31",
    "bold italic": "1;3",
    "block comment": None,
    "block keyword": "35",
    "block string": "32",
    "block number": "36",
    "block name": "94",
}


@pytest.mark.parametrize(("style", "code"), CODES.items())
def test_each_style_is_a_sequence_of_the_terminals_own(terminal, style, code):
    shown = terminal._paint("text", style)
    assert ANSI.sub("", shown) == "text"
    assert shown.endswith("\x1b[0m")
    assert code is None or shown.startswith(f"\x1b[{code}m")
    assert terminal._paint("", style) == ""
    terminal._can_style = False
    assert terminal._paint("text", style) == "text"


def test_no_style_and_no_colours(terminal):
    assert terminal._paint("text", "") == "text"
    terminal._console = rich.console.Console(force_terminal=True, color_system="standard", no_color=True)
    assert terminal._paint("text", "error") == "text"
    assert terminal._paint("text", "bold") == "\x1b[1mtext\x1b[0m"


def test_errors_are_one_line_of_four_hundred_characters(terminal, capsys):
    terminal._can_style = False
    for length, shown in ((400, "x" * 400), (401, "x" * 399 + "…")):
        terminal.error(" " + "x" * length + "\n ")
        assert "".join(capsys.readouterr().out.split()) == "error:" + shown


def test_a_remark_and_an_answer_are_written_at_once(terminal, monkeypatch):
    class Pipe:
        text, flushed = "", ""

        def write(self, text):
            self.text += text

        def flush(self):
            self.flushed = self.text

    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", pipe)
    terminal.say("a remark")
    assert ANSI.sub("", pipe.flushed) == "a remark\n"
    terminal.stream(piece for piece in ["some ", "**bo", "ld** `x", "\n"])
    assert ANSI.sub("", pipe.flushed) == "a remark\nsome bold `x\n"
    terminal.markdown = False
    terminal.stream((piece for piece in ["  **x**"]), "one\n  two\n  ")
    assert ANSI.sub("", pipe.flushed).endswith("`x\n    **x**\n")
    terminal.stream((piece for piece in [" three"]), "one\ntwo")
    assert ANSI.sub("", pipe.flushed).endswith("**x**\n three\n")


def test_an_answer_that_goes_on_begins_in_the_style_it_stopped_in(terminal, capsys):
    terminal.stream((piece for piece in ["x = 1\n```\nend"]), "```python\ndef f():\n")
    out = capsys.readouterr().out
    assert ANSI.sub("", out) == "x = 1\n```\nend\n"
    assert out.startswith("\x1b[")
    terminal.stream((piece for piece in ["b"]), "a\n   ")
    assert capsys.readouterr().out == "   b\n"


@pytest.mark.parametrize(("width", "fits"), [(24, True), (23, False)])
def test_a_table_needs_eight_columns_a_cell(terminal, monkeypatch, width, fits):
    monkeypatch.setattr(chat_screen, "window_width", lambda: width)
    table = terminal._table([["a", "**b**", "c"], ["1", "`2`"]])
    assert (table is not None) == fits
    if fits:
        rows = [line.split() for line in ANSI.sub("", table).splitlines() if line.strip()]
        assert rows[0] == ["a", "b", "c"]
        assert rows[-1] == ["1", "2"]
        assert "\x1b[" in table
        assert table.endswith("\n")
        assert not table.startswith("\n")


# Markdown.


def stream(*, rows=None):
    def paint(text, style):
        return f"<{style}>{text}</>" if style and text else text

    return MarkdownStream(paint, lambda given: None if rows is None else rows(given))


def styled(text, **how):
    made = stream(**how)
    return made.push(text) + made.end()


MARKED = [
    ("# a\nb", "<bold># a</>\nb"),
    ("###### a\n####### b", "<bold>###### a</>\n####### b"),
    ("#a", "#a"),
    ("> a\nb", "<italic>> a</>\nb"),
    ("- a\n+ b\n  * c", "• a\n• b\n  • c"),
    ("-a", "-a"),
    ("`a` ``b`c``", "<code>a</> <code>b`c</>"),
    ("**a**", "<bold>a</>"),
    ("***a***", "<bold italic>a</>"),
    ("*a*", "<italic>a</>"),
    ("** a **", "** a **"),
    ("* a*", "• a*"),
    ("2*3*4", "2*3*4"),
    ("x*y*z", "x*y*z"),
    ("é*y*z", "é*y*z"),
    ("(*a*)", "(<italic>a</>)"),
    ("_*a*", "_<italic>a</>"),
    ("2**3**", "2<bold>3</>"),
    ("a`b`", "a<code>b</>"),
    ("a *b", "a *b"),
    ("**a*", "**a*"),
    ("*a **b** c*", "*a <bold>b</> c*"),
    ("~~~\na\n~~~\nb", "<block dim>~~~</>\n<block>a</>\n<block dim>~~~</>\nb"),
    ("```\na\n````\nb", "<block dim>```</>\n<block>a</>\n<block dim>````</>\nb"),
    ("````\na\n```\nb", "<block dim>````</>\n<block>a</>\n<block>```</>\n<block>b</>"),
    ("```\na\n``` b\n", "<block dim>```</>\n<block>a</>\n<block>``` b</>\n"),
    ("```\na\n~~~\n", "<block dim>```</>\n<block>a</>\n<block>~~~</>\n"),
    ("  ```\n  a\n  ```\nb", "<block dim>  ```</>\n<block>  a</>\n<block dim>  ```</>\nb"),
    ("# a\n```\nb\n```\nc", "<bold># a</>\n<block dim>```</>\n<block>b</>\n<block dim>```</>\nc"),
    ("a\n\nb", "a\n\nb"),
]


@pytest.mark.parametrize(("text", "shown"), MARKED)
def test_what_is_marked_is_shown_in_its_style(text, shown):
    assert styled(text) == shown
    made = stream()
    by_letters = "".join(map(made.push, text)) + made.end()
    assert re.sub("<[a-z ]*>|</>", "", by_letters) == re.sub("<[a-z ]*>|</>", "", shown)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", [["a", "b"], ["1", "2"]]),
        ("|a|b|\n|:-:|--:|\n|1|2|\n", [["a", "b"], ["1", "2"]]),
        ("| a \\| b |\n|---|\n| 1 |\n", [["a | b"], ["1"]]),
        ("| a | b |\n|---|---|\n", None),
        ("| a | b |\n| 1 | 2 |\n| 3 | 4 |\n", None),
        ("| a | b |\n", None),
    ],
)
def test_a_table_is_taken_whole_or_shown_as_it_is(text, rows):
    given = []
    shown = styled(text + "end", rows=lambda table: given.append(table) or "TABLE\n")
    if rows is None:
        assert given == []
        assert re.sub("<[a-z ]*>|</>", "", shown) == text + "end"
    else:
        assert given == [rows]
        assert shown == "TABLE\nend"


def test_a_table_for_which_there_is_no_room_is_shown_as_it_is():
    text = "| a |\n|---|\n| 1 |\n"
    assert re.sub("<[a-z ]*>|</>", "", styled(text + "b")) == text + "b"


def test_what_may_become_something_waits_and_nothing_else():
    made = stream()
    assert [made.push(piece) for piece in ("#", " a", " b ")] == ["", "<bold># </>", "<bold>a b </>"]
    assert stream().push("``") == ""
    made = stream()
    assert [made.push(piece) for piece in ("a *", "b", "* c ", "d* e")] == [
        "a ",
        "",
        "<italic>b</> c ",
        "d* ",
    ]
    made = stream()  # a product, as far as one can tell, once something follows
    assert [made.push(piece) for piece in ("2*", "3 ")] == ["2", "*3 "]
    made = stream()
    assert made.push("a * b c") == "a * b "  # no marker stands before a blank
    made = stream()
    assert made.push("**" + "x " * (HELD_AT_MOST // 2 - 1)) == ""
    assert made.push("xx ") != ""


# Lines.


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ("a b", 2),
        ("a ", 2),
        ("ab", 0),
        ("", 0),
        ("x" * 40, 0),
        ("a " + "x" * 41, 3),
        ("漢字", 2),
        ("a漢b", 2),
    ],
)
def test_a_last_word_may_go_on(text, certain):
    assert chat_wrap.certain(text) == certain


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("aa bb cc", 5, "aa bb\ncc"),
        ("aa bbb", 5, "aa\nbbb"),
        ("aa bb", 5, "aa bb"),
        ("aaaaaaa b", 5, "aaaaaaa b"),
        ("a bbbbbbb", 5, "a bbbbbbb"),
        ("aaaaa b", 5, "aaaaa\nb"),
        ("漢字漢字", 5, "漢字\n漢字"),
        ("a\nbb cc", 5, "a\nbb cc"),
    ],
)
def test_a_hard_break_is_a_line_s_end_between_words(monkeypatch, text, width, shown):
    monkeypatch.setattr(chat_wrap, "window_width", lambda: width)
    wrap = chat_wrap.WordWrap(lambda text, style: text, soft=False)
    assert "".join(wrap(piece, "") for piece in re.split("(\n)", text)) == shown


def test_the_window_s_width(monkeypatch):
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: SimpleNamespace(columns=33))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 1))
    assert chat_wrap.window_width() == 33
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: SimpleNamespace(columns=0))
    assert chat_wrap.window_width() == 80

    def none(descriptor):
        raise OSError

    monkeypatch.setattr("os.get_terminal_size", none)
    assert chat_wrap.window_width() == 80


# The model, in words.


def packed(bits, *shape):
    return QTensor(
        values=np.zeros(1, np.int8), scales=np.zeros(1, np.float16), offsets=None, shape=shape, bits=bits
    )


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ([jnp.zeros(5)], "no"),
        ([packed(8, 3, 4)], "8 bit 100%"),
        ([packed(8, 1, 21), packed(4, 1, 79)], "4 bit 79%, 8 bit 21%"),
        ([packed(4, 10, 99), jnp.zeros(10)], "4 bit 99%, bfloat16 1%"),
        ([packed(4, 1, 995), jnp.zeros(5)], "4 bit 100%, bfloat16 0%"),
        ([packed(4, 1, 996), jnp.zeros(4)], "4 bit 100%"),
    ],
)
def test_which_part_is_stored_in_how_many_bits(leaves, words):
    assert quantisation(SimpleNamespace(params=leaves, dtype="bfloat16")) == words


@pytest.mark.parametrize(("window", "family"), [(None, "llama"), (4096, "mistral (a window of 4,096)")])
def test_what_is_loaded(monkeypatch, window, family):
    config = ModelConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=512,
        sliding_window=window,
        rope=Rope(),
    )
    params = [jnp.zeros(3 << 20, jnp.int8)]
    model = Model(config=config, params=params, tokenizer=None, dtype="float32", name="m")
    conversation = SimpleNamespace(model=model, max_seq_len=1024, context_used=17)
    lines = dict(line.split(maxsplit=1) for line in loaded(conversation).splitlines())
    assert lines["family"] == f"{family}, 2 layers of 8"
    assert lines["context"] == "1,024 tokens, 17 in use (the model: 2,048)"
    assert lines["memory"] == "weights 3 MiB, cache 16 MiB a branch that goes on"
    assert (lines["model"], lines["dtype"], lines["quantised"]) == ("m", "float32", "no")
    layer = (
        2 * 8 * 4 * 512 + 2 * 8 * 2 * 512 + 3 * 8 * 12 + 2 * 8
    )  # q and o, k and v, gate, up and down, norms
    assert lines["parameters"] == f"{2 * layer + 8 + 2 * 10 * 8:,}"
    monkeypatch.setattr("jllama.sharding.devices_under", lambda params: 2)
    assert "  on each of 2 devices: weights 3 MiB, cache 8 MiB a branch that goes on\n" in loaded(
        conversation
    )


@pytest.mark.parametrize("begins", ["|", "  |", "#" * 7, "-" * 9])
@pytest.mark.parametrize("before", ["", "| a |\n"])
@pytest.mark.parametrize("size", [1, 7, 2 * HELD_AT_MOST])
def test_a_very_long_line_is_shown_as_it_comes(begins, before, size):
    stream = MarkdownStream(lambda text, style: text, lambda rows: None)
    line = begins + "x" * (HELD_AT_MOST + 100) + " y\n"
    pieces = [(before + line)[at : at + size] for at in range(0, len(before + line), size)]
    shown = "".join(map(stream.push, pieces[:-1])) if len(pieces) > 1 else before + line
    assert len(shown) > HELD_AT_MOST
    assert shown + (stream.push(pieces[-1]) if len(pieces) > 1 else "") + stream.end() == before + line


@pytest.mark.parametrize(("over", "is_table"), [(0, True), (1, False)])
@pytest.mark.parametrize("size", [1, 3 * HELD_AT_MOST])
def test_a_row_is_held_up_to_its_limit(over, is_table, size):
    stream = MarkdownStream(lambda text, style: text, lambda rows: "table")
    text = "|a|\n|-|\n|" + "x" * (HELD_AT_MOST - 2 + over) + "|\n"
    shown = "".join(stream.push(text[at : at + size]) for at in range(0, len(text), size)) + stream.end()
    assert shown == ("table" if is_table else text)


def test_cells_are_told_apart_by_bars_that_are_not_escaped():
    tables = []
    stream = MarkdownStream(lambda text, style: text, lambda rows: tables.append(rows) or "table")
    stream.push("  | a | b\\|c |  \n |---|:-:| \n| 1|2 | \n")
    assert stream.end() == "table"
    assert tables == [[["a", "b|c"], ["1", "2"]]]


@given(st.text("*`a b|#->1.\n", max_size=30), st.sets(st.integers(1, 29)))
@example("` `1", {1, 2})
def test_markdown_is_the_same_however_it_comes(text, cuts):
    def shown(pieces):
        stream = MarkdownStream(
            lambda text, style: "".join(f"{style}:{c}," for c in text), lambda rows: str(rows)
        )
        return "".join(map(stream.push, pieces)) + stream.end()

    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert shown(pieces) == shown([text])


def test_typing_is_quiet_only_while_nobody_asks(monkeypatch):
    ours, terminal = os.openpty()
    with open(terminal) as keyboard, contextlib.suppress(ZeroDivisionError):
        monkeypatch.setattr("sys.stdin", keyboard)
        before, handler = termios.tcgetattr(terminal), signal.getsignal(signal.SIGTSTP)
        with quiet_typing():
            assert not termios.tcgetattr(terminal)[3] & (termios.ECHO | termios.ICANON)
            assert signal.getsignal(signal.SIGTSTP) is not handler
        assert termios.tcgetattr(terminal) == before
        assert signal.getsignal(signal.SIGTSTP) == handler
        with quiet_typing():
            os.close(ours)
            raise ZeroDivisionError  # what fails within goes on, though the terminal is gone
    assert signal.getsignal(signal.SIGTSTP) == handler


def test_ctrl_c_leaves_a_note_and_then_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pressed_ctrl_c() as presses:
        signal.raise_signal(signal.SIGINT)
        assert presses == [signal.SIGINT]
        handler = signal.getsignal(signal.SIGINT)
        importing = SimpleNamespace(co_filename="<frozen importlib._bootstrap>")
        handler(signal.SIGINT, SimpleNamespace(f_code=importing, f_back=None))  # the next press is not far
        assert len(presses) == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(presses) == 3
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_ends_an_answer_behind_the_piece_that_came(capsys):
    came = []

    def pieces():
        try:
            for piece in ("one ", "two ", "three "):
                came.append(piece)
                if piece == "two ":
                    signal.raise_signal(signal.SIGINT)
                yield piece
        finally:
            came.append("closed")

    answer = pieces()  # held: it ends when it is closed, not when nobody has it any more
    Screen().stream(answer)
    assert came == ["one ", "two ", "closed"]
    assert capsys.readouterr().out == "one two \n"


@pytest.mark.parametrize(("terminal", "dumb"), [(True, False), (True, True), (False, False)])
def test_which_terminals_have_styles(monkeypatch, terminal, dumb):
    console = SimpleNamespace(is_terminal=terminal, is_dumb_terminal=dumb)
    monkeypatch.setattr(rich.console, "Console", lambda: console)
    assert Screen()._can_style is (terminal and not dumb)


def test_a_sequence_of_ours_is_written_as_it_is(capsys):
    Screen().raw("\x1b]52;c;YQ==\a")
    assert capsys.readouterr().out == "\x1b]52;c;YQ==\a"


def test_a_suspended_chat_lends_its_terminal(monkeypatch):
    """While it is stopped, the shell has the terminal as it was, and a second Ctrl-Z stops for good."""
    ours, terminal = os.openpty()
    with open(terminal) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        before, stopped = termios.tcgetattr(terminal), []

        def stop(number):
            stopped.append((number, termios.tcgetattr(terminal), signal.getsignal(signal.SIGTSTP)))

        with quiet_typing():
            quiet, handler = termios.tcgetattr(terminal), signal.getsignal(signal.SIGTSTP)
            monkeypatch.setattr(chat_screen.signal, "raise_signal", stop)
            handler(signal.SIGTSTP, None)
            assert stopped == [(signal.SIGTSTP, before, signal.SIG_DFL)]
            assert termios.tcgetattr(terminal) == quiet != before
            assert signal.getsignal(signal.SIGTSTP) is handler
        with monkeypatch.context() as windows:
            windows.setattr(chat_screen, "termios", None)
            with quiet_typing():
                assert termios.tcgetattr(terminal) == before
    os.close(ours)


def test_a_file_is_no_terminal_to_be_quiet(monkeypatch, tmp_path):
    (tmp_path / "f").touch()
    before = signal.getsignal(signal.SIGTSTP)
    with (tmp_path / "f").open() as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        with quiet_typing():
            assert signal.getsignal(signal.SIGTSTP) == before


@pytest.mark.parametrize(("came", "shown"), [(["one "], "one \n"), (["one\n"], "one\n"), ([], "")])
def test_an_answer_that_fails_leaves_its_words_and_ctrl_c_as_they_were(capsys, came, shown):
    closed, before = [], signal.getsignal(signal.SIGINT)

    def pieces():
        try:
            yield from came
            raise JllamaError("not finite")
        finally:
            closed.append(True)

    answer = pieces()
    with pytest.raises(JllamaError, match="not finite"):
        Screen().stream(answer)
    assert (capsys.readouterr().out, closed) == (shown, [True])
    assert signal.getsignal(signal.SIGINT) == before
