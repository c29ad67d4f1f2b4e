"""What an engine hands to its thread, and what asyncio hears of it: the thread is played."""

import asyncio
import threading

import pytest

from jllama.batching import engine as module
from jllama.batching.engine import Engine
from jllama.errors import JllamaError


class Thread:
    """Hands out `items` to whoever listens, as soon as something is submitted."""

    def __init__(self, *items):
        self.items, self.streams, self.listeners, self.cancelled = items, [], [], []

    def submit(self, streams):
        self.streams += streams
        self.listeners += [stream.listener for stream in streams]
        for stream in streams:
            for item in self.items:
                stream.listener(stream, item)

    def cancel(self, stream):
        self.cancelled.append(stream)


def played(model, *items):
    engine = Engine.__new__(Engine)
    engine.model, engine.max_seq_len, engine._loop = model, 64, Thread(*items)
    engine._masked, engine._compiles_masked = threading.Lock(), False
    return engine


def test_a_listener_is_there_before_the_thread_is(model):
    engine, hear = played(model), print
    streams = engine.submit_all([dict(prompt=[1]), dict(prompt=[2])], hear)
    assert engine._loop.streams == streams
    assert engine._loop.listeners == [hear, hear]
    assert [stream.row.prompt.tolist() for stream in streams] == [[1], [2]]
    assert engine.submit([3]).listener is None


def test_all_are_taken_together_or_none(model):
    engine, calls = played(model), []
    engine._loop.submit = calls.append
    with pytest.raises(JllamaError, match="temperature"):
        engine.submit_all([dict(prompt=[1]), dict(prompt=[2], temperature=-1.0)])
    assert calls == []
    streams = engine.submit_all([dict(prompt=[1]), dict(prompt=[2])])
    assert calls == [streams]


def test_each_request_has_a_seed_of_its_own(model):
    engine = played(model)
    seeds = [engine.submit([1]).answer.result.seed for _ in range(3)]
    assert len(set(seeds)) == 3
    stream = engine.submit([1], seed=2**32 + 5)
    assert (stream.answer.result.seed, stream.row.key.tolist()) == (2**32 + 5, [1, 5])


@pytest.mark.parametrize("words", [{}, dict(chat=False, system="Be brief", chat_template_kwargs={"a": 1})])
def test_what_is_said_of_a_prompt_is_handed_on(model, monkeypatch, words):
    said = []
    monkeypatch.setattr(module, "encode_prompt", lambda *given, **more: said.append((given, more)) or [7])
    assert played(model).submit("x", **words).row.prompt.tolist() == [7]
    wanted = dict(chat=None, system=None, chat_template_kwargs=None) | words
    assert said == [((model.tokenizer, "x"), wanted)]


def test_special_tokens_are_shown_where_they_are_text(model):
    (end,) = model.tokenizer.eos_ids
    for shown, text in (((), "a"), ((end,), "a<|end|>")):
        stream = played(model).submit([1], shown=shown, ignore_eos=True)
        ids = [*model.tokenizer.encode("a", add_special=False), end]
        assert "".join([*stream.answer.push(ids), *stream.answer.end()]) == text


def heard(engine, most=None):
    """What asyncio hears, up to `most` pieces, and what is raised."""

    async def read():
        pieces, came = engine.stream([1], max_new_tokens=5), []
        try:
            async for piece in pieces:
                came.append(piece)
                if len(came) == most:
                    await pieces.aclose()
        except JllamaError as error:
            came.append(("raised", error))
        return came

    return asyncio.run(read())


ERROR = JllamaError("no")


@pytest.mark.parametrize(
    ("items", "most", "came"),
    [
        (("a", "b", None), None, ["a", "b"]),
        ((None,), None, []),
        (("a", ERROR, None), None, ["a", ("raised", ERROR)]),
        (("a", "b", "c", None), 2, ["a", "b"]),
    ],
)
def test_asyncio_hears_pieces_up_to_the_end_an_error_or_until_it_leaves(model, items, most, came):
    """Whoever leaves is not heard of any more, and cancels: the thread ignores that of what has ended."""
    engine = played(model, *items)
    assert heard(engine, most) == came
    (stream,) = engine._loop.streams
    assert engine._loop.cancelled == [stream]
    assert stream.listener is None


def test_programs_for_masks_compile_once_and_only_of_an_engine_that_has_warmed_up(model, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "compile_all", lambda slots, masked=False: asked.append((slots, masked)) or 5)
    with Engine(model, slots=1, max_seq_len=16) as engine:
        engine._warm_up_masked()
        assert asked == []
        assert engine.warm_up() == 5
        for _ in range(2):
            engine._warm_up_masked()
        assert asked == [(engine._slots, False), (engine._slots, True)]
