"""Streams that share a session or a conversation: the next one ends the last one; nothing is lost."""

import contextlib
import threading

import pytest

from jllama.chat.conversation import Conversation
from jllama.errors import JllamaError
from jllama.session import Session
from jllama.settings import GenerationSettings

PROMPT, OTHER = list(range(40, 60)), [*range(40, 50), 90, 91, 92]
LONG = GenerationSettings(max_new_tokens=40, ignore_eos=True)


def interrupt(stream):
    with contextlib.suppress(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)


# How the first stream goes on after the second was started.
AFTERWARDS = {
    "closed": lambda stream: stream.close(),
    "read to its end": lambda stream: list(stream),
    "dropped": lambda stream: None,
    "interrupted": interrupt,
}
afterwards = pytest.mark.parametrize("afterwards", AFTERWARDS)


@pytest.fixture(scope="module")
def model(instruct):
    return instruct


@pytest.fixture
def session(model):
    return Session(model, max_seq_len=96)


@pytest.fixture
def talk(model):
    return Conversation(model, max_seq_len=96)


def started(stream, pieces=3):
    for _ in range(pieces):
        next(stream)
    return stream


def answer(session, prompt):
    "".join(session.stream(prompt, LONG))
    return session.result.token_ids


def fresh(model, prompt):
    return answer(Session(model, max_seq_len=96), prompt)


@afterwards
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_second_stream_ends_the_first(session, model, afterwards, pieces):
    """`pieces`: how far the second one is when the first goes on."""
    first = started(session.stream(PROMPT, LONG))
    kept = session.result
    second = session.stream(OTHER, LONG)
    started(second, pieces)
    AFTERWARDS[afterwards](first)
    list(second)
    assert session.result.token_ids == fresh(model, OTHER)
    assert session.ids == [*OTHER, *session.result.token_ids[:-1]]
    assert kept.finish_reason == "interrupted"
    assert answer(session, PROMPT) == fresh(model, PROMPT)
    assert list(first) == []


def test_what_the_first_stream_wrote_is_in_the_cache_of_the_second(session, model):
    first = started(session.stream(PROMPT, LONG))
    onward = [*PROMPT, *session.result.token_ids]
    assert answer(session, onward) == fresh(model, onward)
    assert session.result.reused_tokens == len(onward) - 1
    assert list(first) == []


def test_a_stream_that_was_never_started_does_nothing_until_it_is(session, model):
    idle, unused = session.stream(OTHER, LONG), session.stream([1], LONG)
    first = started(session.stream(PROMPT, LONG))
    unused.close()
    assert session.result.finish_reason == "interrupted"
    assert "".join(idle) == session.model.tokenizer.decode(fresh(model, OTHER))
    assert list(first) == []
    assert answer(session, PROMPT) == fresh(model, PROMPT)


def test_a_stream_that_is_refused_leaves_the_running_one_alone(session, model):
    first = started(session.stream(PROMPT, LONG))
    for prompt in ([], [-1], [1] * 96):
        with pytest.raises(JllamaError):
            next(session.stream(prompt, LONG))
    list(first)
    assert session.result.token_ids == fresh(model, PROMPT)


def test_a_fork_and_an_adopted_cache_end_the_running_stream(session, model):
    first = started(session.stream(PROMPT, LONG))
    so_far = list(session.result.token_ids)
    twin = session.fork()
    assert list(first) == []
    assert twin.ids == session.ids == [*PROMPT, *so_far[:-1]]
    assert answer(twin, OTHER) == answer(session, OTHER) == fresh(model, OTHER)
    first = started(session.stream(PROMPT, LONG))
    assert session.snapshot() is None
    session.adopt(twin.ids, twin.snapshot())
    first.close()
    assert session.ids == twin.ids
    assert answer(session, OTHER) == fresh(model, OTHER)


def test_an_adopted_cache_is_nobody_elses(session, model):
    """Who shared the old one with a fork does not copy the new one for it."""
    answer(session, PROMPT)
    twin, other = session.fork(), Session(model, max_seq_len=96)
    answer(other, OTHER)
    session.adopt(other.ids, other.snapshot())
    held = session.snapshot().keys[0]
    assert answer(session, OTHER) == fresh(model, OTHER)
    assert held.is_deleted()
    assert answer(twin, OTHER) == fresh(model, OTHER)


def test_two_threads_can_not_read_one_session(session, monkeypatch):
    inside, done = threading.Event(), threading.Event()

    def slow(ids):
        inside.set()
        assert done.wait(500)
        return ()

    reader = threading.Thread(target=lambda: list(session.stream(PROMPT, LONG)), daemon=True)
    with monkeypatch.context() as patch:
        patch.setattr("jllama.answer.Answer.push", lambda self, ids: slow(ids))
        patch.setattr("jllama.answer.Answer.end", lambda self: ())
        reader.start()
        assert inside.wait(500)
        with pytest.raises(JllamaError, match="another thread"):
            next(session.stream(OTHER, LONG))
        done.set()
        reader.join(500)


def turns(talk):
    return [message.content for message in talk.messages]


@afterwards
def test_a_second_question_ends_the_first_answer(talk, model, afterwards):
    first = talk.ask("One", LONG)
    begun = "".join(next(first) for _ in range(3))
    second = talk.ask("Two", LONG)
    said = next(second)
    AFTERWARDS[afterwards](first)
    said += "".join(second)
    assert turns(talk) == ["One", begun.lstrip(), "Two", said]
    assert talk.result.reused_tokens > 20, "the first turn is not computed again"
    other = Conversation(model, max_seq_len=96)
    other.branch.messages = talk.messages[:2]
    assert "".join(other.ask("Two", LONG)) == said
    assert "".join(other.ask("Three", LONG)) == "".join(talk.ask("Three", LONG))


@pytest.mark.parametrize(
    ("change", "questions"),
    [
        (lambda talk: list(talk.retry(LONG)), ["One", "Two"]),
        (lambda talk: list(talk.edit(1, "Three", LONG)), ["Three"]),
        (lambda talk: talk.undo(), ["One"]),
        (lambda talk: talk.clear(), []),
        (lambda talk: talk.fork("new"), ["One", "Two"]),
        (lambda talk: talk.set_system("Be brief."), ["One", "Two"]),
    ],
    ids=["retry", "edit", "undo", "clear", "fork", "set_system"],
)
def test_what_changes_a_branch_ends_its_answer_first(talk, change, questions):
    list(talk.ask("One", LONG))
    first = started(talk.ask("Two", LONG))
    change(talk)
    before = talk.messages
    assert list(first) == []
    assert talk.messages == before
    assert turns(talk)[::2] == questions


def test_a_question_that_is_refused_leaves_the_running_answer_alone(talk):
    first = talk.ask("One", LONG)
    text = next(first)
    with pytest.raises(JllamaError, match="empty"):
        next(talk.ask(" ", LONG))
    assert turns(talk) == []
    text += "".join(first)
    assert turns(talk) == ["One", text]


def test_an_answer_on_another_branch_goes_on(talk):
    list(talk.ask("One", LONG))
    talk.fork("side")
    first = talk.ask("Two", LONG)
    text = next(first)
    talk.switch("main")
    assert "".join(talk.ask("Two", LONG)) == text + "".join(first)
    assert turns(talk) == [message.content for message in talk.branches["side"].messages]
