"""The way of a request that generates: read off the loop, run by the engine, told whole or as a stream."""

import abc
import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from jllama.batching.stream import Stream
from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError, QueueFullError
from jllama.server.bodies import body_of
from jllama.server.choice import Choice, Delta
from jllama.server.json_response import json_response
from jllama.server.protocol.errors import ApiError, too_long, translated, unmatched
from jllama.server.reading import Answers
from jllama.server.service import Service
from jllama.server.sse import COMMENT, DONE, Events, frame

LOG = logging.getLogger("jllama.server")
T = TypeVar("T")


class Task(abc.ABC):
    """A request that was read, in the words of its route."""

    streamed: bool
    prompt_name: str  # the parameter that holds the prompt
    requests: Sequence[Mapping[str, Any]]  # arguments of `Engine.submit`, one for each choice
    constrained_by: str | None = None  # the parameter that says what the answers must match
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

    def blamed(self, error: JllamaError) -> ApiError:
        """What a client is told where the engine does not take the request."""
        return unmatched(error, self.constrained_by)

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
    leaving = asyncio.ensure_future(_left(request, answers))

    def finish() -> None:
        leaving.cancel()
        service.forget(answers)

    try:
        task = await _begin(service, answers, leaving, prepare, body)
        if task.streamed:
            return Events(_frames(service, task, answers), finish)
        whole = await _whole(task, answers)
        finish()
        return json_response(whole)
    except GoneError:
        finish()
        return Response(status_code=499)  # nobody reads it
    except BaseException as error:
        service.report(error)
        finish()
        raise


async def _begin(
    service: Service,
    answers: Answers,
    leaving: asyncio.Future[None],
    prepare: Callable[[Service, bytes], Task],
    body: bytes,
) -> Task:
    def begin() -> Task:
        task = prepare(service, body)
        try:
            answers.start(service.engine, task.requests)
        except PromptTooLongError as error:
            raise too_long(error, task.prompt_name) from None
        except (QueueFullError, EngineFailedError):
            raise
        except JllamaError as error:
            raise task.blamed(error) from None
        return task

    task = await while_there(leaving, service.in_thread(begin))
    task.choices = [task.choose(place, stream) for place, stream in enumerate(answers.streams)]
    return task


async def _deltas(task: Task, answers: Answers) -> Iterator[tuple[Choice, Delta, bool]]:
    """What has come, of which choice, and whether that has ended."""
    events = await answers.moment()
    each = ((task.choices[place], piece) for place, piece in events)
    return (
        (choice, choice.end() if piece is None else choice.push(piece), piece is None)
        for choice, piece in each
    )


async def _whole(task: Task, answers: Answers) -> dict[str, Any]:
    said: list[list[Delta]] = [[] for _ in task.choices]
    while answers.left:
        for choice, delta, _ in await _deltas(task, answers):
            said[choice.index].append(delta)
    return task.whole([joined(deltas) for deltas in said])


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several as one."""
    return Delta(
        "".join(delta.text for delta in deltas),
        "".join(delta.thoughts for delta in deltas),
        tuple(score for delta in deltas for score in delta.scores),
        tuple(call for delta in deltas for call in delta.calls),
    )


async def _frames(service: Service, task: Task, answers: Answers) -> AsyncGenerator[tuple[bytes, bool]]:
    """A stream in as few writes as there are moments; an error in it as an object; its end is always said."""
    waiting = b"".join(task.opening())
    answers.be_patient(service.options.heartbeat)
    try:
        while answers.left:
            if waiting and not answers.at_hand:
                yield waiting, True
                waiting = b""
            for choice, delta, ended in await _deltas(task, answers):
                waiting += b"".join(task.frames(choice, delta, ended))
            waiting += COMMENT if answers.is_quiet else b""
        waiting += b"".join(task.closing())
    except GoneError:
        return
    except Exception as error:
        if not isinstance(error, ApiError | JllamaError):
            LOG.exception("a stream failed")
        service.report(error)
        waiting += b"".join(task.failing(error))
    yield waiting + task.done, False


class GoneError(Exception):
    """Nobody waits for the answer any more."""


async def while_there(leaving: asyncio.Future[None], work: asyncio.Future[T]) -> T:
    """What `work` gives, which is cancelled when the client goes away.

    Args:
      leaving: is done then.
      work: in another thread, or waiting for one.

    Raises:
      GoneError: it has.
    """

    def stop(_: Any) -> None:
        work.cancel()

    leaving.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if leaving.done():
            raise GoneError from None
        raise
    finally:
        leaving.remove_done_callback(stop)


async def _left(request: Request, answers: Answers) -> None:
    """Ends with the client's visit; whoever reads the answers hears of that."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answers.fail(GoneError())
