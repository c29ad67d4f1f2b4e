"""Contents that are lists of parts, `[{"type": "text", "text": "Hello"}]`: models read text alone."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError

TEXT_TYPES = ("text", "input_text", "output_text")
# What a tool returns may be any list; a template prints it as JSON.
TOOL_ROLES = ("tool", "ipython", "function")

Messages = list[dict[str, Any]]
Content = str | Sequence[str | Mapping[str, Any]]


def as_text(content: Any) -> str:
    """A content as one text: a text as it is, text parts joined with nothing between them.

    Raises:
        JllamaError: it is neither, or one of its parts is no text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(map(_is_part, content)):
        return "".join(_text(part) for part in content)
    raise JllamaError(f"a message must be a text or a list of text parts, not {type(content).__name__}")


def settle_parts(messages: Sequence[Mapping[str, Any]], render: Callable[[Messages], str]) -> Messages:
    """The messages as the template takes them: lists of text parts only where it goes through the parts.

    Args:
        messages: plain data.
        render: the template.

    Raises:
        JllamaError: a part is no text, a message no mapping, or its role or content of another kind.
    """
    if not all(isinstance(message, Mapping) for message in messages):
        raise JllamaError('a message must be a dictionary such as {"role": "user", "content": "Hello"}')
    found = [_checked(message, f"messages[{at}]: ") for at, message in enumerate(messages)]
    lists = [at for at, message in enumerate(found) if _has_parts(message)]
    if not lists:
        return found
    for at in lists:
        parts = found[at]["content"]
        found[at]["content"] = [{"type": "text", "text": _text(part, f"messages[{at}]: ")} for part in parts]
    return _joined(found, set(lists) - _taken_as_lists(found, lists, render))


def _checked(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message of its own whose role is a text, and its content one or a list: a template would fail on it.

    A content of None beside calls of tools, as OpenAI's servers write it, is none. Where `token_ids` stand
    for it, it may be anything.
    """
    found = dict(message)
    if not isinstance(found.get("role", ""), str):
        raise JllamaError(f"{where}the role must be a text such as 'user', not {_kind(found['role'])}")
    if found.get("content", "") is None and found.get("tool_calls"):
        del found["content"]
    content, own = found.get("content", ""), found.get("role") in TOOL_ROLES or "token_ids" in found
    parts = isinstance(content, list) and all(map(_is_part, content))
    if not own and not parts and not isinstance(content, str):
        raise JllamaError(f"{where}the content must be a text or a list of text parts, not {_kind(content)}")
    return found


def _kind(value: Any) -> str:
    return "a list of something else" if isinstance(value, list) else type(value).__name__


def _taken_as_lists(messages: Messages, lists: list[int], render: Callable[[Messages], str]) -> set[int]:
    """Which of the messages at `lists` the template writes part by part."""
    mark = "\ue000"
    while mark in json.dumps(messages, ensure_ascii=False):
        mark += "\ue000"
    shown = _shown(messages, lists, mark, render)
    if shown is None:  # it takes some of them at most: each alone, between joined ones
        alone = [
            (_joined(messages, set(lists) - {at}), [at]) for at in lists if "token_ids" not in messages[at]
        ]
        shown = set().union(*(_shown(*one, mark, render) or set() for one in alone))
    return shown


def _shown(
    messages: Messages, lists: list[int], mark: str, render: Callable[[Messages], str]
) -> set[int] | None:
    """Those of `lists` whose marked texts come out as texts; None if the template fails on the lists.

    A list printed whole does not show them: Python escapes a private character, and JSON quotes it.
    """
    marked = list(messages)
    for at in lists:
        text = f"{mark}{at}{mark}"
        marked[at] = {**messages[at], "content": [{"type": "text", "text": text}]}
    try:
        out = render([{k: v for k, v in message.items() if k != "token_ids"} for message in marked])
    except JllamaError:
        return None
    return {at for at in lists if f"{mark}{at}{mark}" in out and f'"{mark}{at}{mark}"' not in out}


def _joined(messages: Messages, which: Collection[int]) -> Messages:
    return [
        {**message, "content": as_text(message["content"])} if at in which else message
        for at, message in enumerate(messages)
    ]


def _has_parts(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if not isinstance(content, list) or not all(map(_is_part, content)):
        return False
    return message.get("role") not in TOOL_ROLES or (content != [] and all(map(_is_text, content)))


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and bool({"type", "text"} & set(part)))


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        part.get("type", "text") in TEXT_TYPES and isinstance(part.get("text"), str)
    )


def _text(part: Any, where: str = "") -> str:
    if _is_text(part):
        return part if isinstance(part, str) else part["text"]
    kind = part.get("type", "text")
    what = "a part of type 'text' without its text"
    if kind not in TEXT_TYPES:
        what = f"a part of type {str(kind)[:40]!r}: the model reads text alone"
    raise JllamaError(f"{where}{what}; give only parts such as {{'type': 'text', 'text': 'Hello'}}")
