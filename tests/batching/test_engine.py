"""`Engine`: what many threads ask for is what each would get alone; whatever ends early harms nobody."""

import asyncio
import dataclasses
import threading

import jax
import jax.numpy as jnp
import pytest

from jllama.batching.engine import Engine
from jllama.errors import JllamaError
from jllama.session import Session
from tests.support.host_arrays import as_for_users
from tests.support.serving import held

BEGINNINGS, ENDS = ("One", "Two", "Once upon a time there"), ("a", "b c")
PROMPTS = [f"{beginning} and {end}" for beginning in BEGINNINGS for end in ENDS]
CHOICES = [
    dict(),
    dict(temperature=1.0, seed=3),
    dict(temperature=0.7, top_p=0.9, seed=4),
    dict(repetition_penalty=1.3),
    dict(temperature=1.0, seed=5, max_new_tokens=3),
    dict(stop=("e",), ignore_eos=True),
]
WAIT = 300


def alone(model, prompt, **settings):
    session = Session(model, max_seq_len=256)
    "".join(session.stream(prompt, **({"max_new_tokens": 24} | settings)))
    return session.result


def ask(engine, number, **more):
    return engine.submit(PROMPTS[number], **({"max_new_tokens": 24} | CHOICES[number] | more))


def test_each_gets_what_it_would_get_alone(model, engine):
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        streams = {number: ask(engine, number) for number in order}
        for number, stream in streams.items():
            ours, wanted = stream.result(WAIT), alone(model, PROMPTS[number], **CHOICES[number])
            assert (ours.text, ours.token_ids) == (wanted.text, wanted.token_ids), number
            assert (ours.finish_reason, ours.stop_string) == (wanted.finish_reason, wanted.stop_string)
            assert "".join(stream) == ours.text


def test_a_second_turn_reuses_the_first(model):
    with Engine(model, slots=2, max_seq_len=256) as engine:
        first = engine.submit(PROMPTS[0], max_new_tokens=8, ignore_eos=True).result(WAIT)
        ids = model.tokenizer.encode_chat([{"role": "user", "content": PROMPTS[0]}])
        again = engine.submit([*ids, *first.token_ids, 5], max_new_tokens=4).result(WAIT)
        assert again.reused_tokens == len(ids) + len(first.token_ids) - 1
        assert again.token_ids == alone(model, [*ids, *first.token_ids, 5], max_new_tokens=4).token_ids


def test_threads_that_read_as_it_comes(model, engine):
    texts = {}

    def reader(number):
        texts[number] = "".join(ask(engine, number))

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert texts == {n: alone(model, PROMPTS[n], **CHOICES[n]).text for n in range(len(PROMPTS))}


def test_asyncio(model, engine):
    async def one(number):
        pieces = engine.stream(PROMPTS[number], **({"max_new_tokens": 24} | CHOICES[number]))
        return "".join([piece async for piece in pieces])

    async def all_of_them():
        return await asyncio.gather(*(one(number) for number in (0, 1, 3)))

    assert asyncio.run(all_of_them()) == [alone(model, PROMPTS[n], **CHOICES[n]).text for n in (0, 1, 3)]


def test_who_leaves_an_asyncio_loop_cancels(model):
    async def first_piece(engine):
        pieces = engine.stream(PROMPTS[0], max_new_tokens=200, ignore_eos=True)
        async for piece in pieces:
            await pieces.aclose()
            return piece

    with Engine(model, slots=1, max_seq_len=256) as engine:
        assert asyncio.run(first_piece(engine))
        assert engine.submit(PROMPTS[1], max_new_tokens=2).result(WAIT).generated_tokens == 2


def test_a_cancelled_text_keeps_what_came_and_its_neighbours_never_notice(model, engine):
    with held(engine, "run", passing=6):  # of 14 that it takes: it does not end before it is cancelled
        long = engine.submit(PROMPTS[2], max_new_tokens=200, ignore_eos=True)
        others = [ask(engine, number) for number in (0, 1, 3, 5)]  # one of them waits for a slot
        came = next(iter(long))
        long.cancel()
    result = long.result(WAIT)
    assert result.finish_reason == "interrupted"
    assert result.text.startswith(came)
    assert result.generated_tokens < 200
    for number, stream in zip((0, 1, 3, 5), others, strict=True):
        assert stream.result(WAIT).text == alone(model, PROMPTS[number], **CHOICES[number]).text
    long.cancel()  # once more does nothing


