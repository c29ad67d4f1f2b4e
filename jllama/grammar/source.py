"""What the library compiles: grammars of its own, of schemas, regular expressions, Lark, GBNF and choices."""

import json
import re

from jllama.grammar.gbnf import gbnf_to_lark
from jllama.grammar.library import library
from jllama.grammar.schemas import prepared, refusal
from jllama.text.tokenizer import Tokenizer

JSON_KINDS = ("json_schema", "json_object")
_JSON_RULE = re.compile(r"%json\s*(?=[{])")
_GBNF_RULE = re.compile(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", re.MULTILINE)


def is_gbnf(text: str) -> bool:
    """Whether a grammar is GBNF, by how its rules are written; else it is Lark."""
    return _GBNF_RULE.search(text) is not None


def library_grammar(kind: str, text: str) -> str:
    """The library's grammar of a `GenerationSettings.constraint`.

    Raises:
      JllamaError: the text is no such thing, or holds what is not enforced exactly.
    """
    matcher = library().LLMatcher
    if kind in JSON_KINDS:
        return matcher.grammar_from_json_schema(json.dumps(prepared(json.loads(text))))
    if kind == "regex":
        return matcher.grammar_from_regex(text)
    if kind == "choice":
        # Of one terminal: as a rule each text would be a way to go on, and thousands too many.
        text = "start: CHOICE\nCHOICE: " + " | ".join(map(lark_text, json.loads(text)))
    elif is_gbnf(text):
        text = gbnf_to_lark(text)
    else:
        text = _with_prepared(text)
    return matcher.grammar_from_lark(text)


def _with_prepared(lark: str) -> str:
    """A Lark grammar whose schemas (`%json {…}`) are prepared as others are."""
    parts, at = [], 0
    for found in _JSON_RULE.finditer(lark):
        if found.start() < at:
            continue  # inside a schema
        try:
            schema, end = json.JSONDecoder().raw_decode(lark, found.end())
        except (ValueError, RecursionError) as error:
            raise refusal("%json", f"it is no JSON ({error})", "write a schema behind %json") from None
        parts += [lark[at : found.end()], json.dumps(prepared(schema))]
        at = end
    return "".join([*parts, lark[at:]])


def lark_text(text: str) -> str:
    """How a Lark grammar writes a text."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in quoted)


def lark_token(tokenizer: Tokenizer, text: str) -> str:
    """How it writes a token: a special one by its id, any other as a text."""
    id_ = tokenizer.special_id(text)
    return lark_text(text) if id_ is None else f"<[{id_}]>"
