"""The way of a request that generates: read off the loop, run by the engine, told whole or as a stream."""

import abc
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.errors import JllamaError, PromptTooLongError
from jllama.server.bodies import body_of
from jllama.server.choice import Choice, Delta
from jllama.server.json_response import json_response
from jllama.server.protocol.errors import ApiError, too_long, translated
from jllama.server.reading import Answers
from jllama.server.service import Service
from jllama.server.sse import DONE, Events, frame

LOG = logging.getLogger("jllama.server")
T = TypeVar("T")


class Task(abc.ABC):
    """A request that was read, in the words of its route."""

    streamed: bool
    prompt_name: str  # the parameter that holds the prompt
    requests: Sequence[Mapping[str, Any]]  # arguments of `Engine.submit`, one for each choice
    done = DONE  # the last frame of a stream, whatever became of it
    choices: list[Choice]  # once the engine has taken the requests, in the same order

    @abc.abstractmethod
    def choose(self, place: int, stream: Stream) -> Choice:
        """The choice that the engine's stream for `requests[place]` becomes."""

    @abc.abstractmethod
    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The answer of a request that is not streamed, from all that each choice said."""

    @abc.abstractmethod
    def opening(self) -> Iterator[bytes]:
        """The first frames of a stream."""

    @abc.abstractmethod
    def frames(self, choice: Choice, delta: Delta, ended: bool) -> Iterator[bytes]:
        """The frames of what came; `ended`: nothing more does, of this choice."""

    @abc.abstractmethod
    def closing(self) -> Iterator[bytes]:
        """The last frames of a stream that went well."""

    def failing(self, error: Exception) -> Iterator[bytes]:
        """The frames of an error where the status is sent already."""
        yield frame(translated(error).body)


async def respond(request: Request, prepare: Callable[[Service, bytes], Task]) -> Response:
    """The response to a request that generates.

    Args:
      request: its body is not read yet.
      prepare: reads that, in a thread of its own.

    Raises:
      ApiError, JllamaError: the request can't be answered.
    """
    service: Service = request.app.state.service
    body = await body_of(request, service.options.largest_body)
    answers = service.answers()
    try:
        task = await while_there(request, _begin(service, answers, prepare, body))
        if task.streamed:
            frames = _frames(service, task, answers)
            return Events(frames, service.options.heartbeat, lambda: service.forget(answers))
        whole = await while_there(request, _whole(task, answers))
        service.forget(answers)
        return json_response(whole)
    except GoneError:
        service.forget(answers)
        return Response(status_code=499)  # nobody reads it
    except BaseException as error:
        service.report(error)
        service.forget(answers)
        raise


async def _begin(
    service: Service, answers: Answers, prepare: Callable[[Service, bytes], Task], body: bytes
) -> Task:
    def begin() -> Task:
        task = prepare(service, body)
        try:
            answers.start(service.engine, task.requests)
        except PromptTooLongError as error:
            raise too_long(error, task.prompt_name) from None
        return task

    task = await service.in_thread(begin)
    task.choices = [task.choose(place, stream) for place, stream in enumerate(answers.streams)]
    return task


async def _deltas(task: Task, answers: Answers) -> AsyncIterator[tuple[Choice, Delta, bool]]:
    """What comes, of which choice, and whether that has ended."""
    async for place, piece in answers.events():
        choice = task.choices[place]
        yield choice, choice.end() if piece is None else choice.push(piece), piece is None


async def _whole(task: Task, answers: Answers) -> dict[str, Any]:
    said: list[list[Delta]] = [[] for _ in task.choices]
    async for choice, delta, _ in _deltas(task, answers):
        said[choice.index].append(delta)
    return task.whole([joined(deltas) for deltas in said])


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several as one."""
    return Delta(
        "".join(delta.text for delta in deltas),
        "".join(delta.thoughts for delta in deltas),
        tuple(score for delta in deltas for score in delta.scores),
    )


async def _frames(service: Service, task: Task, answers: Answers) -> AsyncIterator[bytes]:
    """A stream in as few pieces as there are moments; an error in it as an object; its end is always said."""
    waiting = b"".join(task.opening())
    try:
        if waiting and not answers.at_hand:
            yield waiting
            waiting = b""
        async for choice, delta, ended in _deltas(task, answers):
            waiting += b"".join(task.frames(choice, delta, ended))
            if waiting and not answers.at_hand:
                yield waiting
                waiting = b""
        waiting += b"".join(task.closing())
    except Exception as error:
        if not isinstance(error, ApiError | JllamaError):
            LOG.exception("a stream failed")
        service.report(error)
        waiting += b"".join(task.failing(error))
    yield waiting + task.done


class GoneError(Exception):
    """Nobody waits for the answer any more."""


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, which is cancelled when the client goes away.

    Raises:
      GoneError: it has.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
