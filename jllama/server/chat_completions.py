"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.server.choice import Choice, Delta
from jllama.server.conversation import encoded, split_for
from jllama.server.envelope import Envelope, seeded
from jllama.server.protocol.chat import REFUSED, ChatRequest
from jllama.server.protocol.parsing import parse
from jllama.server.running import Task, respond
from jllama.server.scores import as_chat
from jllama.server.service import Service


async def chat_completions(request: Request) -> Response:
    """The answers to a conversation, whole or as a stream."""
    return await respond(request, ChatTask)


class ChatTask(Task):
    """A request of this route, in its words."""

    prompt_name = "messages"

    def __init__(self, service: Service, body: bytes) -> None:
        """Reads it.

        Raises:
          ApiError: it can't be answered.
        """
        given = parse(body, ChatRequest, REFUSED)
        given.check()
        service.check_model(given.model)
        settings = given.settings(service.options.sampling, service.vocab_size)
        self.streamed, self._given, self._service = given.stream, given, service
        service.check_count(given.n, "n")
        self._parts = encoded(service, given)
        self._prompt = self._parts[0] + self._parts[1]
        options = dict(prompt=self._prompt, logprobs=given.likeliest)
        self.requests = [{**options, "settings": each} for each in seeded(settings, given.n)]
        kind = "chat.completion.chunk" if given.stream else "chat.completion"
        self._envelope = Envelope(service, "chatcmpl", kind, given.stream_options)

    def choose(self, place: int, stream: Stream) -> Choice:
        split = split_for(self._service, *self._parts)
        stops = self._given.stop_token_ids or ()
        return Choice(place, stream, self._service.tokenizer, self._prompt, split, stops)

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        each = [self._entry(choice, delta) for choice, delta in zip(self.choices, deltas, strict=True)]
        return self._envelope.whole(each, self.choices)

    def opening(self) -> Iterator[bytes]:
        for choice in self.choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        if delta:
            said = {"reasoning_content": delta.thoughts, "content": delta.text}
            shown = {name: text for name, text in said.items() if text} or {"content": ""}
            yield self._chunk(choice, shown, logprobs=self._logprobs(delta))
        if ended:
            yield self._chunk(choice, {}, **choice.ending)

    def closing(self) -> Iterator[bytes]:
        yield from self._envelope.last(self.choices)

    def _entry(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.text}
        if delta.thoughts:
            message["reasoning_content"] = delta.thoughts
        logprobs = self._logprobs(delta)
        return {"index": choice.index, "message": message, "logprobs": logprobs, **choice.ending}

    def _chunk(self, choice: Choice, delta: dict[str, Any], **more: Any) -> bytes:
        entry = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return self._envelope.chunk(entry, self.choices)

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self._given.logprobs:
            return None
        return as_chat(self._service.tokenizer, delta.scores, self._given.return_token_ids)
