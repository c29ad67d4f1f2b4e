"""Program text in colours: line by line, never altered, and none where the terminal has none."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from jllama.cli.terminal import colours as chat_colours
from jllama.cli.terminal import screen as chat_screen
from jllama.cli.terminal.colours import LOOKS_BACK, Colours, colours
from jllama.cli.terminal.markdown import HELD_AT_MOST, MarkdownStream
from jllama.cli.terminal.wrap import WordWrap
from tests.support.screens import cut

PYTHON = '''```python
def f(x: int) -> str:
    """Two lines
    of text, return nothing."""
    return f"{x:>3}" + '\\n'  # def
```
and `code`
'''
SOURCE = Path(chat_colours.__file__).read_text(encoding="utf-8")


def paint(text, style):
    return f"<{style}>{text}</>" if style and text else text


def styled(pieces):
    stream = MarkdownStream(paint, lambda rows: None)
    return "".join([*map(stream.push, pieces), stream.end()])


def lines_of(colouring, text):
    """The stretches of each line."""
    return [colouring(line) for line in text.splitlines(keepends=True)]


def test_a_block_is_coloured_by_what_came_before():
    shown = styled([PYTHON]).split("\n")
    assert shown[1].startswith("<block keyword>def</><block text> </><block name>f</><block text>(x: </>")
    assert shown[2] == '<block text>    </><block string>"""Two lines</>'
    assert shown[3].startswith('<block string>    of text, return nothing."""</>')  # no keyword in a string
    assert shown[4].startswith("<block text>    </><block keyword>return</><block text> </><block string>f")
    assert shown[4].endswith("<block comment># def</>")
    assert shown[5:7] == ["<block dim>```</>", "and <code>code</>"]


@pytest.mark.parametrize("seed", range(30))
def test_colours_do_not_depend_on_how_the_text_was_cut(seed):
    assert styled(cut(PYTHON, seed)) == styled([PYTHON])


@pytest.mark.parametrize(
    "language",
    "python C++ js html bash console diff markdown".split(),
)
def test_the_text_is_never_altered(language):
    text = SOURCE[: LOOKS_BACK + 500] + "\n\t \x00\ufffd漢字 'open"
    colouring = colours(f"```{language}")
    shown = [piece for line in lines_of(colouring, text) for piece in line]
    assert "".join(piece for piece, _ in shown) == text
    assert all(style.startswith("block") for _, style in shown)
    assert len(colouring._before) <= LOOKS_BACK


def test_a_long_block_costs_no_more_than_a_short_one():
    """Only what a line depends on is read again: a function of its own, or a string however long."""
    colouring = colours("```python")
    block = "def f(x):\n    return 'text'\n\n\n"
    first, second, *others = [lines_of(colouring, block) for _ in range(100)]
    assert all(other == second for other in others)
    assert ("return", "block keyword") in first[1]
    assert len(colouring._before) <= 2 * len(block)


def test_a_blank_line_within_a_string_is_no_new_beginning():
    colouring = colours("```python")
    shown = lines_of(colouring, 'x = """one\n\nreturn\n\nreturn"""\n\ndef f(): pass\n')
    assert shown[2] == [("return\n", "block string")]
    assert shown[4][0][1] == "block string"
    assert shown[6][0] == ("def", "block keyword")
    colouring = colours("```c")
    shown = lines_of(colouring, "/* one\n\nint a;\n\nint b; */\n\nint c;\n")
    assert shown[2] == [("int a;\n", "block comment")]
    assert shown[4][0] == ("int b; */", "block comment")
    assert shown[6][0] == ("int", "block keyword")


