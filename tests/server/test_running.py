"""The way of a request that generates, on an engine that says what a test wants: no model."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.responses import Response

from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError, QueueFullError
from jllama.server import running
from jllama.server.choice import Delta
from jllama.server.protocol.errors import ApiError
from jllama.server.reading import Answers, Mailbox, Piece
from jllama.server.running import GoneError, Task, joined, respond
from jllama.server.sse import COMMENT, DONE, Events
from jllama.tools.events import Arguments, Begin


def test_several_deltas_are_one():
    one = Delta("a", "b", ("s1",), (Begin(0, "i", "n"),))
    two = Delta("c", "d", ("s2", "s3"), (Arguments(0, "x"),))
    assert joined([one, Delta(), two]) == Delta(
        "ac", "bd", ("s1", "s2", "s3"), (Begin(0, "i", "n"), Arguments(0, "x"))
    )
    assert joined([]) == Delta()


class Said:
    """A stream of the engine: says pieces, or an error."""

    def __init__(self, *events):
        result = SimpleNamespace(finish_reason="stop", token_ids=[], logprobs=None)
        self.events, self.answer, self.cancelled = events, SimpleNamespace(result=result), 0

    def cancel(self):
        self.cancelled += 1


class Parrot:
    """A choice that says what comes."""

    def __init__(self, index):
        self.index = index

    def push(self, piece):
        return Delta(piece.text)

    def end(self):
        return Delta("!")


class Asked(Task):
    """A request in words that a test can read."""

    prompt_name = "prompt"
    constrained_by = "regex"

    def __init__(self, streamed, count):
        self.streamed, self.requests = streamed, [{"at": at} for at in range(count)]

    def choose(self, place, stream):
        return Parrot(place)

    def whole(self, deltas):
        return {"said": [delta.text for delta in deltas]}

    def opening(self):
        return iter([b"open;"])

    def frames(self, choice, delta, ended):
        yield f"{choice.index}:{delta.text}{'.' if ended else ''};".encode()

    def closing(self):
        return iter([b"close;"])


class Place:
    """A `Service` with an engine that says these, each stream in turn."""

    def __init__(self, *streams, refuses=None):
        self.streams, self._refuses = streams, refuses
        self.engine, self.told, self.reported, self.forgotten = self, [], [], []
        self.options = SimpleNamespace(largest_body=1000, heartbeat=1000.0)

    def answers(self):
        self.made = Answers(Mailbox(asyncio.get_running_loop()), lambda *told: self.told.append(told))
        return self.made

    def in_thread(self, work):
        done = asyncio.get_running_loop().create_future()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        return done

    def submit_all(self, requests, hear):
        if self._refuses:
            raise self._refuses
        turns = max(len(stream.events) for stream in self.streams)
        for at in range(turns):
            for stream in self.streams:
                if at < len(stream.events):
                    hear(stream, stream.events[at])
        return list(self.streams[: len(requests)])

    def forget(self, answers):
        self.forgotten.append(answers)
        answers.cancel()
        answers.settle()

    def report(self, error):
        self.reported.append(error)


def responded(place, task, leaves=False):
    """The response, and what it streams: each write, and whether more follow."""

    messages = [{"type": "http.disconnect"}, {"type": "http.request"}]  # the first one last

    async def receive():
        if not leaves and len(messages) == 1:
            await asyncio.Event().wait()
        return messages.pop()

    async def stream():
        yield b"{}"

    async def run():
        request = SimpleNamespace(
            app=SimpleNamespace(state=SimpleNamespace(service=place)),
            headers={"content-type": "application/json"},
            stream=stream,
            receive=receive,
        )
        response = await respond(request, lambda service, body: task)
        writes = []
        if isinstance(response, Events):
            writes = [write async for write in response._frames]
            response._finish()
        left = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(one.done() for one in left), "nobody waits for the client to leave any more"
        return response, writes

    return asyncio.run(run())


def test_the_choices_of_a_whole_answer_stand_side_by_side():
    place = Place(Said("a", "b", None), Said("c", None))
    response, _ = responded(place, Asked(False, 2))
    assert json.loads(response.body) == {"said": ["ab!", "c!"]}
    assert (response.status_code, response.media_type) == (200, "application/json")
    assert [reason for _, reason in place.told] == ["stop", "stop"]
    assert (place.forgotten, place.reported) == ([place.made], [])


def test_a_stream_says_at_once_what_is_there_and_then_its_end():
    place = Place(Said("a", "b", None), Said("c", None))
    response, writes = responded(place, Asked(True, 2))
    assert isinstance(response, Events)
    *before, last = writes
    assert last[1] is False
    assert all(more for _, more in before)
    said = b"".join(data for data, _ in writes)
    assert said == b"open;0:a;1:c;0:b;1:!.;0:!.;close;" + DONE
    assert place.forgotten == [place.made]


def test_an_error_in_a_stream_is_told_behind_what_was_said():
    place = Place(Said("a", JllamaError("not finite")))
    _, writes = responded(place, Asked(True, 1))
    said = b"".join(data for data, _ in writes)
    assert said.startswith(b"open;0:a;data: {")
    told = json.loads(said.removeprefix(b"open;0:a;data: ").removesuffix(DONE))
    assert (told["error"]["message"], told["error"]["code"]) == ("not finite", "engine_error")
    assert writes[-1][1] is False
    assert [reason for _, reason in place.told] == ["error"]
    (reported,) = place.reported
    assert reported.status == 500


def test_an_error_is_that_of_its_choice_and_what_the_others_say_is_lost():
    failing, other = Said("a", JllamaError("not finite")), Said("b", "c", "d")
    place = Place(failing, other)
    responded(place, Asked(True, 2))
    assert place.told == [(failing, "error"), (other, "abort")]
    assert other.cancelled


def test_an_error_of_a_whole_answer_is_raised_and_reported():
    died = EngineFailedError("dead")
    place = Place(Said("a", died))
    with pytest.raises(EngineFailedError):
        responded(place, Asked(False, 1))
    assert (place.reported, place.forgotten) == ([died], [place.made])


@pytest.mark.parametrize("streamed", [True, False])
def test_who_has_gone_is_told_nothing(streamed):
    place = Place(Said("a"))
    response, writes = responded(place, Asked(streamed, 1), leaves=True)
    if isinstance(response, Events):
        assert writes[-1:] == [] or writes[-1][1]  # no end is said
    else:
        assert (type(response), response.status_code) == (Response, 499)
    assert place.forgotten
    assert place.reported == []


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (PromptTooLongError(9, 8, "mend"), 400, "prompt", "context_length_exceeded"),
        (QueueFullError("full"), None, None, None),
        (EngineFailedError("dead"), None, None, None),
        (JllamaError("regex can't be matched"), 400, "regex", None),
        (JllamaError("top_k=-1 must be"), 400, "top_k", None),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_what_the_engine_does_not_take_is_told_by_its_parameter(error, status, param, code, streamed):
    place = Place(refuses=error)
    with pytest.raises(type(error) if status is None else ApiError) as raised:
        responded(place, Asked(streamed, 1))
    if status is not None:
        told = raised.value
        assert (told.status, told.param, told.code) == (status, param, code)
    assert place.forgotten == [place.made]


def frames(place, task, heartbeat=1000.0, mistake=None):
    place.options.heartbeat = heartbeat

    async def run():
        answers = place.answers()
        answers.start(place, task.requests)
        task.choices = [task.choose(at, stream) for at, stream in enumerate(answers.streams)]
        if mistake is not None:
            answers.fail(mistake)
        said = [write async for write in running._frames(place, task, answers)]
        answers.settle()
        return said

    return asyncio.run(run())


def test_a_stream_whose_reader_has_gone_ends_without_a_word():
    assert frames(Place(Said()), Asked(True, 1), mistake=GoneError()) == []


def test_a_mistake_of_ours_is_logged_and_no_word_of_it_told(caplog):
    ((said, more),) = frames(Place(Said()), Asked(True, 1), mistake=ValueError("a secret"))
    assert (b"secret" in said, more, said.endswith(DONE)) == (False, False, True)
    (record,) = caplog.records
    assert record.exc_info[0] is ValueError
    caplog.clear()
    for known in (JllamaError("known"), EngineFailedError("dead"), ApiError(503, "ends")):
        place = Place(Said())
        frames(place, Asked(True, 1), mistake=known)
        assert len(place.reported) == 1
    assert not caplog.records


def test_what_is_quiet_is_told_so():
    class Late(Place):
        """Says something only when a comment was sent."""

        def submit_all(self, requests, hear):
            self.hear = hear
            return list(self.streams)

    place, task = Late(Said()), Asked(True, 1)

    async def run():
        answers = place.answers()
        answers.start(place, task.requests)
        task.choices = [Parrot(0)]
        place.options.heartbeat = 0.001
        said = []
        async for data, _ in running._frames(place, task, answers):
            said.append(data)
            if COMMENT in data and len(said) < 5:
                place.hear(place.streams[0], "a")
                place.hear(place.streams[0], None)
        answers.settle()
        return said

    said = b"".join(asyncio.run(run()))
    assert said.startswith(b"open;" + COMMENT)
    assert said.replace(COMMENT, b"") == b"open;0:a;0:!.;close;" + DONE


def test_a_piece_knows_how_far_its_answer_was():
    stream = Said()
    stream.answer.result.token_ids, stream.answer.result.logprobs = [1, 2, 3], [0.0, 0.0]

    async def run():
        answers = Answers(Mailbox(asyncio.get_running_loop()), lambda *told: None)
        answers.start(SimpleNamespace(submit_all=lambda requests, hear: [stream]), [{}])
        answers._hear(stream, "x")
        found = list(await answers.moment())
        stream.answer.result.logprobs = None
        answers._hear(stream, "y")
        return found + list(await answers.moment())

    assert asyncio.run(run()) == [(0, Piece("x", 3, 2)), (0, Piece("y", 3, 0))]


def test_a_request_that_the_server_gives_up_is_forgotten():
    """As uvicorn does with what still runs at its end: nobody has left, and nothing has failed."""
    place, waiting = Place(Said("a")), []
    place.in_thread = lambda work: waiting.append(asyncio.get_running_loop().create_future()) or waiting[0]

    async def stream():
        yield b"{}"

    async def run():
        request = SimpleNamespace(
            app=SimpleNamespace(state=SimpleNamespace(service=place)),
            headers={"content-type": "application/json"},
            stream=stream,
            receive=asyncio.Event().wait,
        )
        responding = asyncio.ensure_future(respond(request, lambda service, body: None))
        while not waiting:
            await asyncio.sleep(0)
        responding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await responding
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}  # none waits for the client to leave

    asyncio.run(run())
    assert place.forgotten == [place.made]
    assert waiting[0].cancelled()
