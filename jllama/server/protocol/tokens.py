"""`/tokenize`, `/detokenize` and `/apply-template`: what their requests may hold."""

from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from jllama.server.protocol.errors import ApiError

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class Templated(Protocol):
    """A request whose prompt is a conversation."""

    @property
    def messages(self) -> list[dict[str, Any]]: ...
    @property
    def continue_final_message(self) -> bool | None: ...
    @property
    def add_generation_prompt(self) -> bool | None: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...


class TemplateRequest(msgspec.Struct, kw_only=True):
    """A conversation."""

    messages: list[dict[str, Any]]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(TemplateRequest, kw_only=True):
    """A text, or a conversation."""

    messages: list[dict[str, Any]] = []
    prompt: str | None = None
    add_special_tokens: bool = True
    parse_special: bool = False
    return_token_strs: bool = False

    def check(self) -> None:
        """Refuses both, or none.

        Raises:
          ApiError: 400.
        """
        if (self.prompt is None) == (not self.messages):
            raise ApiError(400, "give a prompt, which is a text, or messages", param="prompt")


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids."""

    tokens: list[TokenId]
    model: str | None = None
    skip_special_tokens: bool = False
