"""What the library compiles: grammars of its own, of schemas, regular expressions, Lark, GBNF and choices."""

import json
import re

from jllama.grammar.gbnf import gbnf_to_lark
from jllama.grammar.library import library
from jllama.grammar.refusals import check_schema
from jllama.text.tokenizer import Tokenizer

JSON_KINDS = ("json_schema", "json_object")
# One way to write a value: free blanks would let a small model write nothing else until its limit.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
STRICT = {"lenient": False, "coerce_one_of": False}
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
        check_schema(json.loads(text))
        return matcher.grammar_from_json_schema(text, defaults=JSON_STYLE, overrides=STRICT)
    if kind == "regex":
        return matcher.grammar_from_regex(text)
    if kind == "choice":
        text = "start: " + " | ".join(map(lark_text, json.loads(text)))
    elif is_gbnf(text):
        text = gbnf_to_lark(text)
    return matcher.grammar_from_lark(text)


def lark_text(text: str) -> str:
    """How a Lark grammar writes a text."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() or ord(c) > 0xFFFF else f"\\u{ord(c):04x}" for c in quoted)


def lark_token(tokenizer: Tokenizer, text: str) -> str:
    """How it writes a token: a special one by its id, any other as a text."""
    id_ = tokenizer.special_id(text)
    return lark_text(text) if id_ is None else f"<[{id_}]>"
