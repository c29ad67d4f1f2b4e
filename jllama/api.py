"""The two calls that most programs need."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

from jllama.batching import calls
from jllama.loading import Model, tokenizer_of
from jllama.session import Session, room_for
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content
from jllama.text.prompt import Prompt, Variables, encode_prompt


@overload
def generate(
    model: Model, prompt: Prompt, settings: GenerationSettings | None = None, **options: Any
) -> str: ...


@overload
def generate(
    model: Model,
    prompt: Sequence[Prompt] | Iterator[Prompt],
    settings: GenerationSettings | None = None,
    **options: Any,
) -> list[str]: ...


def generate(
    model: Model,
    prompt: Any,
    settings: GenerationSettings | None = None,
    *,
    chat: bool | None = None,
    system: Content | None = None,
    chat_template_kwargs: Variables | None = None,
    max_seq_len: int | None = None,
    **changes: Any,
) -> str | list[str]:
    """The model's answer to a prompt, or its answers to a list of prompts, which are decoded together.

    Args:
      model: from `jllama.load`, with its tokenizer.
      prompt: a text, a list of messages such as `{"role": "user", "content": "Hello"}`, or token ids, which
        go to the model as they are; or a list or a generator of any of these: the answers are a list then.
      settings: how to generate; None: `GenerationSettings()`.
      chat: put a text into the model's chat template as a user's message; None: where it has one.
      system: a system message, for the chat template.
      chat_template_kwargs: more variables for the template; which ones it knows is its model's affair
        (`{"enable_thinking": False}` for Qwen 3).
      max_seq_len: positions of the cache; None: as many as the request needs, at least 2048 or the context.
      **changes: fields of `GenerationSettings` (`max_new_tokens`, `temperature`, `seed`, `stop`, ...) that
        are to differ from `settings`.

    Raises:
      JllamaError: a setting or the prompt can't be used; the message says why.

    Example:
      >>> jllama.generate(model, "Once upon a time", max_new_tokens=64, temperature=0.0)
      >>> brief = jllama.GenerationSettings(max_new_tokens=64)
      >>> jllama.generate(model, "Why is the sky blue?", brief, system="Answer a child.", seed=1)
    """
    words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
    options: Any = dict(**words, max_seq_len=max_seq_len, **changes)
    prompt = list(prompt) if isinstance(prompt, Iterator) else prompt
    if calls.is_several(prompt):
        return calls.generate_all(model, prompt, settings, **options)
    return "".join(stream(model, prompt, settings, **options))


def stream(
    model: Model,
    prompt: Prompt,
    settings: GenerationSettings | None = None,
    *,
    chat: bool | None = None,
    system: Content | None = None,
    chat_template_kwargs: Variables | None = None,
    max_seq_len: int | None = None,
    **changes: Any,
) -> Iterator[str]:
    """Like `generate`, piece by piece as the text becomes certain. Mistakes are raised before the first one.

    Example:
      >>> for piece in jllama.stream(model, "Once upon a time", max_new_tokens=64, seed=0):
      ...     print(piece, end="", flush=True)
    """
    chosen = build_settings(settings, **changes)
    words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
    ids = encode_prompt(tokenizer_of(model), prompt, **words)
    room = room_for(model, len(ids), chosen) if max_seq_len is None else max_seq_len
    return Session(model, max_seq_len=room).stream(ids, chosen)
