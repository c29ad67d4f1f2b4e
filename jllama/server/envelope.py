"""What stands around the choices: ids, names, and how many tokens a request took."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from jllama.server.choice import Choice
from jllama.server.protocol.drawing import drawn_id
from jllama.server.protocol.sampling import StreamOptions
from jllama.server.service import Service
from jllama.server.sse import frame
from jllama.settings import GenerationSettings


class Envelope:
    """One answer's, the same in all frames of a stream."""

    def __init__(
        self, service: Service, prefix: str, kind: str, options: StreamOptions | None = None, prompts: int = 1
    ) -> None:
        """Begins an answer.

        Args:
          service: names the model.
          prefix: of the id.
          kind: the name of the object.
          options: how much a stream tells.
          prompts: how many there are; the choices of one stand side by side.
        """
        self._head = {
            "id": f"{prefix}-{drawn_id()}",
            "object": kind,
            "created": int(time.time()),
            "model": service.options.names[0],
            "system_fingerprint": service.fingerprint,
        }
        self._options, self._prompts = options or StreamOptions(), prompts

    def whole(self, entries: Sequence[dict[str, Any]], choices: Sequence[Choice]) -> dict[str, Any]:
        """An answer that is not streamed."""
        return {**self._head, "choices": entries, "usage": self._usage(choices)}

    def chunk(self, entry: dict[str, Any], choices: Sequence[Choice]) -> bytes:
        """A frame with one choice."""
        return self._frame([entry], usage(choices, self._prompts) if self._continuous else None)

    def last(self, choices: Sequence[Choice]) -> list[bytes]:
        """The frame without choices that tells the usage, where that is asked for."""
        return [self._frame([], self._usage(choices))] if self._options.include_usage else []

    def _usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """At the end; thoughts are told where there are any."""
        thoughts = sum(choice.thought_tokens for choice in choices)
        details = {"completion_tokens_details": {"reasoning_tokens": thoughts}} if thoughts else {}
        return {**usage(choices, self._prompts), **details}

    @property
    def _continuous(self) -> bool:
        return bool(self._options.include_usage and self._options.continuous_usage_stats)

    def _frame(self, entries: list[dict[str, Any]], counts: dict[str, Any] | None) -> bytes:
        told = {"usage": counts} if self._options.include_usage else {}
        return frame({**self._head, "choices": entries, **told})


def usage(choices: Sequence[Choice], prompts: int = 1) -> dict[str, Any]:
    """How many tokens: a prompt counts once, however many answers it has; an answer's stop token counts."""
    firsts = [choice.stream.answer.result for choice in choices[:: len(choices) // prompts]]
    read, said = sum(one.prompt_tokens for one in firsts), sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": said,
        "total_tokens": read + said,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused_tokens for one in firsts)},
    }


def seeded(settings: GenerationSettings, n: int) -> list[GenerationSettings]:
    """Of each of `n` choices: the seed plus its place, and all else alike; they have one."""
    first = settings.seed
    assert first is not None
    others = (dataclasses.replace(settings, seed=(first + place) % 2**63) for place in range(1, n))
    return [settings, *others]
