"""Sixty schemas, from trivial to nested, recursive, with formats, patterns, bounds and alternatives."""

from typing import Any

Schema = dict[str, Any]
TEXT, WHOLE, NUMBER, YES_OR_NO = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))


def closed(required: int | None = None, **properties: Any) -> Schema:
    """An object of these properties alone, of which the first `required` must be there; None: all."""
    names = list(properties)[:required]
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


def array(items: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def text(**more: Any) -> Schema:
    return {"type": "string", **more}


TREE = closed(1, name=text(maxLength=8), children=array({"$ref": "#"}, maxItems=2))
LINKED = {
    "$defs": {"node": closed(1, value=WHOLE, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    "$ref": "#/$defs/node",
}
EXPRESSION = {
    "$defs": {
        "e": {
            "anyOf": [
                {"type": "integer"},
                closed(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
            ]
        }
    },
    "$ref": "#/$defs/e",
}
ADDRESS = closed(2, street=text(maxLength=20), city=text(maxLength=12), zip=text(pattern="^[0-9]{5}$"))
SHAPE = {
    "oneOf": [
        closed(kind={"const": "circle"}, radius={"type": "number", "minimum": 0}),
        closed(kind={"const": "square"}, side={"type": "number", "minimum": 0}),
    ]
}

SCHEMAS: dict[str, Schema | bool] = {
    "anything": {},
    "true": True,
    "text": TEXT,
    "whole number": WHOLE,
    "number": NUMBER,
    "boolean": YES_OR_NO,
    "null": {"type": "null"},
    "object": {"type": "object"},
    "array": {"type": "array", "maxItems": 4},
    "several types": {"type": ["string", "integer", "null"]},
    "constant text": {"const": "yes"},
    "constant object": {"const": {"a": [1, None], "b": "é"}},
    "enum of texts": {"enum": ["red", "green", "blue"]},
    "enum of all": {"enum": [1, "1", None, True, [1], {"a": 1}]},
    "enum with quotes": {"enum": ['say "hi"', "back\\slash", "new\nline", "slash/"]},
    "short text": text(maxLength=3),
    "long text": text(minLength=5, maxLength=12),
    "digits": text(pattern="^[0-9]{3}-[0-9]{4}$"),
    "found pattern": text(pattern="[a-c]x", maxLength=12),
    "either pattern": text(pattern="^(cat|dog)s?$"),
    "pattern of letters": text(pattern=r"^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,8})?$"),
    "date": text(format="date"),
    "time": text(format="time"),
    "date and time": text(format="date-time"),
    "email": text(format="email", maxLength=30),
    "uuid": text(format="uuid"),
    "ipv4": text(format="ipv4"),
    "ipv6": text(format="ipv6"),
    "hostname": text(format="hostname", maxLength=30),
    "from one to six": {"type": "integer", "minimum": 1, "maximum": 6},
    "between": {"type": "integer", "exclusiveMinimum": -10, "exclusiveMaximum": 10},
    "at least": {"type": "integer", "minimum": 1000},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "positive": {"type": "number", "exclusiveMinimum": 0, "maximum": 99.5},
    "even": {"type": "integer", "multipleOf": 2},
    "sevens": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "list of numbers": array(WHOLE, minItems=2, maxItems=4),
    "list of lists": array(array(WHOLE, maxItems=2), maxItems=2),
    "pair": {"type": "array", "prefixItems": [WHOLE, TEXT], "items": False, "minItems": 2},
    "list of choices": array({"enum": ["a", "b"]}, minItems=3, maxItems=3),
    "person": closed(2, name=text(maxLength=10), age={"type": "integer", "minimum": 0, "maximum": 130}),
    "all optional": closed(0, a=WHOLE, b=YES_OR_NO, c={"type": "null"}),
    "open": {"type": "object", "properties": {"id": WHOLE}, "required": ["id"]},
    "more of a kind": {"type": "object", "properties": {"id": WHOLE}, "additionalProperties": YES_OR_NO},
    "keys by pattern": {"type": "object", "patternProperties": {"^n_": WHOLE}, "additionalProperties": False},
    "a few keys": {"type": "object", "additionalProperties": WHOLE, "maxProperties": 2},
    "required beyond": {"type": "object", "required": ["x"], "additionalProperties": WHOLE},
    "address": ADDRESS,
    "nested": closed(1, person=closed(name=text(maxLength=8), home=ADDRESS), tags=array(TEXT, maxItems=2)),
    "five deep": closed(a=closed(b=closed(c=closed(d=closed(e=YES_OR_NO))))),
    "shape": SHAPE,
    "shapes": array(SHAPE, maxItems=2),
    "number or word": {"oneOf": [WHOLE, {"enum": ["none", "all"]}]},
    "any of objects": {"anyOf": [closed(a=WHOLE), closed(b=TEXT), closed(0, c=YES_OR_NO)]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "referred": {"$defs": {"w": WHOLE}, "type": "array", "items": {"$ref": "#/$defs/w"}, "maxItems": 3},
    "tree": TREE,
    "linked list": LINKED,
    "expression": EXPRESSION,
    "order": closed(
        3,
        id=text(pattern="^[A-Z]{2}[0-9]{4}$"),
        placed=text(format="date"),
        lines=array(
            closed(sku=text(maxLength=6), count={"type": "integer", "minimum": 1, "maximum": 99}),
            minItems=1,
            maxItems=2,
        ),
        paid=YES_OR_NO,
        note={"type": ["string", "null"], "maxLength": 20},
    ),
}
assert len(SCHEMAS) == 60