def test_who_waits_still_can_be_cancelled(model):
    with Engine(model, slots=1, max_seq_len=256) as engine:
        with held(engine, "run"):
            running = engine.submit(PROMPTS[0], max_new_tokens=100, ignore_eos=True)
            waiting = engine.submit(PROMPTS[1])
            waiting.cancel()
        assert (waiting.result(WAIT).text, waiting.result(WAIT).finish_reason) == ("", "interrupted")
        assert running.result(WAIT).generated_tokens == 100


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (("x",), dict(temperature=-1), "temperature=-1"),
        (("",), {}, "the prompt is empty"),
        (([5000000],), {}, "the prompt holds token 5000000"),
        (([1] * 256,), {}, "the prompt has 256 tokens and max_seq_len is 256"),
        (("x",), dict(logit_bias={10**6: 1.0}), "logit_bias holds token 1000000"),
    ],
)
def test_bad_requests_are_refused_at_once(engine, arguments, settings, words):
    with pytest.raises(JllamaError, match=words):
        engine.submit(*arguments, **settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(slots=0), "slots=0 must be"),
        (dict(slots=2.5), "slots=2.5 must be"),
        (dict(slots=True), "slots=True must be"),
        (dict(slots=100_001), "slots=100001 must be"),
        (dict(max_queue=0), "max_queue=0 must be"),
        (dict(max_queue=100_001), "max_queue=100001 must be a whole number from 1 to 100000"),
        (dict(max_seq_len=1), "max_seq_len=1 must be from 2"),
        (dict(slots=7, max_seq_len=256), "for 7 rows needs .* use fewer slots than 7"),
    ],
)
def test_bad_engines_are_refused(model, options, words, monkeypatch):
    monkeypatch.setattr("jllama.checkpoint.memory.available_bytes", lambda: 1000)
    with pytest.raises(JllamaError, match=words):
        Engine(model, **options)


def test_an_engine_s_sizes(model):
    with Engine(model) as engine:
        stats = engine.stats
        assert (engine.slots, stats.slots, stats.max_queue, engine.max_seq_len) == (16, 16, 1024, 256)
        assert engine.error is None
    with Engine(model, slots=1, max_seq_len=2, max_queue=100_000) as engine:
        stats = engine.stats
        assert (engine.slots, stats.slots, stats.max_queue, engine.max_seq_len) == (1, 1, 100_000, 2)
    with pytest.raises(JllamaError, match="the engine is closed"):
        engine.submit([1])


def test_several_are_taken_together_and_a_listener_hears_of_each(model, engine):
    heard, ends = {}, threading.Semaphore(0)

    def listener(stream, item):
        told = len(stream.answer.result.logprobs or ())
        heard.setdefault(stream, []).append((item, stream.answer.result.generated_tokens, told))
        if item is None:
            ends.release()

    requests = [dict(prompt=PROMPTS[n], max_new_tokens=9, ignore_eos=True, logprobs=n) for n in (0, 1)]
    streams = engine.submit_all(requests, listener)
    results = [stream.result(WAIT) for stream in streams]
    assert ends.acquire(timeout=WAIT)
    assert ends.acquire(timeout=WAIT)
    for stream, result in zip(streams, results, strict=True):
        *pieces, (end, _, _) = heard[stream]
        assert end is None
        assert "".join(item for item, _, _ in pieces) == result.text
        assert all(told == count for _, count, told in pieces), "scores come before their text"
        assert stream.queued_seconds <= result.prefill_seconds
    wrong = dict(prompt=PROMPTS[0], temperature=-1.0)
    with pytest.raises(JllamaError, match="temperature"):
        engine.submit_all([requests[0], wrong], listener)
    assert len(heard) == 2


def test_a_full_queue_refuses_and_loses_nothing(model):
    with Engine(model, slots=1, max_seq_len=256, max_queue=2) as engine:
        kept = []

        def fill():
            for _ in range(50):
                kept.append(engine.submit(PROMPTS[1], max_new_tokens=2))

        words = "the queue holds 2; 2 wait already and 1 more came"
        with held(engine, "run"), pytest.raises(JllamaError, match=words):
            fill()
        assert len(kept) in (2, 3)  # one may have left the queue
        assert all(stream.result(WAIT).generated_tokens for stream in kept)