def test_a_very_long_block_without_a_beginning_is_bounded():
    colouring = colours("```python")
    for _ in range(12):
        colouring("    x = 1\n" * (LOOKS_BACK // 40))
        assert len(colouring._before) <= LOOKS_BACK
    assert ("1", "block number") in colouring("    x = 1\n")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\n" * (LOOKS_BACK // 2), "a\n" * (LOOKS_BACK // 2)),
        ("b\n" + "a\n" * (LOOKS_BACK // 2), "a\n" * (LOOKS_BACK // 2 - 1)),  # whole lines alone
        ("b" * 9 + "\n" + "a" * LOOKS_BACK, "a" * LOOKS_BACK),
        ("a" * (LOOKS_BACK + 5), "a" * LOOKS_BACK),  # a line that has no beginning
    ],
)
def test_what_is_read_again_has_an_end_and_begins_a_line(text, kept):
    plain = SimpleNamespace(get_tokens_unprocessed=lambda text: [(0, "Token.Text", text)])
    colouring = Colours(plain)
    colouring(text)
    assert colouring._before == kept


@pytest.mark.parametrize(
    ("fence", "known"),
    [
        ("```python", True),
        ("``` Python title='x'", True),
        ("~~~c++", True),
        ("```{.python .numberLines}", True),
        ("```", False),
        ("```nothing-of-that-name", False),
        ("```" + "x" * 5000, False),
        ("```../../x", False),
        ("```漢字", False),
    ],
)
def test_the_language_is_what_the_fence_says(fence, known):
    assert (colours(fence) is not None) is known


def test_a_lexer_that_fails_leaves_plain_text():
    class Raises:
        def get_tokens_unprocessed(self, text):
            raise KeyError(text)

    class Loses:
        def get_tokens_unprocessed(self, text):
            return [(0, "Token.Keyword", text[:-1])]

    for lexer in (Raises(), Loses()):
        colouring = Colours(lexer)
        assert colouring("one\n") == [("one\n", "block")]
        assert colouring("two\n") == [("two\n", "block")]


def test_a_line_waits_for_its_end_and_an_unknown_language_does_not():
    stream = MarkdownStream(lambda text, style: text, lambda rows: None)
    assert [stream.push(piece) for piece in ("```python\n", "x = ", "1\n", "y", "\n``", "`\n")] == [
        *("```python\n", "", "x = 1\n", "", "y\n", "```\n")
    ]
    assert [stream.push(piece) for piece in ("```what\n", "x = ", "1\n", "y")] == [
        "```what\n",
        "x = ",
        "1\n",
        "y",
    ]
    stream = MarkdownStream(lambda text, style: text, lambda rows: None)
    stream.push("```python\n")
    assert stream.push("x" * HELD_AT_MOST) == ""
    assert stream.push("yz") == "x" * HELD_AT_MOST + "yz"
    assert stream.push("z") == ""  # the rest of the line waits again
    assert stream.end() == "z"


def test_program_text_is_never_broken(monkeypatch):
    monkeypatch.setattr("jllama.cli.terminal.wrap.window_width", lambda: 10)
    wrap = WordWrap(lambda text, style: text, soft=True)
    for style in ("block", "block keyword", "block dim"):
        assert wrap("many words that would not fit", style) == "many words that would not fit"


COLOUR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3\d|9\d)(?:;[\d;]*)?m")


@pytest.mark.parametrize(
    ("environment", "escapes", "coloured"),
    [
        ({"FORCE_COLOR": "1", "TERM": "xterm-256color"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, False),
        ({"TERM": "xterm-256color"}, False, False),  # a pipe
    ],
)
def test_colours_are_for_terminals_that_have_them(environment, escapes, coloured, monkeypatch, capsys):
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chat_screen.Screen().stream(piece for piece in cut(PYTHON, 1))
    shown = capsys.readouterr().out
    assert ("\x1b" in shown) is escapes
    assert (COLOUR.search(shown) is not None) is coloured
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert plain == (PYTHON.replace("`code`", "code") if escapes else PYTHON)


def test_an_answer_goes_on_amid_a_line_of_a_block(monkeypatch, capsys):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    begun = PYTHON[: PYTHON.index("of text")]
    chat_screen.Screen().stream((piece for piece in (PYTHON[len(begun) :],)), begun)
    first = capsys.readouterr().out.split("\n")[0]
    assert first.startswith("    \x1b[32mof text, return nothing.")  # green as a string is


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_line_that_was_cut_in_its_indentation_has_it_when_it_goes_on(capsys, monkeypatch, term):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", term)
    begun = "```python\nfor a in b:\n       "
    chat_screen.Screen().stream((piece for piece in (" print(a)\n    print(b)\n",)), begun)
    assert capsys.readouterr().out == "        print(a)\n    print(b)\n"
    chat_screen.Screen().stream((piece for piece in (" x\n",)), "for a in b:\n    print(")
    assert capsys.readouterr().out == " x\n"


BLOCK = "```\nab```c\n# no heading\n| no row |\n```\n# A heading\nend\n"


def test_a_line_of_a_plain_block_that_comes_in_pieces_is_one_line():
    """What would begin a line is text amid one."""

    def shown(*pieces):
        told, before = styled(pieces), ""
        while told != before:
            told, before = re.sub(r"<([a-z ]+)>([^<]*)</><\1>", r"<\1>\2", told), told
        return told

    whole = shown(BLOCK)
    assert "<block>ab```c</>" in whole
    assert "<block># no heading</>" in whole
    for at in range(len(BLOCK)):
        assert shown(BLOCK[:at], BLOCK[at:]) == whole
    assert shown(*BLOCK) == whole
