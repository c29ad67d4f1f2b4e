"""What a model is asked with, a text, messages or token ids, becomes token ids."""

import contextlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.text.content_parts import Content
from jllama.text.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, *, chat: bool | None = None, system: Content | None = None
) -> list[int]:
    """Token ids of a text or of messages, in the chat template where `chat` or the model asks for it.

    Token ids are returned as they are.

    Args:
      tokenizer: the model's.
      prompt: a text, a list of messages such as `{"role": "user", "content": "Hello"}`, or token ids.
      chat: put a text into the chat template as a user's message; None: where there is one.
      system: a system message, which stands before the others.

    Raises:
      JllamaError: the prompt is empty or something else; a template is asked for and the model has none; a
        system message comes without one.
    """
    given = _checked(prompt)
    wants_chat = chat if chat is not None else tokenizer.chat_template is not None
    plain = isinstance(given, str) and not wants_chat
    if plain or isinstance(given[0], int):
        if system:
            raise JllamaError("a system message needs a chat template, and this prompt is plain text")
        return tokenizer.encode(given) if plain else given
    if tokenizer.chat_template is None:
        raise JllamaError("the model has no chat template: use --nochat_template (chat=False)")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.encode_chat(messages)


def _checked(prompt: Any) -> Any:
    """A text, a list of messages or a list of token ids, and not an empty one."""
    items = prompt
    with contextlib.suppress(TypeError):
        items = prompt if isinstance(prompt, str | bytes) else list(prompt)
    if (isinstance(items, list) and not items) or (isinstance(items, str) and not items.strip()):
        raise JllamaError("the prompt is empty: give a text")
    if isinstance(items, str) or (isinstance(items, list) and all(isinstance(m, Mapping) for m in items)):
        return items
    with contextlib.suppress(TypeError):
        if isinstance(items, list):
            return [operator.index(token) for token in items]
    raise JllamaError(
        "the prompt must be a text or a list of messages (each with role and content) or of token ids"
    )
