"""Lines break between words, and a terminal copies them whole: shown in an emulated one, of any width."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.cli.terminal import screen as chat_screen
from jllama.cli.terminal import wrap
from jllama.cli.terminal.markdown import MarkdownStream
from tests.support.emulator import Emulator
from tests.support.screens import cut
from tests.support.terminal import PROMPT_BEGINS, Terminal, command
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

TEXT = (
    "Gravity is a fundamental concept in physics that describes the curvature of spacetime caused by massive "
    "objects like stars and black holes.\n\nIt governs the behavior of matter and energy on large scales, "
    "see https://en.wikipedia.org/wiki/Gravity#Extremely_long_anchors_that_no_window_of_this_test_can_hold "
    "for more; run `git log --oneline --graph --decorate` first.\n"
)


def plain(text, style):
    return text


def show(pieces, monkeypatch, widths, *, reflows=True):
    """An emulated window with the text in it; before each piece it gets the next width, if there is one."""
    widths = list(widths)
    window = Emulator(widths[0], reflows=reflows)
    monkeypatch.setattr(wrap, "window_width", lambda: window.columns)
    stream = MarkdownStream(wrap.WordWrap(plain, soft=True), lambda rows: None)
    for piece in pieces:
        if widths and (width := widths.pop(0)) != window.columns:
            window.resize(width)
        window.feed(stream.push(piece))
    window.feed(stream.end())
    return window


def squeezed(text):
    """Each line with single blanks."""
    return [" ".join(line.split()) for line in text.rstrip("\n").split("\n")]


def broken_words(rows, text, width):
    """Words that stand in a row and not in the text, though a row has room for them."""
    words = {word for word in text.split() if len(word) < width}
    ends = {word for long in text.split() if len(long) >= width for word in pieces_of(long)}
    return [word for row in rows for word in row.split() if word not in words | ends]


def pieces_of(word):
    return {word[start:end] for start in range(len(word)) for end in range(start + 1, len(word) + 1)}


def test_behind_another_width_a_word_begins_a_row_once(monkeypatch):
    """Where the cursor is nobody knows then; once it is known again, words stand side by side."""
    width = 40
    monkeypatch.setattr(wrap, "window_width", lambda: width)
    lines = wrap.WordWrap(plain, soft=True)
    assert lines("one two", "") == "one two"
    width = 30
    assert lines(" three four", "") == " \x1b[9999G three four"
    assert lines("\n", "") == "\n"
    width = 20
    assert lines("five six", "") == "five six"  # the cursor stands at a row's beginning
    assert lines("\n", "") == "\n"
    assert lines("a " + "b" * 19, "") == "a \x1b[9999G " + "b" * 19
    assert lines("\n", "") == "\n"
    assert lines("a " + "b" * 20, "") == "a " + "b" * 20  # no row has room for it: the terminal breaks it
    hard = wrap.WordWrap(plain, soft=False)
    assert hard("one two", "") == "one two"
    width = 9
    assert hard(" 10", "") == "\n10"
    assert hard(" 234567 8", "") == " 234567\n8"


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


SHOWN = TEXT.replace("`", "")


@pytest.mark.parametrize("width", [12, 20, 33, 79, 80, 81, 200])
def test_a_paragraph_is_copied_as_one_line(width, patch):
    window = show(cut(TEXT, width), patch, [width])
    assert squeezed(window.copied()) == squeezed(SHOWN)
    assert broken_words(window.rows, SHOWN, width) == []
    assert all(len(row) <= width for row in window.rows)
    assert width > 100 or len(window.rows) > 5


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=30), st.integers(2, 24), st.integers(0, 99))
def test_any_words_in_any_width(patch, words, width, seed):
    text = " ".join(words)
    window = show(cut(text, seed), patch, [width])
    assert squeezed(window.copied() or window.rows[0]) == [text] or window.goes_on[-1]
    whole = "".join(
        row.ljust(width) if goes_on else row for row, goes_on in zip(window.rows, window.goes_on, strict=True)
    )
    assert whole.split() == words


@pytest.mark.parametrize(
    ("text", "width", "rows"),
    [
        ("aaaa bbbb", 9, ["aaaa", "bbbb"]),  # a blank stays before the edge
        ("aaaa bbbb", 10, ["aaaa bbbb"]),
        ("aaaa bbbb", 5, ["aaaa", "bbbb"]),
        ("aaaa bbbb", 4, ["aaaa", " bbb", "b"]),  # wider than a row and its blank: the terminal breaks it
        ("aaaaaa b", 4, ["aaaa", "aa", "b"]),
        ("aaaaaaaa b", 4, ["aaaa", "aaaa", " b"]),
        ("漢漢漢漢 bbbb", 7, ["漢漢漢", "漢", "bbbb"]),  # a wide letter is not cut in two
        ("漢漢漢漢 bbb", 7, ["漢漢漢", "漢 bbb"]),
        ("- aaaa bbbb", 8, ["• aaaa", "bbbb"]),
        ("a  \nb", 3, ["a", "b"]),
        ("a  \nb", 1, ["a", "b"]),
    ],
)
def test_rows(text, width, rows, patch):
    assert show([text], patch, [width]).rows == rows


def test_what_has_no_blank_is_copied_to_the_letter(patch):
    for width in range(4, 40):
        for text in (
            "漢字かな交じり文漢字かな交じり文word漢字かな",
            "x" * 100,
            "漢" * 30 + "https://example.org/" * 3,
        ):
            window = show([text + "\n"], patch, [width])
            assert window.copied().rstrip("\n") == text


@pytest.mark.parametrize("reflows", [True, False])
@pytest.mark.parametrize(("before", "after"), [(72, 31), (31, 72), (60, 59), (40, 20)])
def test_words_are_whole_in_a_window_that_has_changed(patch, before, after, reflows):
    pieces = [
        f"{word} " for word in ("extraordinary circumstances, very important, surround all " * 30).split()
    ]
    window = show(pieces, patch, [*[before] * 60, *[after] * 200], reflows=reflows)
    at = len(window.rows) * 3 // 4  # far behind the change: 60 of 210 words came before
    assert broken_words(window.rows[at:-1], "".join(pieces), after) == []
    assert all(len(row) <= after for row in window.rows[at:])
    if reflows:
        window.feed("\n")
        assert squeezed(window.copied()) == squeezed("".join(pieces))
        window.resize(before)
        assert squeezed(window.copied()) == squeezed("".join(pieces))


def test_a_terminal_that_does_not_move_its_cursor_gets_line_ends(capsys):
    chat_screen.Screen().say("word " * 40)
    shown = capsys.readouterr().out
    assert shown.count("\n") > 1
    assert "\x1b" not in shown


def test_an_answer_is_copied_whole_out_of_a_real_terminal(tmp_path, server):
    """Its bytes, read back in an emulated window, are the lines that the conversation holds."""
    model = write_tiny_model(tmp_path / "tiny", template=TEMPLATE)
    bias = [f"--logit_bias={ord(letter) - 33}=60" for letter in "abcdefghijkl"]  # the byte-level alphabet
    bias += [f"--logit_bias={220}=61"]
    flags = (f"--model={model}", "--dtype=float32", "--max_new_tokens=200", "--ignore_eos", "--seed=1", *bias)
    terminal = Terminal(command("chat.py", *flags, "--temperature=5"), server.env, columns=33)
    try:
        terminal.wait_for("/help lists")
        terminal.type("Hello\r")
        terminal.wait_for("[max_new")
        terminal.wait_for("]")
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait_for("saved")
        terminal.type("/exit\r")
        assert terminal.end() == 0
    finally:
        terminal.close()
    content = json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"]
    assert content.count(" ") > 10
    answer = (
        terminal.raw.split(PROMPT_BEGINS)[1].partition(b"\x1b[?2004l")[2].partition(b"\x1b[6n")[0].decode()
    )
    window = Emulator(33)
    window.feed(answer.replace("\r\n", "\n"))
    first = next(line for line in squeezed(window.copied()) if line)
    assert first == " ".join(content.split())
    assert len(window.rows) > 4
