"""A conversation of a request as the model's prompt."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.messages import (
    Message,
    encode_messages,
    holds_calls,
    is_begun,
    read_messages,
)
from jllama.server.protocol.tokens import Templated
from jllama.server.protocol.tools import ToolUse
from jllama.server.reasoning import Split
from jllama.server.service import Service

TAIL = 16  # tokens: the words that open an answer's thoughts are fewer


def encoded(service: Service, given: Templated, use: ToolUse) -> tuple[list[int], list[int]]:
    """Token ids of what asks for an answer, and of the answer's beginning, if the last message is that.

    Raises:
      ApiError: 400: the messages can't be used.
    """
    messages = read_messages(given.messages)
    begun = is_begun(messages, given.continue_final_message, given.add_generation_prompt)
    asks = given.add_generation_prompt is not False
    variables = given.chat_template_kwargs
    return encode_all(service, messages, use, begun=begun, asks=asks, variables=variables)


def encode_all(
    service: Service,
    messages: Sequence[Message],
    use: ToolUse,
    *,
    begun: bool,
    asks: bool = True,
    variables: Mapping[str, Any] | None = None,
    name: str = "messages",
) -> tuple[list[int], list[int]]:
    """`encode_messages`, with the model's manner where there are tools, calls or results.

    Raises:
      ApiError: 400: the messages can't be used.
    """
    manner = None
    if use.offered:
        manner = service.manner
    elif holds_calls(messages):
        with contextlib.suppress(ApiError):  # a template whose calls are not known here writes them itself
            manner = service.manner
    options: Any = dict(begun=begun, asks=asks, variables=variables, manner=manner, tools=use.offered)
    return encode_messages(service.tokenizer, messages, name=name, **options)


def is_amid_thoughts(service: Service, asking: list[int], beginning: list[int]) -> bool:
    """Whether an answer begins in thoughts that were opened already."""
    split = split_for(service, asking, beginning)
    return split is not None and split.inside


def split_for(service: Service, asking: list[int], beginning: list[int]) -> Split | None:
    """Takes an answer's thoughts apart, where the model has them."""
    if not service.has_thoughts:
        return None
    before = service.tokenizer.decode(asking[-TAIL:], skip_special=False)
    split = Split(before)
    split.push(service.tokenizer.decode(beginning))
    return split
