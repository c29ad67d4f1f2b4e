"""The two calls that most programs need."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.loading import Model
from jllama.session import Session
from jllama.settings import GenerationSettings, build_settings

Prompt = str | Sequence[dict[str, Any]] | Sequence[int]


def generate(
    model: Model, prompt: Prompt, *, chat: bool | None = None, max_seq_len: int | None = None, **settings: Any
) -> str:
    """The model's answer to a prompt.

    Args:
      model: from `jllama.load`.
      prompt: a text, a list of messages such as `{"role": "user", "content": "Hello"}`, or token ids, which
        go to the model as they are.
      chat: put a text into the model's chat template as a user's message; None: where it has one.
      max_seq_len: positions of the cache; None: as many as the request needs, at least 2048 or the context.
      **settings: the fields of `GenerationSettings`: `max_new_tokens`, `temperature`, `seed`, `stop`, ...

    Raises:
      JllamaError: a setting or the prompt can't be used; the message says why.

    Example:
      >>> jllama.generate(model, "Once upon a time", max_new_tokens=64, temperature=0.0)
    """
    return "".join(stream(model, prompt, chat=chat, max_seq_len=max_seq_len, **settings))


def stream(
    model: Model, prompt: Prompt, *, chat: bool | None = None, max_seq_len: int | None = None, **settings: Any
) -> Iterator[str]:
    """Like `generate`, piece by piece as the text becomes certain.

    Example:
      >>> for piece in jllama.stream(model, "Once upon a time", max_new_tokens=64, seed=0):
      ...     print(piece, end="", flush=True)
    """
    chosen = build_settings(**settings)
    ids = encode_prompt(model, prompt, chat=chat)
    room = room_for(model, len(ids), chosen) if max_seq_len is None else max_seq_len
    return Session(model, max_seq_len=room).stream(ids, chosen)


def encode_prompt(
    model: Model, prompt: Prompt, *, chat: bool | None = None, system: str | None = None
) -> list[int]:
    """Token ids of a text or of messages, in the chat template where `chat` or the model asks for it.

    Token ids are returned as they are.

    Raises:
      JllamaError: the prompt is empty or something else; a template is asked for and the model has none; a
        system message comes without one.
    """
    tokenizer, given = model.tokenizer, _checked(prompt)
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


def room_for(model: Model, prompt_tokens: int, settings: GenerationSettings) -> int:
    """Cache positions for a request: a power of two from 2048 on, within the model's context.

    Few sizes, because each is compiled anew.
    """
    need = max(2048, prompt_tokens + settings.max_new_tokens)
    return min(1 << (need - 1).bit_length(), model.config.context_length)
