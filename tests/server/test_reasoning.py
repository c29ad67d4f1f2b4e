"""`Split`: thoughts and answers apart, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jllama.server.reasoning import Split, marks_thoughts

CASES = [
    ("", "Hello there.", "", "Hello there."),
    ("", " blank stays", "", " blank stays"),
    ("", "<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
    ("", "\n<think>a < b</thin</think>c", "a < b</thin", "c"),
    ("", "<think>no end </thin", "no end </thin", ""),
    ("", "<think></think>x", "", "x"),
    ("", "<think>a</think>  ", "a", ""),
    ("", "<thinking is hard", "", "<thinking is hard"),
    ("", "<thi", "", "<thi"),
    ("", "   ", "", "   "),
    ("", "so <think>late</think>", "", "so <think>late</think>"),
    ("", "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ("<|im_start|>assistant\n<think>\n", "hm\n</think>ja", "hm", "ja"),
    ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
]


def whole(before, text, cuts=()):
    split, thoughts, rest = Split(before), "", ""
    ends = [*sorted(cuts), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        more = split.push(text[start:end])
        thoughts, rest = thoughts + more[0], rest + more[1]
    more = split.push("", final=True)
    return thoughts + more[0], rest + more[1]


@pytest.mark.parametrize(("before", "text", "thoughts", "rest"), CASES)
def test_thoughts_stand_at_the_beginning_or_not_at_all(before, text, thoughts, rest):
    assert whole(before, text) == (thoughts, rest)
    for cut in range(len(text)):
        assert whole(before, text, [cut]) == (thoughts, rest)
    assert whole(before, text, range(len(text))) == (thoughts, rest)


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "bc"]), max_size=12
)


@given(pieces, st.sets(st.integers(0, 60)), st.sampled_from(["", "<think>", "x"]))
def test_cuts_change_nothing(pieces, cuts, before):
    text = "".join(pieces)
    wanted = whole(before, text)
    assert whole(before, text, [cut for cut in cuts if cut < len(text)]) == wanted
    assert set("".join(wanted)) <= set(text)


def test_which_templates_mark_thoughts():
    assert marks_thoughts("{{ '<think>' }}{{ '</think>' }}")
    assert not marks_thoughts("{{ message.content }}")
