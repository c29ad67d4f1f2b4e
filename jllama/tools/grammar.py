"""Calls enforced: a grammar in llguidance's dialect of Lark, for one format and the schemas of its tools.

It writes what the chat template writes of the same call, blank by blank: the next turn reads as this one was
written.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.grammar.source import lark_text
from jllama.tools.definitions import Tool
from jllama.tools.formats import Format, SpecialId

TEXT = "TEXT: /(?s:.*)/"
NO_JSON = r"TEXT: /(\s*[^\[{\s](?s:.*))?/"  # where JSON at the beginning would be a call


def calls_grammar(
    format: Format,
    tools: Sequence[Tool],
    special_id: SpecialId,
    *,
    required: bool,
    parallel: bool = True,
    answer: str | None = None,
) -> str:
    """A grammar whose texts are answers with calls.

    Args:
      format: how they are written.
      tools: which of them may be called, with which arguments; at least one.
      special_id: the id of the special token that is spelt so, or None.
      required: an answer is a call, or several; otherwise it may be a text, with them at its end.
      parallel: there may be several, where the format has that.
      answer: the body of a rule for an answer without calls; None is any text.

    Returns:
      Lark, with the rule `start`.
    """
    literal = Literals(special_id)
    rules = ["call: " + " | ".join(f"call_{at}" for at in range(len(tools)))]
    for at, tool in enumerate(tools):
        before = literal(f"{format.head}{tool.name}{format.middle}")
        rules.append(f"call_{at}: {before} arguments_{at} {literal(format.tail)}")
        rules.append(f"arguments_{at}: {json_rule(arguments_schema(tool))}")
    run = _run(format, literal, several=parallel and format.several)
    if required:
        return "\n".join([f"start: {run[0]} {run[1]}", *rules])
    if answer is not None:
        return "\n".join([f"start: {run[0]} {run[1]} | answer", f"answer: {answer}", *rules])
    return "\n".join([*_behind_text(format, run[1], special_id), *rules])


def behind_thoughts(grammar: str, close: str, special_id: SpecialId) -> str:
    """The grammar behind thoughts that were opened already: any text up to what closes them, and blanks."""
    thoughts = _up_to("thoughts", "ANY", close, special_id)
    rest = grammar.replace("start:", "answered:", 1)
    return "\n".join(
        ["start: thoughts BLANKS answered", thoughts, "ANY: /(?s:.*)/", r"BLANKS: /\s{0,4}/", rest]
    )


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments as it is enforced: closed where it says nothing of further properties.

    What satisfies it satisfies the tool's own schema; a small model would fill an open one without end.
    """
    schema = {"type": "object", **tool.parameters}
    return {"additionalProperties": False, **schema} if "properties" in schema else schema


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema, as the body of a rule."""
    return f"%json {json.dumps(schema)}"


class Literals:
    """Text as Lark's terms: special tokens by their ids, the rest as strings."""

    def __init__(self, special_id: SpecialId) -> None:
        self._special_id = special_id

    def __call__(self, text: str) -> str:
        """The terms, "" for nothing."""
        found = (part for part in _MARKS.split(text) if part)
        return " ".join(self._term(part) for part in found)

    def _term(self, part: str) -> str:
        token = self._special_id(part) if _MARKS.fullmatch(part) else None
        return lark_text(part) if token is None else f"<[{token}]>"


_MARKS = re.compile(r"(</?tool_call>|<\|/?[a-z_]+\|>|\[[A-Z_]+\])")


def _run(format: Format, literal: Literals, several: bool) -> tuple[str, str]:
    """What opens the first call, and the calls behind that."""
    mark, behind = format.opener
    more = f"({literal(format.after + format.between + format.before)} call)*" if several else ""
    rest = f"{literal(behind)} call {more} {literal(format.after + format.end)}"
    return literal(mark), rest


def _behind_text(format: Format, rest: str, special_id: SpecialId) -> list[str]:
    """Any text, behind which the calls may stand: what opens one, opens one that is sound."""
    mark, _ = format.opener
    if not mark:
        return [f"start: TEXT | {rest}", NO_JSON]
    return [f"start: TEXT | opened {rest}", _up_to("opened", "TEXT", mark, special_id), TEXT]


def _up_to(rule: str, text: str, mark: str, special_id: SpecialId) -> str:
    """A rule for any text (a terminal's name) up to the first such mark, which may be a special token."""
    token = special_id(mark)
    if token is not None:
        return f"{rule}: {text} <[{token}]>"
    escaped = re.escape(mark).replace("/", r"\/")
    return f"{rule}[lazy]: /(?s:.*){escaped}/"
