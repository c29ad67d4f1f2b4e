"""Messages: whatever they quote, one or two bounded lines that can't steer a terminal."""

import ast
import pickle
import warnings
from pathlib import Path

import pytest

from jllama.config import ModelConfig
from jllama.errors import MOST, JllamaError, PromptTooLongError, about, escaped, nearest
from jllama.text.template.chat_template import ChatTemplate
from tests.support.checkpoint_files import KEYS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("jllama", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b]0;title\a\x7f\x9b", r"\x1b[31mred\x1b]0;title\x07\x7f\x9b"),
        ("abc\u202etxt\u2066\u200f", r"abc\u202etxt\u2066\u200f"),
        ("line\u2028\u2029\x85end", r"line\u2028\u2029\x85end"),
        ("half\udc80", r"half\udc80"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        (r"C:\new", r"C:\new"),
        ("größer 模型 мир 🙂 ☃", "größer 模型 мир 🙂 ☃"),
    ],
)
def test_what_is_quoted_is_one_harmless_line(text, shown):
    assert escaped(text) == shown
    assert str(JllamaError(text)) == shown
    assert str(JllamaError("wrong", text)) == f"wrong\n{shown}"


@pytest.mark.parametrize("filling", ["x", "\x1b", "模"])
def test_a_message_is_bounded_and_keeps_both_ends(filling):
    message = str(JllamaError(f"m.gguf: {filling * 10**6} is odd; download it again"))
    assert len(message) <= MOST
    assert message.startswith("m.gguf: ")
    assert message.endswith(" is odd; download it again")
    assert len(str(JllamaError(filling * 10**6, filling * 10**6))) <= 2 * MOST + 1


@pytest.mark.parametrize("length", [MOST - 1, MOST, MOST + 1, MOST + 2])
def test_a_line_is_cut_where_it_is_too_long_and_not_before(length):
    text = "".join(chr(33 + at % 90) for at in range(length))
    shown = escaped(text)
    if length <= MOST:
        assert shown == text
    else:
        assert shown == f"{text[: MOST // 2 - 3]} … {text[-MOST // 2 :]}"
        assert len(shown) == MOST


def test_a_prompt_that_is_too_long_tells_how_long():
    error = PromptTooLongError(10, 9, "shorten it")
    assert str(error) == "the prompt has 10 tokens and max_seq_len is 9: shorten it"
    assert (error.prompt_tokens, error.limit, error.final) == (10, 9, False)
    final = PromptTooLongError(10, 9, "raise it", 9)
    assert (
        str(final)
        == "the prompt has 10 tokens and max_seq_len is 9: shorten it; the model's context is no longer"
    )
    assert final.final


def test_a_mistake_begins_with_what_it_is_about_and_stays_of_its_kind():
    with pytest.raises(PromptTooLongError) as told, about("line 3"):
        raise PromptTooLongError(10, 9, "shorten it")
    assert str(told.value) == "line 3: the prompt has 10 tokens and max_seq_len is 9: shorten it"
    assert told.value.limit == 9
    with pytest.raises(JllamaError) as told, about("line 3"):
        raise JllamaError("too long", "shorten it")
    assert str(told.value) == "line 3: too long\nshorten it"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("temprature", " (did you mean 'temperature'?)"),
        ("zzz", ""),
        ("", ""),
        ("top", " (did you mean 'top_p'?)"),
    ],
)
def test_the_nearest_of_what_there_is(word, hint):
    assert nearest(word, iter(["temperature", "top_p", "seed"])) == hint
    assert nearest(word, []) == ""


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(JllamaError("wrong\n", "do this")))
    assert str(error) == "wrong\\n\ndo this"


def test_what_a_template_raises_is_quoted():
    with pytest.raises(JllamaError) as caught:
        ChatTemplate(r"{{ raise_exception('a\nb\x1b[31m') }}").render([])
    assert str(caught.value) == r"the chat template says: a\nb\x1b[31m"


@pytest.mark.parametrize("keys", [{"a\x1b[31m\nb": 1}, {"rope_scaling": {"type": "default", "a\x1b[31m": 1}}])
def test_warnings_quote_too(keys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ModelConfig.from_hf(KEYS | keys)
    (warning,) = caught
    assert str(warning.message).isprintable()
    assert r"a\x1b[31m" in str(warning.message)


def test_a_second_line_is_an_argument_of_its_own():
    """A line end inside the message could come from a file, so it is escaped."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "JllamaError":
                parts = [part for argument in node.args for part in ast.walk(argument)]
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                assert not any("\n" in text for text in texts if isinstance(text, str)), (path, node.lineno)
