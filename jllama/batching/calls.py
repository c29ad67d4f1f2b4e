"""Library calls that decode several texts together: for a list of prompts, or several answers to one."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jllama.answer import Result
from jllama.batching.engine import Engine
from jllama.checkpoint.memory import available_bytes
from jllama.checkpoint.sizes import cache_bytes
from jllama.errors import JllamaError, about
from jllama.loading import Model, tokenizer_of
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content
from jllama.text.prompt import Prompt, Variables, encode_prompt

SLOTS = 32  # texts at once; more wait for a slot
FEWER = 16  # where the cache of so many would take more than half of the memory that is left
PAGE = 256  # cache lengths are multiples of it: each is compiled anew
MOST = 128  # answers to one prompt


def is_several(prompt: Any) -> bool:
    """Whether it is a list of prompts: of texts, of conversations or of lists of token ids; or of nothing."""
    if not isinstance(prompt, list | tuple):
        return False
    return not prompt or any(isinstance(each, str | list | tuple) for each in prompt)


def generate_all(
    model: Model,
    prompts: Sequence[Prompt],
    settings: GenerationSettings | None = None,
    *,
    chat: bool | None = None,
    system: Content | None = None,
    chat_template_kwargs: Variables | None = None,
    max_seq_len: int | None = None,
    **changes: Any,
) -> list[str]:
    """`jllama.generate` of each prompt, decoded together: the texts, in order.

    Raises:
      JllamaError: a setting or a prompt can't be used, which is named by its place (`prompts[0]`); nothing is
        generated then.
    """
    chosen = build_settings(settings, **changes)
    tokenizer = tokenizer_of(model)
    words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
    requests = []
    for at, prompt in enumerate(prompts):
        with _place(at):
            requests.append((encode_prompt(tokenizer, prompt, **words), chosen))
    return [result.text for result in _together(model, requests, max_seq_len)]


def complete(
    model: Model,
    prompt: Prompt,
    settings: GenerationSettings | None = None,
    *,
    n: int = 1,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    chat: bool | None = None,
    system: Content | None = None,
    chat_template_kwargs: Variables | None = None,
    max_seq_len: int | None = None,
    **changes: Any,
) -> list[Result]:
    """Several answers to one prompt, decoded together; its tokens are read once.

    Args:
      model: from `jllama.load`, with its tokenizer.
      prompt: as in `jllama.generate`.
      settings: how to generate; None: `GenerationSettings()`.
      n: how many answers. Answer i is what the seed plus i gives alone.
      logprobs: tell the log-probability of each token, and of so many of the likeliest (0 to 20).
      prompt_logprobs: likewise of the prompt's tokens.
      chat, system, chat_template_kwargs: as in `jllama.generate`.
      max_seq_len: positions of a slot; None: as many as the request needs.
      **changes: fields of `GenerationSettings` that are to differ from `settings`.

    Returns:
      Of each answer `text`, `token_ids`, why it ended (`finish_reason`, `stop_reason`), `seed`, `usage`,
      counts and times, `logprobs` and `prompt_logprobs`.

    Raises:
      JllamaError: a setting or the prompt can't be used, or `n` is out of range.

    Example:
      >>> answers = jllama.complete(model, "Once upon a time", n=2, temperature=0.8, max_new_tokens=16)
      >>> [answer.text for answer in answers]
    """
    if type(n) is not int or not 1 <= n <= MOST:
        raise JllamaError(f"n={n!r} must be a whole number from 1 to {MOST}")
    chosen = build_settings(settings, **changes).seeded()
    words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
    ids = encode_prompt(tokenizer_of(model), prompt, **words)
    first = chosen.seed or 0
    each = [dataclasses.replace(chosen, seed=(first + i) % 2**63) for i in range(n)]
    scores = [dict(logprobs=logprobs, prompt_logprobs=prompt_logprobs), *[dict(logprobs=logprobs)] * (n - 1)]
    results = _together(model, [(ids, settings) for settings in each], max_seq_len, scores)
    for result in results[1:]:
        result.prompt_logprobs = results[0].prompt_logprobs  # it is one prompt
    return results


def room_for_all(model: Model, requests: Sequence[tuple[Sequence[int], GenerationSettings]]) -> int:
    """Positions of a slot in which each request, its prompt's ids and its settings, has room."""
    need = max(len(ids) + settings.max_new_tokens for ids, settings in requests)
    return min(-(-need // PAGE) * PAGE, model.config.context_length)


def _together(
    model: Model,
    requests: Sequence[tuple[list[int], GenerationSettings]],
    max_seq_len: int | None,
    scores: Sequence[dict[str, int | None]] = (),
) -> list[Result]:
    """The results; `scores`: of one prompt, which are asked for. Else a mistake says which prompt it is."""
    if not requests:
        return []
    length = room_for_all(model, requests) if max_seq_len is None else max_seq_len
    slots = min(_most_slots(model, length), 1 << (len(requests) - 1).bit_length())
    room: Any = dict(slots=slots, max_seq_len=length, max_queue=max(1, len(requests)))
    with Engine(model, **room, patient=True) as engine:
        streams = []
        for at, (ids, settings) in enumerate(requests):
            with nullcontext() if scores else _place(at):
                streams.append(engine.submit(ids, settings, **(scores[at] if scores else {})))
        return [stream.result() for stream in streams]


def _most_slots(model: Model, length: int) -> int:
    there = available_bytes()
    need = cache_bytes(model.config, batch=SLOTS, max_len=length, dtype=model.dtype)
    return SLOTS if there is None or need <= there // 2 else FEWER


def _place(at: int) -> AbstractContextManager[None]:
    return about(f"prompts[{at}]")