def test_closing_ends_what_runs_and_refuses_what_comes(model, monkeypatch):
    engine = Engine(model, slots=1, max_seq_len=256)
    thread, join = engine._loop._thread, engine._loop._thread.join
    with held(engine, "run", passing=6) as gate:  # of 14 that it takes
        monkeypatch.setattr(thread, "join", lambda: (gate.set(), join()))
        running = engine.submit(PROMPTS[0], max_new_tokens=200, ignore_eos=True)
        waiting = engine.submit(PROMPTS[1])
        next(iter(running))
        engine.close()
    engine.close()
    assert running.result(WAIT).finish_reason == waiting.result(WAIT).finish_reason == "interrupted"
    with pytest.raises(JllamaError, match="the engine is closed"):
        engine.submit("x")


def test_a_thread_that_dies_tells_everyone(model):
    with Engine(model, slots=1, max_seq_len=256) as engine:
        all_here = threading.Event()

        def fail(*_):
            all_here.wait(WAIT)
            raise RuntimeError("the device is gone")

        engine._loop._slots.run = fail
        streams = [engine.submit(prompt, ignore_eos=True) for prompt in PROMPTS[:3]]
        all_here.set()
        for stream in streams:
            with pytest.raises(JllamaError, match="the engine has failed: the device is gone"):
                stream.result(WAIT)
        with pytest.raises(JllamaError, match="the engine has failed"):
            engine.submit("x")


def test_a_text_that_is_not_finite_fails_alone(model):
    with Engine(model, slots=2, max_seq_len=256) as engine:
        slots, bursts = engine._loop._slots, []
        run = slots.run

        def poisoned(rows, steps, masks=None):
            bursts.extend([steps] * (len(rows) == 2))
            if len(bursts) == 2:  # the second one of both
                cache = slots.state.cache
                keys = (cache.keys[0].at[1].set(jnp.nan), *cache.keys[1:])
                slots.state = dataclasses.replace(slots.state, cache=dataclasses.replace(cache, keys=keys))
            return run(rows, steps, masks)

        slots.run = poisoned
        long = dict(max_new_tokens=60, ignore_eos=True)
        asked = [dict(prompt=PROMPTS[0], **long), dict(prompt=PROMPTS[1], logit_bias={5: 1.0}, **long)]
        good, bad = engine.submit_all(asked)
        with pytest.raises(JllamaError, match="not finite"):
            bad.result(WAIT)
        wanted = alone(model, PROMPTS[0], max_new_tokens=60, ignore_eos=True)
        assert good.result(WAIT).text == wanted.text
        assert engine.submit(PROMPTS[1], max_new_tokens=5).result(WAIT).generated_tokens <= 5


@as_for_users()
def test_nothing_compiles_once_each_program_ran(model):
    compiled = []
    with Engine(model, slots=2, max_seq_len=256) as engine:

        def together(*prompts, **settings):  # at one time, so that each run runs the same programs
            for stream in engine.submit_all([dict(prompt=prompt, **settings) for prompt in prompts]):
                stream.result(WAIT)

        together([1] * 100, [2] * 100, max_new_tokens=30, ignore_eos=True)
        together([1] * 20, [2] * 20, max_new_tokens=30, ignore_eos=True)
        together([1] * 90 + [3], [1] * 90 + [4], max_new_tokens=30, ignore_eos=True)
        together([6] * 40, max_new_tokens=30, ignore_eos=True)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
        )
        try:
            together([7] * 97, [8] * 31, temperature=0.7, seed=3, max_new_tokens=17)
            together([7] * 25, [8] * 99, top_k=4, repetition_penalty=1.1, stop="x")
        finally:
            jax.monitoring.clear_event_listeners()
    assert compiled == []


@pytest.mark.parametrize(("share", "reused"), [(True, 39), (False, 0)])
def test_prompts_share_their_beginnings_unless_told_not_to(model, share, reused):
    with Engine(model, slots=1, max_seq_len=256, share_prefixes=share) as engine:
        asked = [engine.submit([5] * 40, max_new_tokens=1).result(WAIT) for _ in range(2)]
    assert [result.reused_tokens for result in asked] == [0, reused]
