"""What the fields of a GGUF say of its tokens, each by itself."""

import warnings

import pytest

from jllama.errors import JllamaError
from jllama.text import tokenizer as tokenizer_module
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.tokenizer import Tokenizer
from jllama.text.vocabularies.gguf_fields import chat_templates, flag, given_types, token_id
from jllama.text.vocabularies.spm import NORMAL
from jllama.text.vocabularies.spm_file import read_model
from tests.support.tokenizer_helpers import byte_level_json, write_directory


def fields(model="gpt2", tokens=3, **given):
    named = {f"tokenizer.ggml.{name}": value for name, value in given.items()}
    return {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": ["x"] * tokens, **named}


@pytest.mark.parametrize(
    ("given", "name", "found"),
    [
        (fields(bos_token_id=0), "bos", 0),
        (fields(bos_token_id=2), "bos", 2),
        (fields(bos_token_id=3), "bos", None),
        (fields(bos_token_id=-1), "bos", None),
        (fields(), "bos", None),
        (fields(eot_token_id=2), "eot", 2),
        (fields("llama"), "bos", 1),
        (fields("llama"), "eos", 2),
        (fields("llama"), "unknown", 0),
        (fields("llama"), "eot", None),
        (fields("llama", 2), "eos", None),  # llama.cpp's own is outside of so few
        (fields("llama", bos_token_id=0), "bos", 0),
        (fields("llama", bos_token_id=9), "bos", 1),  # as llama.cpp does
        (fields("llama", unknown_token_id=2), "unknown", 2),
    ],
)
def test_the_token_of_a_role(given, name, found):
    assert token_id(given, name) == found


@pytest.mark.parametrize("token", [3, -1, 99])
def test_an_unknown_token_outside_the_vocabulary_is_damage(token):
    with pytest.raises(IndexError, match=f"its unknown token is number {token}"):
        token_id(fields(unknown_token_id=token), "unknown")


@pytest.mark.parametrize("token", ["1", 1.0, True, [1]])
def test_what_is_no_token_id(token):
    with pytest.raises(JllamaError, match=r"tokenizer\.ggml\.bos_token_id is .*, which is no token id"):
        token_id(fields(bos_token_id=token), "bos")


@pytest.mark.parametrize(("token", "is_told"), [(2, False), (3, True), (-1, True)])
def test_a_role_outside_the_vocabulary_is_told_where_that_is_asked_for(token, is_told):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        token_id(fields(eos_token_id=token), "eos")
        assert not told
        token_id(fields(eos_token_id=token), "eos", warn=True)
    words = f"eos_token_id={token} is outside its vocabulary of 3 tokens; it is ignored"
    assert [words in str(one.message) for one in told] == [True] * is_told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert token_id(fields("llama", 2), "eos", warn=True) is None  # the file says nothing itself


def test_a_flag():
    for value in (True, False):
        assert flag(fields(add_bos_token=value), "add_bos_token", not value) is value
        assert flag(fields(), "add_bos_token", value) is value
    with pytest.raises(JllamaError, match=r"add_bos_token is 'yes', neither true nor false"):
        flag(fields(add_bos_token="yes"), "add_bos_token", True)


@pytest.mark.parametrize(
    ("types", "found"),
    [([3, 1, 4], [3, 1, 4]), ([], [NORMAL] * 3), ([3, 1], [NORMAL] * 3), ([3] * 4, [NORMAL] * 3)],
)
def test_types_count_where_there_is_one_for_each_token(types, found):
    assert given_types(fields(token_type=types)) == found
    assert given_types(fields()) == [NORMAL] * 3


def test_templates_by_name():
    main = "tokenizer.chat_template"
    assert chat_templates({}) == {}
    assert chat_templates({main: ""}) == {}
    assert chat_templates({main: "a", f"{main}.tool_use": "b", f"{main}s": "c"}) == {
        "default": "a",
        "tool_use": "b",
    }
    with pytest.raises(JllamaError, match=r"tokenizer\.chat_template\.x is 3, not a text"):
        chat_templates({f"{main}.x": 3})


def test_each_set_of_turn_tokens_has_a_reader_of_its_own(tmp_path, monkeypatch):
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=byte_level_json()))
    turns = {"a": frozenset("a"), "b": frozenset("b"), "ab": frozenset("ab"), "": frozenset()}
    monkeypatch.setattr(tokenizer_module, "turn_tokens", lambda template, _: turns[template.source])
    read = {source: tokenizer._reader(ChatTemplate(source)) for source in turns}
    assert read.pop("") is tokenizer
    assert len({id(one) for one in read.values()}) == 3
    for source, one in read.items():
        assert tokenizer._reader(ChatTemplate(source)) is one


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x05\x12\x03abc",  # a piece whose score has three bytes
        b"\x0a\x03\x0a\x01\xff",  # a piece that is no UTF-8
        b"\x0a\x02\x0a\x05",  # a field beyond the end
        b"\x0b",  # a kind of field that there is not
        b"\xff" * 11,  # a number without end
        b"\x08\x05",  # a number where a piece stands
        b"",
    ],
)
def test_what_is_no_sentencepiece_model(tmp_path, data):
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(JllamaError, match=r"x\.model is not a SentencePiece model"):
        read_model(tmp_path / "x.model")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("', '.join(names | map('upper'))", "A, B"),
        ("', '.join(names)", "a, b"),
        ("'-'.join('ab')", "a-b"),
        ("'-'.join([])", ""),
        ("'-'.join(names | select('equalto', 'b'))", "b"),
        ("'abc'.replace('b', 'xx')", "axxc"),
        ("'aaa'.replace('a', 'b', 2)", "bba"),
        ("'a'.center(5, '*')", "**a**"),
        ("'a'.ljust(3) + '|'", "a  |"),
        ("'7'.zfill(3)", "007"),
        ("'a\\tb'.expandtabs(4)", "a   b"),
        ("'a,b,c'.split(',', 1) | join('|')", "a|b,c"),
        ("'a b'.split() | join('|')", "a|b"),
        ("'a,b,c'.rsplit(',', maxsplit=1) | join('|')", "a,b|c"),
        ("'a\\nb'.splitlines() | join('|')", "a|b"),
        ("'{}-{x}'.format(1, x=2)", "1-2"),
        ("'abc'.find('c')", "2"),
    ],
)
def test_a_text_s_methods_give_what_python_s_give(expression, text):
    assert ChatTemplate("{{ " + expression + " }}").render([], names=["a", "b"]) == text
