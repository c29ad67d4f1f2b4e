"""`/v1/responses`: what a request may hold. Nothing is stored: a conversation comes whole each time."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jllama.server.protocol.constraints import TextFormat, format_of
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.messages import Message, read_messages
from jllama.server.protocol.sampling import Chance, Sampled
from jllama.server.protocol.tools import FlatAllowed, FlatChoice, FlatTool, ToolUse, tool_use

NOT_STORED = "the server stores nothing: send the whole conversation as input"
REFUSED = {
    "previous_response_id": NOT_STORED,
    "conversation": NOT_STORED,
    "prompt": NOT_STORED,
    "max_tool_calls": "calls are made by you",
    "response_format": "it is called text.format here",
    "reasoning": 'give what the model\'s template knows, as {"chat_template_kwargs": …}',
    "include": "leave it out",
    "top_logprobs": "/v1/chat/completions tells them",
    "messages": "it is called input here",
    "max_tokens": "it is called max_output_tokens here",
}


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer is like."""

    format: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "text"})


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What else a stream tells: nothing."""

    include_obfuscation: Literal[False] = False


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of a request."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Chance | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Chance | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    text: TextOptions = msgspec.field(default_factory=TextOptions)
    stream: bool = False
    stream_options: StreamOptions | None = None
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def constraint(self) -> tuple[dict[str, Any], str | None]:
        """What the answer must match, as fields of `GenerationSettings`, and the parameter that says so.

        Raises:
          ApiError: 400.
        """
        fields = format_of(self.text.format, TextFormat, "text.format")
        return fields, "text.format" if fields else None

    def use(self) -> ToolUse:
        """What it says of its tools.

        Raises:
          ApiError: 400.
        """
        kinds = (FlatTool, FlatChoice, FlatAllowed)
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls, kinds)

    def sampled(self) -> Sampled:
        """How to answer."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed")
        return Sampled(max_tokens=self.max_output_tokens, **{name: getattr(self, name) for name in names})

    def messages(self) -> list[Message]:
        """The conversation, behind the instructions.

        Raises:
          ApiError: 400, with the place of what is wrong.
        """
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        each = [_message(item, f"input[{at}]") for at, item in enumerate(items) if not _is_thought(item)]
        given = _with_calls_together(each)
        if self.instructions is not None:
            given.insert(0, {"role": "system", "content": self.instructions})
        return read_messages(given, "input")


def _is_thought(item: Mapping[str, Any]) -> bool:
    """Thoughts of an earlier answer, which clients send back; templates leave them out, too."""
    return item.get("type") == "reasoning"


def _with_calls_together(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls side by side are one message of the assistant, with the text before them."""
    together: list[dict[str, Any]] = []
    for message in messages:
        last = together[-1] if together else {}
        if "tool_calls" in message and last.get("role") == "assistant":
            calls = [*last.get("tool_calls", ()), *message["tool_calls"]]
            together[-1] = {**last, "tool_calls": calls}
        else:
            together.append(message)
    return together


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
    return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}


def _result(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        return _call(item)
    if kind == "function_call_output":
        return _result(item)
    if kind != "message":
        raise ApiError(400, f"{where}: items of type {str(kind)[:80]!r} are not supported", param=where)
    return {name: value for name, value in item.items() if name not in ("type", "id", "status")}


def echoed(given: ResponsesRequest, **settings: Any) -> dict[str, Any]:
    """What a response repeats of its request; `settings`: those that took effect."""
    return {
        "instructions": given.instructions,
        "max_output_tokens": given.max_output_tokens,
        "metadata": {},
        "parallel_tool_calls": given.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "text": msgspec.to_builtins(given.text),
        "tool_choice": given.tool_choice or "auto",
        "tools": given.tools or [],
        "truncation": "disabled",
        **settings,
    }
