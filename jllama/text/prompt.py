"""What a model is asked with, a text, messages or token ids, becomes token ids."""

import contextlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError
from jllama.text.content_parts import Content
from jllama.text.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
Variables = Mapping[str, Any]  # a caller's own for a chat template, such as {"enable_thinking": False}
# What the program itself gives to a template; the rest is the caller's.
OWN_VARIABLES = frozenset(
    "self messages message role content tools documents template add_generation_prompt bos_token "
    "eos_token".split()
)


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    chat: bool | None = None,
    system: Content | None = None,
    chat_template_kwargs: Variables | None = None,
) -> list[int]:
    """Token ids of a text or of messages, in the chat template where `chat` or the model asks for it.

    Token ids are returned as they are.

    Args:
      tokenizer: the model's.
      prompt: a text, a list of messages such as `{"role": "user", "content": "Hello"}`, or token ids.
      chat: put a text into the chat template as a user's message; None: where there is one.
      system: a system message, which stands before the others.
      chat_template_kwargs: more variables for the template.

    Raises:
      JllamaError: the prompt is empty or something else; a template is asked for and the model has none; a
        system message or variables come without one.
    """
    given, variables = _checked(prompt), checked_variables(chat_template_kwargs)
    wants_chat = chat if chat is not None else tokenizer.chat_template is not None
    plain = isinstance(given, str) and not wants_chat
    if plain or isinstance(given[0], int):
        if system:
            raise JllamaError("a system message needs a chat template, and this prompt is plain text")
        if variables:
            raise JllamaError("chat_template_kwargs need a chat template, and this prompt has none")
        return tokenizer.encode(given) if plain else given
    if tokenizer.chat_template is None:
        raise JllamaError("the model has no chat template: use --nochat_template (chat=False)")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.encode_chat(messages, **variables)


def checked_variables(given: Variables | None) -> dict[str, Any]:
    """A caller's variables for a chat template; None is none.

    Raises:
      JllamaError: they are no such mapping, or one has a name that is the program's own.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise JllamaError(
            "chat_template_kwargs must be names with values for the template, such as "
            '{"enable_thinking": False}'
        )
    for name in sorted(OWN_VARIABLES & given.keys()):
        raise JllamaError(f"chat_template_kwargs: {name} is not yours to set; leave it out")
    return dict(given)


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
