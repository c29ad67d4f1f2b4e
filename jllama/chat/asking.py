"""What an answer is asked with, and what is kept of it."""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from jllama.answer import Result
from jllama.chat.branches import Message, Round
from jllama.chat.transcript import Transcript, is_cut, kept_ids
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content, as_text
from jllama.text.tokenizer import Tokenizer
from jllama.tools.definitions import Tool
from jllama.tools.events import Event, calls_of
from jllama.tools.functions import failed
from jllama.tools.parser import CallParser

NOT_RUN = failed("it was not run")
MOST_ROUNDS = 10  # of calls, before a person is asked to say something again


def has_more(result: Result, begun: str) -> bool:
    """Whether the answer is worth keeping: an interrupted one only if it has more text than before."""
    return result.finish_reason != "interrupted" or len(result.text.strip()) > len(begun.rstrip())


def settings_of(settings: GenerationSettings | None, changes: dict[str, Any]) -> GenerationSettings:
    if "system" in changes:
        raise JllamaError("a conversation's system message is given to Conversation(model, system=...)")
    return build_settings(settings, **changes)


def question(content: Content) -> Message:
    text = as_text(content)
    if not text.strip():
        raise JllamaError("the message is empty: give a text")
    return Message("user", text)


def without_calls(pieces: Generator[str, None, None], reader: CallParser | None, begun: str) -> Iterator[str]:
    """The text of an answer; what may be a call is held back until that is known. `begun` was shown."""
    if reader is None:
        yield from pieces
        return
    reader.push(begun)
    with contextlib.closing(pieces):
        for piece in pieces:
            yield from _texts(reader.push(piece))
    yield from _texts(reader.push("", final=True))


def _texts(events: list[Event]) -> Iterator[str]:
    return (event for event in events if isinstance(event, str))


def kept(
    transcript: Transcript,
    tokenizer: Tokenizer,
    prompt: list[int],
    result: Result,
    tools: tuple[Tool, ...],
    rounds: tuple[Round, ...],
) -> Message:
    """The answer as history.

    Args:
      transcript: how the model reads it.
      tokenizer: the model's.
      prompt: what was answered.
      result: what became of it.
      tools: it may have called them.
      rounds: of calls, before.
    """
    text, reader = result.text.lstrip(), transcript.reader(tools)
    if reader is not None:
        said, calls = calls_of(reader.push(text, final=True))
        if calls:
            return Message("assistant", said, rounds=rounds, calls=tuple(calls))
    ids = kept_ids(tokenizer, prompt, result)
    return Message("assistant", text, ids, is_cut(result, transcript.stops), rounds)


def answered(message: Message, results: tuple[str, ...]) -> tuple[Round, ...]:
    """All rounds of an answer whose calls gave this.

    Raises:
      JllamaError: it has no calls, or not so many.
    """
    if len(results) != len(message.calls) or not results:
        raise JllamaError(
            f"{len(message.calls)} calls wait for what they give, and {len(results)} results came"
        )
    return (*message.rounds, Round(message.content, message.calls, results))
