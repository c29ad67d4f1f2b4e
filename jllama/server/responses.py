"""`POST /v1/responses`: OpenAI's newer API, of which nothing is stored."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.errors import JllamaError
from jllama.server.calling import Calling
from jllama.server.choice import Choice, Delta
from jllama.server.conversation import encode_all, is_amid_thoughts, split_for
from jllama.server.protocol.drawing import drawn_id
from jllama.server.protocol.errors import ApiError, translated
from jllama.server.protocol.messages import is_begun
from jllama.server.protocol.parsing import parse
from jllama.server.protocol.responses import REFUSED, ResponsesRequest, echoed
from jllama.server.response_items import Items
from jllama.server.running import Task, respond
from jllama.server.service import Service
from jllama.server.sse import frame


async def responses(request: Request) -> Response:
    """The answer to a conversation, whole or as events."""
    return await respond(request, ResponseTask)


class ResponseTask(Task):
    """A request of this route, in its words."""

    prompt_name = "input"
    done = b""

    def __init__(self, service: Service, body: bytes) -> None:
        """Reads it.

        Raises:
          ApiError: it can't be answered.
        """
        given = parse(body, ResponsesRequest, REFUSED)
        service.check_model(given.model)
        settings = given.sampled().settings(service.options.sampling, service.vocab_size)
        messages, use = given.messages(), given.use()
        options: Any = dict(begun=is_begun(messages, None, None), variables=given.chat_template_kwargs)
        self._parts = encode_all(service, messages, use, name="input", **options)
        prompt, opened = self._parts[0] + self._parts[1], is_amid_thoughts(service, *self._parts)
        self._calling = Calling(service, use, given.constraint(), opened)
        settings = self._calling.settings(settings)
        self.streamed, self._service = given.stream, service
        self.requests = [dict(prompt=prompt, settings=settings, shown=self._calling.shown)]
        self._items, self._number = Items(), 0
        self._head = {
            "id": f"resp_{drawn_id()}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.options.names[0],
            **echoed(given, temperature=settings.temperature, top_p=settings.top_p),
        }

    def blamed(self, error: JllamaError) -> ApiError:
        return self._calling.blamed(error)

    def choose(self, place: int, stream: Stream) -> Choice:
        split = split_for(self._service, *self._parts)
        prompt, tokenizer = self.requests[0]["prompt"], self._service.tokenizer
        return Choice(place, stream, tokenizer, prompt, split, calling=self._calling)

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        list(self._items.take(deltas[0]))
        list(self._items.end(self._status))
        return self._response()

    def opening(self) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        for kind, content in self._items.take(delta):
            yield self._event(kind, **content)
        for kind, content in self._items.end(self._status) if ended else ():
            yield self._event(kind, **content)

    def closing(self) -> Iterator[bytes]:
        yield self._event(f"response.{self._status}", response=self._response())

    def failing(self, error: Exception) -> Iterator[bytes]:
        told = translated(error)
        problem = {"code": told.code or "server_error", "message": told.message}
        yield self._event("error", **problem, param=told.param)
        yield self._event("response.failed", response={**self._response("failed"), "error": problem})

    @property
    def _status(self) -> str:
        length = self.choices[0].stream.answer.result.finish_reason == "length"
        return "incomplete" if length else "completed"

    def _response(self, status: str | None = None) -> dict[str, Any]:
        now = status or self._status
        return {
            **self._head,
            "status": now,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if now == "incomplete" else None,
            "output": self._items.done,
            "usage": None if status else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        result = self.choices[0].stream.answer.result
        read, said = result.prompt_tokens, self.choices[0].tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": result.reused_tokens},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": self.choices[0].thought_tokens},
            "total_tokens": read + said,
        }

    def _event(self, kind: str, **content: Any) -> bytes:
        self._number += 1
        return frame({"type": kind, "sequence_number": self._number - 1, **content}, event=kind)
