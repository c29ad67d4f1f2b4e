"""`POST /v1/chat/completions`."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.errors import JllamaError
from jllama.server.calling import Calling
from jllama.server.choice import CallEvent, Choice, Delta
from jllama.server.conversation import encoded, is_amid_thoughts, split_for
from jllama.server.envelope import Envelope, seeded
from jllama.server.protocol.chat import REFUSED, ChatRequest
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import parse
from jllama.server.protocol.tools import tool_use
from jllama.server.running import Task, respond
from jllama.server.scores import as_chat
from jllama.server.service import Service
from jllama.tools.definitions import Call
from jllama.tools.events import Arguments, Begin, calls_of


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
        use = tool_use(given.tools, given.tool_choice, given.parallel_tool_calls)
        self._parts = encoded(service, given, use)
        self._prompt = self._parts[0] + self._parts[1]
        opened = is_amid_thoughts(service, *self._parts)
        self._calling = Calling(service, use, given.constraint(), opened)
        settings = self._calling.settings(settings)
        options = dict(prompt=self._prompt, logprobs=given.likeliest, shown=self._calling.shown)
        self.requests = [{**options, "settings": each} for each in seeded(settings, given.n)]
        kind = "chat.completion.chunk" if given.stream else "chat.completion"
        self._envelope = Envelope(service, "chatcmpl", kind, given.stream_options)

    def blamed(self, error: JllamaError) -> ApiError:
        return self._calling.blamed(error)

    def choose(self, place: int, stream: Stream) -> Choice:
        split = split_for(self._service, *self._parts)
        stops = self._given.stop_token_ids or ()
        tokenizer = self._service.tokenizer
        return Choice(place, stream, tokenizer, self._prompt, split, stops, calling=self._calling)

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        each = [self._entry(choice, delta) for choice, delta in zip(self.choices, deltas, strict=True)]
        return self._envelope.whole(each, self.choices)

    def opening(self) -> Iterator[bytes]:
        for choice in self.choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        said = {"reasoning_content": delta.thoughts, "content": delta.text}
        shown = {name: text for name, text in said.items() if text}
        if shown or delta.scores:
            yield self._chunk(choice, shown or {"content": ""}, logprobs=self._logprobs(delta))
        for told in map(_call_delta, delta.calls):
            if told is not None:
                yield self._chunk(choice, {"tool_calls": [told]})
        if ended:
            yield self._chunk(choice, {}, **choice.ending)

    def closing(self) -> Iterator[bytes]:
        yield from self._envelope.last(self.choices)

    def _entry(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": delta.text}
        if delta.thoughts:
            message["reasoning_content"] = delta.thoughts
        if delta.calls:
            _, calls = calls_of(delta.calls)
            message |= {"content": delta.text or None, "tool_calls": [call.as_dict() for call in calls]}
        logprobs = self._logprobs(delta)
        return {"index": choice.index, "message": message, "logprobs": logprobs, **choice.ending}

    def _chunk(self, choice: Choice, delta: dict[str, Any], **more: Any) -> bytes:
        entry = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return self._envelope.chunk(entry, self.choices)

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self._given.logprobs:
            return None
        return as_chat(self._service.tokenizer, delta.scores, self._given.return_token_ids)


def _call_delta(event: CallEvent) -> dict[str, Any] | None:
    """A call's name once, and its arguments in pieces."""
    if isinstance(event, Begin):
        return {"index": event.index, **Call(event.id, event.name, "").as_dict()}
    if isinstance(event, Arguments):
        return {"index": event.index, "function": {"arguments": event.piece}}
    return None
