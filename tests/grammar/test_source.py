"""How texts, choices and schemas stand in the library's grammars; nothing is compiled."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jllama.errors import JllamaError
from jllama.grammar import source
from jllama.grammar.schemas import STYLE, prepared
from jllama.grammar.source import is_gbnf, lark_text, lark_token

FREE = {"item_separator": ",", "key_separator": ":"}
PLAIN = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": '"\\bfnrt',
    "json_allow_general_unicode_escapes": False,
}


@pytest.mark.parametrize(
    ("text", "gbnf"),
    [
        ('root ::= "a"', True),
        ('  my-rule_1\t::= "a"', True),
        ('# comment\nroot ::= "a"', True),
        ('start: "a"', False),
        ('start: "x ::= y"', False),
        ("", False),
    ],
)
def test_a_grammar_is_told_by_how_its_rules_are_written(text, gbnf):
    assert is_gbnf(text) is gbnf


@given(st.text())
def test_a_text_is_quoted_so_that_it_means_itself(text):
    quoted = lark_text(text)
    assert json.loads(quoted) == text
    assert all(letter.isprintable() or ord(letter) > 0xFFFF for letter in quoted)


def test_a_special_token_stands_by_its_id():
    tokenizer = SimpleNamespace(special_id=lambda text: 7 if text == "<think>" else None)
    assert lark_token(tokenizer, "<think>") == "<[7]>"
    assert lark_token(tokenizer, 'a"') == '"a\\""'


@pytest.fixture
def handed_on(monkeypatch):
    matcher = SimpleNamespace(
        **{
            f"grammar_from_{kind}": lambda text, kind=kind: (kind, text)
            for kind in ("json_schema", "regex", "lark")
        }
    )
    monkeypatch.setattr(source, "library", lambda: SimpleNamespace(LLMatcher=matcher))
    monkeypatch.setattr(source, "gbnf_to_lark", lambda text: f"lark of {text}")


@pytest.mark.parametrize(
    ("kind", "text", "made"),
    [
        ("regex", "a+", ("regex", "a+")),
        ("choice", '["a", "é\\""]', ("lark", 'start: CHOICE\nCHOICE: "a" | "é\\""')),
        ("grammar", 'root ::= "a"', ("lark", 'lark of root ::= "a"')),
        ("grammar", 'start: "a"', ("lark", 'start: "a"')),
    ],
)
def test_what_the_library_compiles(handed_on, kind, text, made):
    assert source.library_grammar(kind, text) == made


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_a_schema_is_prepared(handed_on, kind):
    name, text = source.library_grammar(kind, '{"type": "null"}')
    assert (name, json.loads(text)) == ("json_schema", {"type": "null", "x-guidance": PLAIN})


def test_schemas_inside_a_grammar_are_prepared_where_they_stand(handed_on):
    grammar = 'start: a "%json {" b\na: %json {"const": "%json {}"} "x"\nb: %json\n{"enum": [1]}\n'
    _, text = source.library_grammar("grammar", grammar.replace('"%json {" ', ""))
    parts = text.split("%json")
    assert parts[0] == "start: a b\na: "
    first, rest = json.JSONDecoder().raw_decode(text, text.index("{"))
    assert first == {"const": "%json {}", "x-guidance": PLAIN}
    assert text[rest:].startswith(' "x"\nb: %json\n{')
    last, end = json.JSONDecoder().raw_decode(text, text.index("{", rest))
    assert last == {"enum": [1], "x-guidance": PLAIN}
    assert text[end:] == "\n"


def test_a_schema_may_be_the_first_or_follow_another_at_once(handed_on):
    _, text = source.library_grammar("grammar", '%json {"enum": [1]}%json {"enum": [2]}')
    empty, *parts = text.split("%json ")
    assert empty == ""
    assert [json.loads(part) for part in parts] == [{"enum": [at], "x-guidance": PLAIN} for at in (1, 2)]


# Schemas as they are given to the library.


@pytest.mark.parametrize(
    ("given", "style"),
    [
        (None, PLAIN),
        ({}, PLAIN),
        ({"whitespace_flexible": True}, PLAIN | FREE | {"whitespace_flexible": True}),
        ({"whitespace_flexible": False}, PLAIN),
        ({"item_separator": " ,"}, PLAIN | {"item_separator": " ,"}),
        (
            {"whitespace_flexible": True, "key_separator": " : "},
            PLAIN | {"whitespace_flexible": True, "item_separator": ",", "key_separator": " : "},
        ),
    ],
)
def test_blanks_are_as_json_dumps_writes_them_unless_it_is_said(given, style):
    schema = {"type": "null"} if given is None else {"type": "null", "x-guidance": given}
    before = json.dumps(schema)
    assert prepared(schema) == {"type": "null", "x-guidance": style}
    assert json.dumps(schema) == before
    assert STYLE == PLAIN


BAD = {"x-guidance": {}}
ONE = """items additionalItems additionalProperties contains propertyNames not if then else unevaluatedItems
unevaluatedProperties""".split()
PLACES = [
    *((f"#/{name}", {name: BAD}) for name in ONE),
    *((f"#/{name}/1", {name: [True, BAD]}) for name in ("allOf", "anyOf", "oneOf", "prefixItems", "items")),
    *(
        (f"#/{name}/k", {name: {"j": {}, "k": BAD}})
        for name in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
    ),
    ("#/items/properties/a/not", {"items": {"properties": {"a": {"not": BAD}}}}),
]


@pytest.mark.parametrize(("place", "schema"), PLACES, ids=str)
def test_every_schema_in_a_schema_is_looked_at(place, schema):
    with pytest.raises(JllamaError, match="inside a schema, at ") as caught:
        prepared(schema)
    assert f"at {place}:" in str(caught.value)


@pytest.mark.parametrize("keyword", ["const", "enum", "default", "required", "title"])
def test_what_is_no_schema_is_not(keyword):
    value = {"enum": [BAD], "required": ["x-guidance"]}.get(keyword, BAD)
    assert prepared({keyword: value})[keyword] == value


@pytest.mark.parametrize("name", ["date", "time", "date-time"])
def test_a_format_that_the_library_takes_loosely_is_a_pattern_too(name):
    schema = {"properties": {"d": {"format": name, "allOf": [{"minLength": 1}]}, "e": {"format": "uuid"}}}
    made = prepared(schema)["properties"]
    kept, more = made["d"]["allOf"]
    assert kept == {"minLength": 1}
    assert more["pattern"].startswith("^")
    assert made["e"] == {"format": "uuid"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minProperties": 3, "required": ["a", "b", "c"]}, None),
        ({"minProperties": 4, "required": ["a", "b", "c"]}, r"required \(3\), at #:"),
        ({"minProperties": 1}, None),
        ({"minProperties": 1.5}, r"required \(1\)"),
        ({"minProperties": 0, "required": "a"}, None),
        ({"$defs": {"a/b": {}}, "$ref": "#/$defs/a~1b"}, None),
        ({"$defs": {"c~d": {}}, "$ref": "#/$defs/c~0d"}, None),
        ({"$defs": {"e~1f": {}}, "$ref": "#/$defs/e~01f"}, None),
        ({"$defs": {"e/f": {}}, "$ref": "#/$defs/e~01f"}, "no schema stands"),
        ({"$defs": {"a b": {}}, "$ref": "#/$defs/a%20b"}, None),
        ({"$defs": {"a": {}}, "$ref": "#/$defs/b"}, r"\$ref names '#/\$defs/b', where no schema stands"),
        ({"definitions": {"a": {}}, "$ref": "#/definitions/a"}, None),
        ({"$defs": {"a": True}, "$ref": "#/$defs/a"}, None),
        ({"$ref": "#"}, None),
        ({"$ref": "other.json"}, None),
    ],
    ids=str,
)
def test_counts_of_keys_and_references(schema, words):
    if words is None:
        assert "x-guidance" in prepared(schema)
    else:
        with pytest.raises(JllamaError, match=words):
            prepared(schema)


@pytest.mark.parametrize("letter", ["\0", "\x07", "\x0b", "\x0e", "\x1f", "\x7f"])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: {"const": text},
        lambda text: {"const": {"a": [text]}},
        lambda text: {"const": {text: 1}},
        lambda text: {"enum": ["b", text]},
        lambda text: {"required": [text]},
        lambda text: {"properties": {text: {}}},
        lambda text: {"pattern": text},
        lambda text: {"patternProperties": {text: {}}},
    ],
)
def test_control_characters_that_no_escape_writes_are_refused_wherever_they_must_come(make, letter):
    with pytest.raises(JllamaError, match="control character"):
        prepared(make(f"a{letter}"))
    for written in "\b\t\n\f\r ~\x80":
        prepared(make(f"a{written}"))


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\x00", r"\x1f", r"\x7f", r"\x7F", r"\x{1}", r"\u0001", r"\u007f", r"\u{1}", r"\cA", r"\v", r"\0"),
        *(r"\a", r"\e", r"\pC", r"\PC", r"\p{Cc}", r"\P{C}", "[[:cntrl:]]", "[[:^cntrl:]]"),
    ],
)
def test_patterns_that_name_them_are_refused(pattern):
    with pytest.raises(JllamaError, match="names control characters, which never come"):
        prepared({"pattern": f"a{pattern}"})


@pytest.mark.parametrize("pattern", [r"\x20\u0041\n\t\d\w\s\pL\p{Lu}\b\\", "[[:alpha:]]", "c0vae"])
def test_patterns_of_other_letters_are_taken(pattern):
    assert prepared({"pattern": pattern})["pattern"] == pattern


@pytest.mark.parametrize("schema", ["{", '{"a": ' * 100_000], ids=["cut", "deep"])
def test_a_schema_inside_a_grammar_that_is_no_json(schema):
    with pytest.raises(JllamaError, match=r"it is no JSON .*, at %json: write a schema behind %json"):
        source._with_prepared(f"start: %json {{}}\na: %json {schema}")
