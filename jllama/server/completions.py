"""`POST /v1/completions`."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.server.choice import Choice, Delta
from jllama.server.envelope import Envelope, seeded
from jllama.server.protocol.completions import REFUSED, CompletionRequest
from jllama.server.protocol.parsing import parse
from jllama.server.running import Task, respond
from jllama.server.scores import as_completion
from jllama.server.service import Service


async def completions(request: Request) -> Response:
    """The continuations of texts, whole or as a stream."""
    return await respond(request, CompletionTask)


class CompletionTask(Task):
    """A request of this route, in its words."""

    def __init__(self, service: Service, body: bytes) -> None:
        """Reads it.

        Raises:
          ApiError: it can't be answered.
        """
        given = parse(body, CompletionRequest, REFUSED)
        given.check()
        service.check_model(given.model)
        settings = given.settings(service.options.sampling, service.vocab_size)
        self.streamed, self._given, self._service = given.stream, given, service
        self._prompts = given.prompts(service.tokenizer, service.vocab_size)
        for ids in self._prompts:
            service.check_room(ids, "prompt")
        self.requests = [
            dict(prompt=ids, settings=each, logprobs=given.logprobs)
            for ids in self._prompts
            for each in seeded(settings, given.n)
        ]
        self._envelope = Envelope(
            service, "cmpl", "text_completion", given.stream_options, len(self._prompts)
        )

    def choose(self, place: int, stream: Stream) -> Choice:
        return Choice(place, stream, self._service.tokenizer, self._prompts[place // self._given.n])

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        each = [
            self._entry(
                choice, self._echo(choice) + delta.text, self._logprobs(choice, delta), **choice.ending
            )
            for choice, delta in zip(self.choices, deltas, strict=True)
        ]
        return self._envelope.whole(each, self.choices)

    def opening(self) -> Iterator[bytes]:
        for choice in self.choices if self._given.echo else ():
            yield self._chunk(choice, self._echo(choice))

    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        if delta:
            yield self._chunk(choice, delta.text, self._logprobs(choice, delta))
        if ended:
            yield self._chunk(choice, "", **choice.ending)

    def closing(self) -> Iterator[bytes]:
        yield from self._envelope.last(self.choices)

    def _echo(self, choice: Choice) -> str:
        if not self._given.echo:
            return ""
        return self._service.tokenizer.decode(self._prompts[choice.index // self._given.n])

    def _entry(self, choice: Choice, text: str, logprobs: Any = None, **more: Any) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": None, **more}

    def _chunk(self, choice: Choice, text: str, logprobs: Any = None, **more: Any) -> bytes:
        return self._envelope.chunk(self._entry(choice, text, logprobs, **more), self.choices)

    def _logprobs(self, choice: Choice, delta: Delta) -> dict[str, Any] | None:
        if self._given.logprobs is None:
            return None
        return as_completion(self._service.tokenizer, delta.scores, len(self._echo(choice)))
