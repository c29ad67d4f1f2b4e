"""An engine that has warmed up compiles nothing more, whatever it is asked."""

from collections import Counter
from types import SimpleNamespace

import jax
import pytest

from jllama.batching.engine import Engine
from jllama.engine import slot_warm_up
from tests.support.host_arrays import as_for_users

WAIT = 300
SETTINGS = [
    dict(),
    dict(temperature=1.0, seed=3, top_p=0.9),
    dict(logprobs=3),
    dict(min_new_tokens=4, repetition_penalty=1.3),
    dict(prompt_logprobs=2, logit_bias={5: 2.0}),
    dict(ignore_eos=True, logprobs=0, min_new_tokens=2, stop="x"),
]


@pytest.fixture(scope="module", autouse=True)
def host_arrays():
    """The engine that warms up and those that ask it meet the programs that a user meets."""
    with as_for_users():
        yield


@pytest.fixture
def compiled():
    """What XLA compiles from now on."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
    )
    yield events
    jax.monitoring.clear_event_listeners()


@pytest.fixture(scope="module", params=[(1, 128), (3, 250)], ids=str)
def warm(model, request):
    """An engine that has warmed up, how many programs it counted, and the arrays that this left behind."""
    slots, max_seq_len = request.param
    with Engine(model, slots=slots, max_seq_len=max_seq_len) as engine:
        before = {id(array) for array in jax.live_arrays()}
        count = engine.warm_up()
        left = [array for array in jax.live_arrays() if id(array) not in before]
        yield SimpleNamespace(engine=engine, count=count, left=left)


def test_a_warm_up_counts_its_programs_and_allocates_nothing(warm):
    assert warm.count == len(set(keys(warm.engine)))
    assert warm.left == []


MATCHING = [
    dict(regex="[a-f]{3,30}"),
    dict(json_object=True, temperature=1.0, seed=2, logprobs=3),
    dict(),
    dict(choice=["one", "two"], min_new_tokens=2, logit_bias={7: 2.0}),
]


def test_nothing_compiles_behind_the_first_answer_that_must_match(warm, compiled):
    """Whoever asks first compiles for all that follow; not for who asks for none."""
    pytest.importorskip("llguidance")
    warm.engine.submit([7, 8], max_new_tokens=2, regex="[ab]+").result(WAIT)
    assert not warm.engine._compiles_masked
    assert compiled
    compiled.clear()
    for length in (1, 40, 65, 98):
        requests = [
            dict(prompt=[9] * length, max_new_tokens=1 + 5 * at, **MATCHING[at % len(MATCHING)])
            for at in range(6)
        ]
        for count in (6, 4, 1):
            for stream in warm.engine.submit_all(requests[:count]):
                stream.result(WAIT)
    assert compiled == []


def test_slots_whose_bursts_ask_need_those_instead_of_steps(warm):
    slots = warm.engine._slots
    steps, asking = (
        Counter(program.__name__ for program, _, _ in slot_warm_up._masked_programs(slots))
        for slots.masked.asks in (False, True)
    )
    slots.masked.asks = False
    assert set(steps) == {"begin", "accept", "feed", "choose"}
    ways = 4 if slots.alone else 2
    assert asking == {"begin": steps["begin"], "taken": 1, "run": ways * len(slots.buckets)}


def test_nothing_compiles_behind_a_warm_up(warm, compiled):
    most = warm.engine.max_seq_len
    lengths = [n for n in (1, 2, 16, 17, 31, 33, 65, 99, 129, 255, 257, 511, 599) if n < most]
    for together in (1, 2, 4):
        requests = [
            dict(prompt=[7 + at % 3] * length, max_new_tokens=3 + 5 * at, **SETTINGS[at % len(SETTINGS)])
            for at, length in enumerate(lengths)
        ]
        for begin in range(0, len(requests), together):
            for stream in warm.engine.submit_all(requests[begin : begin + together]):
                stream.result(WAIT)
    assert compiled == []


def keys(engine):
    """What tells a program from another one."""
    for program, arguments, options in slot_warm_up._programs(engine._slots):
        shapes = [leaf.shape for leaf in jax.tree.leaves(arguments) if hasattr(leaf, "shape")]
        yield program, str(shapes), str(options)


def test_a_gpu_also_runs_what_it_compiled(warm, compiled, monkeypatch):
    """Prompts of each chunk's size that fits, and bursts of each size up to that of all slots."""
    ran = set()

    def noted(method, key):
        def call(*arguments):
            ran.add(key(*arguments))
            return method(*arguments)

        return call

    engine, slots = warm.engine, warm.engine._slots
    monkeypatch.setattr(slots, "run", noted(slots.run, lambda rows, *_: len(rows)))
    monkeypatch.setattr(slots, "read_together", noted(slots.read_together, lambda _, size: f"chunk {size}"))
    engine._run_once()
    assert ran >= {*slots.buckets, "chunk 32", "chunk 128"}
    assert compiled == []


@pytest.mark.parametrize("on_gpu", [True, False])
def test_only_a_gpu_runs_them(monkeypatch, on_gpu):
    ran = []
    engine = Engine.__new__(Engine)
    engine._slots = SimpleNamespace(target=SimpleNamespace(on_gpu=on_gpu))
    monkeypatch.setattr("jllama.batching.engine.compile_all", lambda slots: 7)
    monkeypatch.setattr(engine, "_run_once", lambda: ran.append("once"))
    assert engine.warm_up() == 7
    assert ran == (["once"] if on_gpu else [])


def test_no_two_texts_of_a_warm_up_begin_alike(monkeypatch):
    """Else one would copy what another has computed, and a program would not run."""
    asked, ends = [], []

    def submitted(requests):
        asked.append(requests)
        return [SimpleNamespace(result=lambda: ends.append(0))] * len(requests)

    engine = Engine.__new__(Engine)
    engine.model, engine.max_seq_len = SimpleNamespace(config=SimpleNamespace(vocab_size=40)), 41
    engine._slots = SimpleNamespace(next_chunk=lambda left: 8 if left <= 32 else 64, buckets=[1, 2, 3])
    monkeypatch.setattr(engine, "submit_all", submitted)
    engine._run_once()
    one = dict(max_new_tokens=1, ignore_eos=True, settings=None)
    many = dict(max_new_tokens=32, ignore_eos=True)
    assert asked == [
        [one | dict(prompt=[8] * 8)],
        [one | dict(prompt=[24] * 40)],
        *([many | dict(prompt=[row]) for row in range(count)] for count in (1, 2, 3)),
    ]
    assert len(ends) == 2 + 1 + 2 + 3  # all are waited for
