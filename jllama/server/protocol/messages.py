"""A client's messages as token ids, by the model's chat template."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from jllama.errors import JllamaError
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import convert
from jllama.text.content_parts import as_text
from jllama.text.prompt import OWN_VARIABLES
from jllama.text.tokenizer import Tokenizer
from jllama.tools.definitions import Tool
from jllama.tools.manner import Manner


class Function(msgspec.Struct):
    """A call that an assistant's message made."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(msgspec.Struct, kw_only=True):
    """A call with its name, by which its result refers to it."""

    function: Function
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message as clients send it; of `None` fields nothing reaches the template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[str | dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    token_ids: list[int] | None = None


def read_messages(given: Sequence[Mapping[str, Any]], name: str = "messages") -> list[Message]:
    """The messages of a request, whose parameter `name` they are.

    Raises:
      ApiError: 400, with the place of what is wrong.
    """
    if not given:
        raise ApiError(400, f"{name}: give at least one", param=name)
    return [_message(one, f"{name}[{at}]") for at, one in enumerate(given)]


def _message(given: Mapping[str, Any], where: str) -> Message:
    present = {name: value for name, value in given.items() if value is not None and value != []}
    if given.get("content") == []:
        raise ApiError(400, f"{where}.content is an empty list: give a text", param=f"{where}.content")
    for name in present.keys() - set(Message.__struct_fields__):
        raise ApiError(
            400, f"{where}.{name[:80]} is not supported: leave it out", param=f"{where}.{name[:80]}"
        )
    message = convert(present, Message, where)
    if message.token_ids is not None and message.role != "assistant":
        raise ApiError(400, f"{where}.token_ids: only an assistant's message has them", param=where)
    if message.content is None and not message.tool_calls:
        raise ApiError(400, f"{where}.content is missing: give a text", param=f"{where}.content")
    return message


def holds_calls(messages: Sequence[Message]) -> bool:
    """Whether there are calls or results among them."""
    return any(message.tool_calls or message.role == "tool" for message in messages)


def is_begun(messages: Sequence[Message], continue_final: bool | None, asks: bool | None) -> bool:
    """Whether the last message is the beginning of the answer.

    Raises:
      ApiError: 400: it should be, and is no assistant's, or both ways are asked for.
    """
    last = messages[-1]
    possible = last.role == "assistant" and not last.tool_calls
    if continue_final and (not possible or asks):
        words = "continue_final_message needs an assistant's text as last message, and no generation prompt"
        raise ApiError(400, words, param="continue_final_message")
    return possible and continue_final is not False and not asks


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    begun: bool,
    asks: bool = True,
    variables: Mapping[str, Any] | None = None,
    manner: Manner | None = None,
    tools: Sequence[Tool] = (),
    name: str = "messages",
) -> tuple[list[int], list[int]]:
    """The prompt of a conversation as token ids: what asks for an answer, and the beginning of that.

    Args:
      tokenizer: the model's.
      messages: at least one.
      begun: the last message is the beginning of the answer, which goes on behind it.
      asks: the template writes what asks for an answer.
      variables: more of them for the template.
      manner: how the template has tools and calls, where there are any.
      tools: the model is told of them.
      name: the parameter that holds the messages.

    Raises:
      ApiError: 400: the model has no chat template, or that refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ApiError(400, "the model has no chat template: use /v1/completions", param=name)
    for own in OWN_VARIABLES & set(variables or {}):
        raise ApiError(400, f"chat_template_kwargs: {own} is not yours to set", param="chat_template_kwargs")
    plain = [_for_template(message) for message in (messages[:-1] if begun else messages)]
    try:
        told: dict[str, Any] = {}
        if manner is not None:
            plain, told = manner.prepared(plain, tools)
            told["template"] = tokenizer.template_for_tools()
        ids = tokenizer.encode_chat(plain, add_generation_prompt=asks or begun, **told, **(variables or {}))
        return ids, _beginning(tokenizer, messages[-1]) if begun else []
    except JllamaError as error:
        raise ApiError(400, str(error), param=name) from None


def _beginning(tokenizer: Tokenizer, message: Message) -> list[int]:
    if message.token_ids is not None:
        return message.token_ids
    return tokenizer.encode(as_text(message.content), add_special=False, begins=False)


def _for_template(message: Message) -> dict[str, Any]:
    """As Hugging Face's templates expect it: calls with their arguments as data, developers as system."""
    plain = {name: value for name, value in msgspec.to_builtins(message).items() if value is not None}
    plain.setdefault("content", "")
    if message.role == "developer":
        plain["role"] = "system"
    for call in plain.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return plain


def _arguments(given: str | dict[str, Any]) -> Any:
    try:
        return msgspec.json.decode(given) if isinstance(given, str) else given
    except msgspec.DecodeError:
        return given
