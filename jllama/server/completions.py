"""`POST /v1/completions`."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.server.calling import constrained
from jllama.server.choice import Choice, Delta
from jllama.server.envelope import Envelope, seeded
from jllama.server.protocol.completions import REFUSED, CompletionRequest
from jllama.server.protocol.parsing import parse
from jllama.server.running import Task, respond
from jllama.server.scores import as_completion, joined, prompt_as_completion
from jllama.server.service import Service


async def completions(request: Request) -> Response:
    """The continuations of texts, whole or as a stream."""
    return await respond(request, CompletionTask)


class CompletionTask(Task):
    """A request of this route, in its words."""

    prompt_name = "prompt"

    def __init__(self, service: Service, body: bytes) -> None:
        """Reads it.

        Raises:
          ApiError: it can't be answered.
        """
        given = parse(body, CompletionRequest, REFUSED)
        given.check()
        service.check_model(given.model)
        settings = given.settings(service.options.sampling, service.vocab_size)
        fields, self.constrained_by = given.constraint()
        settings = constrained(settings, fields, self.constrained_by)
        self.streamed, self._given, self._service = given.stream, given, service
        self._prompts = given.prompts(service.tokenizer, service.vocab_size)
        service.check_count(len(self._prompts) * given.n, "prompt")
        told = dict(logprobs=given.logprobs, prompt_logprobs=given.logprobs if given.echo else None)
        self.requests = [
            dict(prompt=ids, settings=each, **told)
            for ids in self._prompts
            for each in seeded(settings, given.n)
        ]
        count = len(self._prompts)
        self._envelope = Envelope(service, "cmpl", "text_completion", given.stream_options, count)
        self._echoed: set[int] = set()

    def choose(self, place: int, stream: Stream) -> Choice:
        prompt, stops = self._prompts[place // self._given.n], self._given.stop_token_ids or ()
        return Choice(
            place, stream, self._service.tokenizer, prompt, stop_ids=stops, silent=self._given.limit == 0
        )

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        each = [
            self._entry(choice, *self._said(choice, delta), **choice.ending)
            for choice, delta in zip(self.choices, deltas, strict=True)
        ]
        return self._envelope.whole(each, self.choices)

    def opening(self) -> Iterator[bytes]:
        return iter(())

    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        if delta or choice.index in self._unechoed():
            yield self._chunk(choice, *self._said(choice, delta))
        if ended:
            yield self._chunk(choice, "", **choice.ending)

    def closing(self) -> Iterator[bytes]:
        yield from self._envelope.last(self.choices)

    def _unechoed(self) -> set[int]:
        """Choices whose prompt is still to be said."""
        return {choice.index for choice in self.choices} - self._echoed if self._given.echo else set()

    def _said(self, choice: Choice, delta: Delta) -> tuple[str, dict[str, Any] | None]:
        """Text and scores; the prompt's before the first, where they are asked for."""
        tokenizer, ids = self._service.tokenizer, self._prompts[choice.index // self._given.n]
        before = tokenizer.decode(ids) if self._given.echo else ""
        told = None
        if self._given.logprobs is not None:
            told = as_completion(tokenizer, delta.scores, len(before))
        if choice.index not in self._unechoed():
            return delta.text, told
        self._echoed.add(choice.index)
        scores = choice.stream.answer.result.prompt_logprobs
        if told is not None and scores is not None:
            told = joined(prompt_as_completion(tokenizer, ids, scores), told)
        return before + delta.text, told

    def _entry(self, choice: Choice, text: str, logprobs: Any = None, **more: Any) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": None, **more}

    def _chunk(self, choice: Choice, text: str, logprobs: Any = None, **more: Any) -> bytes:
        return self._envelope.chunk(self._entry(choice, text, logprobs, **more), self.choices)
