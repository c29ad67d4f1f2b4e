"""What a schema lets come, byte by byte: nothing that it forbids, in whatever spelling."""

import datetime
import json
import re

import pytest

from jllama.errors import JllamaError
from jllama.grammar.schemas import _DAYS

pytest.importorskip("llguidance")
from tests.support.schema_matching import matcher_of, takes


def integers(**more):
    return {"type": "object", "properties": {"a": {"type": "integer"}}, **more}


ENDS = {"enum": ["a", 1, None, {"b": [1]}]}
EITHER = {"oneOf": [{"type": "string"}, {"type": "null"}]}


# What Python's `json.dumps` writes is taken, in the order of the schema's keys.
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (True, ['{"a": [1, null]}', "3"], ["{"]),
        (
            integers(),
            ['{"a": 1, "b": "x"}', "{}"],
            ['{"a": "x"}', '{"b": 1, "a": "x"}', '{"a": 1, "a": "x"}'],
        ),
        (integers(), [], ['{"\\u0061": "x"}', '{"\\u0061": 1}', '{"a":1}', '{ "a": 1}', '{"a": 1 }']),
        (integers(required=["b"]), ['{"a": 1, "b": 2}'], ['{"a": 1}']),
        (integers(additionalProperties=False), ['{"a": 1}'], ['{"b": 1}']),
        ({"type": "object", "maxProperties": 1}, ['{"a": 1}'], ['{"a": 1, "b": 2}']),
        ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, [], ['{"\\u0061b": "x"}']),
        ({"type": "object", "properties": {"a/b": {"type": "null"}}}, ['{"a/b": null}'], ['{"a\\/b": 1}']),
        (ENDS, ['"a"', "1", "null", '{"b": [1]}'], ["2", '{"b": [2]}', '"\\u0061"']),
        (EITHER, ['"a"', "null"], ["1"]),
        ({"type": "string", "maxLength": 2}, ['"é😀"', '"\\n\\""'], ['"abc"', '"\\n\\n\\n"', '"\\u0001"']),
        ({"type": "string", "pattern": "^a|b$"}, ['"ax"', '"xb"'], ['"xx"']),
        ({"type": "integer", "minimum": -5, "exclusiveMaximum": 3.5}, ["-5", "3"], ["-6", "4", "1.0"]),
        ({"type": "number", "multipleOf": 0.01, "maximum": 2}, ["1.99", "2"], ["1.999", "2.01", "2.0e1"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0.5", "3"], ["0", "-0.0", "0.0"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"2024-04-31"']),
        ({"type": "string", "format": "time"}, ['"23:59:59Z"'], ['"24:00:00Z"', '"12:00:60Z"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T10:00:00Z"'], ['"1900-02-29T10:00:00Z"']),
        ({"format": "date"}, ["3"], ['"x"']),
        ({"properties": {"format": {"const": "date"}}}, ['{"format": "date"}'], ['{"format": "x"}']),
        ({"type": "string", "format": "ipv4"}, ['"1.1.1.1"'], ['"256.1.1.1"']),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}, "minimum": 3}, ["3"], ["2"]),
        ({"type": "array", "items": {"$ref": "#"}}, ["[[], [[]]]"], ["[1]"]),
        ({"prefixItems": [{"type": "integer"}], "items": False, "type": "array"}, ["[1]", "[]"], ["[1, 2]"]),
        ({"x-guidance": {"whitespace_flexible": True}, "type": "array"}, ["[ ]", "[1,2]"], ["[1"]),
        ({"minProperties": 1, "type": "object"}, ['{"a": 1}'], ["{}"]),
    ],
    ids=str,
)
def test_a_mask_lets_come_what_the_schema_says(schema, good, bad):
    matcher = matcher_of(schema)
    assert [text for text in good if not takes(matcher, text)] == []
    assert [text for text in bad if takes(matcher, text)] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (False, "nothing matches false"),
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"$ref": "#"}, "nothing matches it"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "nothing matches it"),
        ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "Unsatisfiable"),
        ({"not": {}}, "Unimplemented keys.*not"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, "anyOf is, where no two can hold at once"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://example.com/x"}, "not present"),
        ({"$ref": "file:///etc/passwd"}, "not present"),
        ({"$ref": "#/foo", "foo": {"format": "date"}}, "no schema stands, at #"),
        ({"format": "nope"}, "Unknown format: nope"),
        ({"pattern": "(?=a)"}, "look-around"),
        ({"x-guidance": {"lenient": True}}, "x-guidance holds 'lenient'"),
        ({"x-guidance": {"item_separator": "x"}}, "x-guidance holds 'item_separator'"),
        ({"x-guidance": 3}, "x-guidance holds '3'"),
        ({"items": {"x-guidance": {}}}, "inside a schema, at #/items"),
        ({"minProperties": 2}, r"minProperties is more than what is required \(1\), at #"),
        ({"properties": {"p": {"const": "a\0"}}}, r"control character, which never comes, at #/properties/p"),
        ({"pattern": "^\\x00$"}, "names control characters"),
    ],
    ids=str,
)
def test_what_is_not_enforced_exactly_is_refused_with_the_place(schema, words):
    with pytest.raises(JllamaError, match=words) as caught:
        matcher_of(schema)
    assert "json_schema can't be used" in str(caught.value)


def test_dates_are_those_of_the_calendar():
    for year in (1, 4, 99, 100, 400, 1900, 2000, 2023, 2024, 2100, 9999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04d}-{month:02d}-{day:02d}"
                assert bool(re.fullmatch(_DAYS, text)) == _is_date(text), text


def _is_date(text):
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def test_a_schema_inside_a_grammar_is_held_to_the_same(model):
    from jllama.grammar.compiler import compiled
    from tests.support.schema_matching import byte_words

    words = byte_words()[1]
    schema = json.dumps(integers(additionalProperties=True))
    matcher = compiled(words, "grammar", f'start: "<" obj ">"\nobj: %json {schema}')
    assert takes(matcher, '<{"a": 1}>')
    assert not takes(matcher, '<{"\\u0061": "x"}>')
    with pytest.raises(JllamaError, match="minProperties"):
        compiled(words, "grammar", 'start: %json {"minProperties": 3}')
    with pytest.raises(JllamaError, match="no JSON"):
        compiled(words, "grammar", 'start: %json {"minProperties"')
