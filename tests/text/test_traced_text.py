"""Traced text: what `str` gives, and each character keeps its origin through every operation."""

import pytest
from markupsafe import Markup

from jllama.text.template.traced_text import (
    GIVEN,
    OWN,
    Traced,
    blotted,
    concatenate,
    join_traced,
    printed,
    runs,
    trace_data,
)

# Characters that differ: what comes out tells by itself where each of them came from.
TEXT = "  aBc,\td.\nEf:g\r\n  "
ORIGINS = "".join(map(chr, range(0x4E00, 0x4E00 + len(TEXT))))
BY_CHARACTER = {letter: origin for letter, origin in zip(TEXT, ORIGINS, strict=True) if letter not in " \n"}
FILL = Traced("*", "f")


def marked() -> Traced:
    return Traced(TEXT, ORIGINS)


def flat(result):
    return [result] if isinstance(result, str) else list(result)


OPERATIONS = """
t; t[3:]; t[:-4]; t[::2]; t[::-1]; t[4]; t[-6]; list(t)
t.strip(); t.lstrip(); t.rstrip(); t.strip(' \\n'); t.lstrip(' a'); t.rstrip(' \\n'); t.strip('x')
t.center(30, '*'); t.center(31, '*'); t[2:7].center(8, '*'); t[2:6].center(9, '*'); t[2:7].center(5, '*')
t.center(3); t.ljust(30, '*'); t.rjust(30, '*'); t.ljust(3, '*'); t.rjust(3, '*'); t[2:5].ljust(5, '*')
t[2:5].rjust(5, '*'); t.removeprefix('  a'); t.removeprefix('a'); t.removesuffix('  '); t.removesuffix('g')
t.split(); t.split(None, 1); t.split(','); t.split('f:', 1); t.split('x'); t.split(maxsplit=2)
t.split(',', 0); t.rsplit(); t.rsplit(None, 1); t.rsplit(',', 1); t.rsplit(maxsplit=2); t.rsplit(sep='.')
t.split(sep='.'); t.splitlines(); t.splitlines(True); t.splitlines(keepends=True); t.splitlines(False)
t.partition('f:'); t.partition('x'); t.rpartition('f:'); t.rpartition('x')
t.lower(); t.upper(); t.swapcase(); t.casefold(); t.title(); t.capitalize()
t.replace('f:', '*'); t.replace('x', '*'); t.replace('.', '**', 1); t.replace('d', '')
t.replace(',', '*', 0); t.replace(' ', '*'); t.replace(' ', '*', 1)
t + '*'; '*' + t; t * 2; 2 * t; t * 0; t * -1; t.join(['*', '*']); t.join([]); t.join(['*'])
"""


@pytest.mark.parametrize(
    "operation", [one.strip() for one in OPERATIONS.replace("\n", ";").split(";") if one.strip()]
)
def test_an_operation_gives_what_str_gives_and_keeps_each_origin(operation):
    made, plain = (eval(operation, {"t": text}) for text in (marked(), TEXT))
    assert flat(made) == flat(plain)
    for piece in flat(made):
        assert isinstance(piece, Traced)
        assert len(piece.origins) == len(piece)
        for letter, origin in zip(str.__str__(piece), piece.origins, strict=True):
            known = BY_CHARACTER.get(letter) or BY_CHARACTER.get(letter.swapcase())
            if known:
                assert origin == known
            elif letter == "*":
                assert origin == GIVEN
            else:  # blanks and line ends stand in the text more than once
                assert origin in ORIGINS or (origin == GIVEN and "center" in operation)


@pytest.mark.parametrize(
    "operation", ["split()", "rsplit()", "split(' ')", "splitlines()", "partition(' ')", "rpartition(' ')"]
)
def test_equal_pieces_are_told_apart_by_their_places(operation):
    text = "a a\na a"
    made = eval(f"t.{operation}", {"t": Traced(text, "0123456")})
    assert flat(made) == flat(eval(f"t.{operation}", {"t": text}))
    places = [piece.origins for piece in made if piece]
    assert sorted("".join(places)) == list("".join(places))
    assert [text[int(place[0]) : int(place[-1]) + 1] for place in places] == [p for p in made if p]


@pytest.mark.parametrize(
    ("text", "width"), [("7", 3), ("-7", 4), ("+7", 4), ("-7", 2), ("abc", 2), ("-", 3), ("", 2), ("--7", 5)]
)
def test_zfill_keeps_the_sign_in_front_and_its_origin(text, width):
    made = Traced(text, OWN * len(text)).zfill(width)
    assert made == text.zfill(width)
    assert made.origins.count(OWN) == len(text)
    assert all(origin == OWN for letter, origin in zip(made, made.origins, strict=True) if letter != "0")


def test_a_change_of_case_that_changes_the_length_loses_the_origins_and_invents_none():
    made = Traced("ß<", OWN).upper()
    assert made == "SS<"
    assert type(made) is str


def test_a_fill_keeps_its_own_origin():
    text = Traced("ab", OWN)
    assert text.center(5, FILL).origins == "ff" + OWN * 2 + "f"
    assert text.ljust(4, FILL).origins == OWN * 2 + "ff"
    assert text.rjust(4, FILL).origins == "ff" + OWN * 2


