"""A model's own manner with tools: how its chat template is told of them, of calls and of results.

The template is asked, by rendering a few messages with words that are found again: sources are too many to
read. What a template does not write itself, messages in its place say in words.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.text.content_parts import as_text
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.template.traced_text import OWN, Traced, join_traced
from jllama.tools.definitions import Call, Tool
from jllama.tools.formats import GENERIC, Format, formats_of, instructions

Message = dict[str, Any]
VARIABLES = ("tools", "xml_tools")  # of templates; the second is SmolLM3's
NAME, KEY, VALUE, RESULT = "qxname", "qxkey", "qxvalue", "qxresult"
TOOL = Tool(name=NAME, parameters={"type": "object", "properties": {KEY: {"type": "string"}}})
CALL = Call("abcdefghi", "qxcall", json.dumps({KEY: VALUE}))
USER: Message = {"role": "user", "content": "?"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manner:
    """How to tell a template of tools, and how its model writes calls.

    Attributes:
      format: of the calls.
      tools_as: the template's variable, `system` for the key of a system message (Phi), or "": in words.
      writes_calls: the template writes an assistant's `tool_calls`.
      writes_results: it writes messages of the role `tool`.
      has_system: it takes a system message.
      short_ids: it takes ids of nine letters alone (Mistral).
    """

    format: Format
    tools_as: str
    writes_calls: bool
    writes_results: bool
    has_system: bool
    short_ids: bool

    @classmethod
    def of(cls, template: ChatTemplate) -> "Manner":
        """What a template does.

        Raises:
          JllamaError: its model writes calls in a way that is not known here.
        """
        tools_as = _tools_as(template)
        written, behind = _talk(template, tools_as, CALL.id), _talk(template, tools_as, None)
        return cls(
            format=_format(template.source, written, native=bool(tools_as)),
            tools_as=tools_as,
            writes_calls=CALL.name in written,
            writes_results=RESULT in (written if CALL.name in written else behind if tools_as else ""),
            has_system=_render(template, [{"role": "system", "content": VALUE}, USER]).count(VALUE) == 1,
            short_ids=CALL.name in written and not _talk(template, tools_as, "call_" + "0" * 24),
        )

    def prepared(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
    ) -> tuple[list[Message], dict[str, Any]]:
        """Messages as the template takes them, and its variables.

        Args:
          messages: plain data; `tool_calls` have their arguments as JSON or as data.
          tools: may be called in the answer.
        """
        ready = [*self._with_results([self._with_calls(dict(message)) for message in messages])]
        told = [tool.as_dict() for tool in tools]
        if not tools:
            return ready, {}
        if self.tools_as == "system":
            plain = json.dumps([one["function"] for one in told], ensure_ascii=False)
            return _with_system(ready, "", tools=plain), {}
        if self.tools_as:
            return ready, dict.fromkeys({"tools", self.tools_as}, told)
        words = instructions(self.format, tools)
        return _with_system(ready, words) if self.has_system else _with_first_words(ready, words), {}

    def _with_calls(self, message: Message) -> Message:
        """Calls with data as arguments where the template writes them, else as text."""
        calls = [_call(given) for given in message.get("tool_calls") or ()]
        if not calls:
            return message
        if self.writes_calls:
            return {**message, "tool_calls": [self._for_template(call) for call in calls]}
        said = as_text(message.get("content") or "")
        parts = [Traced(said), Traced("\n" if said else "", OWN), self.format.written(calls)]
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**kept, "content": join_traced(parts)}

    def _for_template(self, call: Call) -> Message:
        function = {"name": call.name, "arguments": _data(call.arguments)}
        return {"type": "function", "id": self._id(call.id), "function": function}

    def _with_results(self, messages: Sequence[Message]) -> Iterator[Message]:
        """Results with ids that the template takes, or as a user's words, one message for a row of them."""
        for is_result, group in itertools.groupby(messages, lambda message: message.get("role") == "tool"):
            if not is_result:
                yield from group
            elif self.writes_results:
                yield from ({**one, "tool_call_id": self._id(one.get("tool_call_id") or "")} for one in group)
            else:
                each = (
                    f"<tool_response>\n{as_text(one.get('content') or '')}\n</tool_response>" for one in group
                )
                yield {"role": "user", "content": "\n".join(each)}

    def _id(self, given: str) -> str:
        """The id, or nine letters that stand for it."""
        if not self.short_ids or (len(given) == 9 and given.isalnum() and given.isascii()):
            return given
        return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def _tools_as(template: ChatTemplate) -> str:
    for name in VARIABLES:
        if NAME in _render(template, [USER], **{name: [TOOL.as_dict()]}):
            return name
    system = {"role": "system", "content": "", "tools": json.dumps(TOOL.as_dict())}
    return "system" if NAME in _render(template, [system, USER]) else ""


def _talk(template: ChatTemplate, tools_as: str, call_id: str | None) -> str:
    """A conversation with a call of that id and its result; without an id, with a result alone."""
    function = {"name": CALL.name, "arguments": {KEY: VALUE}}
    calls = {"tool_calls": [{"type": "function", "id": call_id, "function": function}]}
    answer = {"role": "assistant", "content": ""} | (calls if call_id else {"content": "?"})
    result = {"role": "tool", "content": RESULT, "name": NAME, "tool_call_id": call_id or CALL.id}
    variables = {tools_as: [TOOL.as_dict()]} if tools_as in VARIABLES else {}
    return _render(template, [USER, answer, result], **variables)


def _render(template: ChatTemplate, messages: list[Message], **variables: Any) -> str:
    """The text; nothing if the template does not take them."""
    try:
        return template.render(messages, **variables)
    except JllamaError:
        return ""


def _format(source: str, written: str, native: bool) -> Format:
    """Of those that the source allows the one that is written."""
    possible = formats_of(source)
    fits = [format for format in possible or (GENERIC,) if format.opening(CALL) in written]
    if fits:
        return fits[0]
    if possible == () or (possible is None and native):
        raise JllamaError(
            "this model writes calls in a way that is not known here: leave the tools out, or describe "
            "them in a message"
        )
    return possible[0] if possible else GENERIC


def _call(given: Mapping[str, Any]) -> Call:
    function = given["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(given.get("id") or "", function["name"], text)


def _data(arguments: str) -> Any:
    """As data, which templates write as JSON; what is none stays text."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _with_system(messages: list[Message], words: str, **more: Any) -> list[Message]:
    """The words at the end of the system message, which there is then."""
    first = messages[0] if messages and messages[0].get("role") in ("system", "developer") else None
    said = as_text(first["content"]) if first else ""
    content = "\n\n".join(filter(None, [said, words]))
    return [{**(first or {"role": "system"}), "content": content, **more}, *messages[1 if first else 0 :]]


def _with_first_words(messages: list[Message], words: str) -> list[Message]:
    """The words before the first message of the user, where a template takes no system message."""
    at = next((at for at, message in enumerate(messages) if message.get("role") == "user"), None)
    if at is None:
        return [{"role": "user", "content": words}, *messages]
    told = {**messages[at], "content": f"{words}\n\n{as_text(messages[at]['content'])}"}
    return [*messages[:at], told, *messages[at + 1 :]]