def test_one_origin_is_that_of_the_whole_text():
    assert Traced("abc", OWN).origins == OWN * 3
    assert Traced("abc").origins == GIVEN * 3
    assert Traced("a", OWN).origins == OWN
    assert Traced("", OWN).origins == ""
    assert Traced("abc", "xyz").origins == "xyz"


def test_replaced_and_joined_texts_bring_their_own_origins():
    text = Traced("a-b", OWN)
    assert text.replace("-", Traced("+", "n")).origins == "tnt"
    assert text.replace("-", "+").origins == "tgt"
    assert Traced(", ", OWN).join(["x", Traced("y", "n")]).origins == "gttn"
    assert (text + "x").origins == "tttg"
    assert ("x" + text).origins == "gttt"
    assert type(text.replace("", "x")) is str


def test_parts_in_a_row():
    assert join_traced(["a", Traced("b", "n")]).origins == "gn"
    assert join_traced(["a", Traced("b", "n")], OWN).origins == "tn"
    assert concatenate(["a", Traced("b", "n")]).origins == "tn"
    assert concatenate(["lone"]).origins == OWN * 4
    assert join_traced([]) == ""
    one = Traced("x", "n")
    assert join_traced([one]) is one


@pytest.mark.parametrize(
    ("value", "origin"), [(12, OWN), (1.5, OWN), (True, OWN), (None, GIVEN), (["x"], GIVEN), ("x", GIVEN)]
)
def test_what_is_printed_counts_as_given_but_for_numbers(value, origin):
    made = printed(value)
    assert made == str(value)
    assert set(made.origins) == {origin}


def test_runs_are_the_stretches_of_one_origin():
    assert list(runs(Traced("abcde", "ttgtt"))) == [(0, 2, "t"), (2, 3, "g"), (3, 5, "t")]
    assert list(runs(Traced("ab", "gg"))) == [(0, 2, "g")]
    assert list(runs(Traced("", ""))) == []
    assert list(runs("abc")) == [(0, 3, OWN)]
    assert list(runs(Traced("ab", "\ud800\U0001f600"))) == [(0, 1, "\ud800"), (1, 2, "\U0001f600")]


def test_half_a_surrogate_pair_is_replaced_in_its_place():
    made = blotted(Traced("a\ud800b", "xyz"))
    assert (str.__str__(made), made.origins) == ("a\ufffdb", "xyz")
    whole = Traced("aé", "xy")
    assert blotted(whole) is whole


PERCENT = [
    ("%s", "x", "x", "n"),
    ("<%s>", "x", "<x>", "tnt"),
    ("%s-%s", ("x", "y"), "x-y", "ntn"),
    ("%d%%%s", (7, "x"), "7%x", "gtn"),
    ("%(a)s.%(b)s", {"a": "x", "b": "y"}, "x.y", "ntn"),
    ("%(a)s%(a)s", {"a": "x"}, "xx", "nn"),
    ("%3s", "x", "  x", "ggg"),
    ("%r", "x", "'x'", "ggg"),
    ("<%3s>", "x", "<  x>", "tgggt"),
    ("<%r>", "x", "<'x'>", "tgggt"),
    ("<%ld>", 5, "<5>", "tgt"),
    ("<%((a)b)s>", {"(a)b": "x"}, "<x>", "ggg"),
    ("%5.1f|", 1.25, "  1.2|", "gggggt"),
    ("%s", 5, "5", "g"),
    ("none", (), "none", "tttt"),
]


@pytest.mark.parametrize(("pattern", "values", "text", "origins"), PERCENT)
def test_percent_fields_keep_what_they_print(pattern, values, text, origins):
    def mark(value):
        return Traced(value, "n") if isinstance(value, str) else value

    if isinstance(values, dict):
        values = {key: mark(value) for key, value in values.items()}
    else:
        values = tuple(map(mark, values)) if isinstance(values, tuple) else mark(values)
    made = Traced(pattern, OWN) % values
    assert (str.__str__(made), made.origins) == (text, origins)


def test_a_pattern_that_is_partly_given_writes_nothing_of_its_own():
    assert (Traced("a%s", "tgg") % Traced("x", OWN)).origins == "gt"
    assert (Traced("%%%s", "tgtt") % "x").origins == "gg"


@pytest.mark.parametrize(
    ("pattern", "values"), [("%s", ()), ("%d", "x"), ("x", "y"), ("%s %s", "y"), ("%", "y")]
)
def test_percent_refuses_what_python_refuses(pattern, values):
    with pytest.raises((TypeError, ValueError)) as plain:
        _ = pattern % values
    with pytest.raises(type(plain.value)):
        _ = Traced(pattern, OWN) % values


def test_data_is_copied_with_its_texts_as_given_and_what_is_traced_as_it_is():
    own = Traced("x", OWN)
    data = {"a": ["x\ud800", 1, None, own], "b": {"c": "y"}}
    made = trace_data(data)
    assert made == {"a": ["x\ufffd", 1, None, "x"], "b": {"c": "y"}}
    assert made["a"][3] is own
    assert (made["a"][0].origins, made["b"]["c"].origins) == ("gg", "g")
    assert data == {"a": ["x\ud800", 1, None, own], "b": {"c": "y"}}


def test_text_marked_as_html_escapes_what_it_is_added_to():
    assert Traced("<", OWN) + Markup("<b>") == "&lt;<b>"
    assert Markup("<b>") + Traced("<", OWN) == "<b>&lt;"
    with pytest.raises(TypeError):
        _ = Traced("a") + 1
