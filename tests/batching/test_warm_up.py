"""An engine that has warmed up compiles nothing more, whatever it is asked."""

import jax
import pytest

from jllama.batching.engine import Engine
from jllama.engine import slot_warm_up

WAIT = 300
SETTINGS = [
    dict(),
    dict(temperature=1.0, seed=3, top_p=0.9),
    dict(logprobs=3),
    dict(min_new_tokens=4, repetition_penalty=1.3),
    dict(prompt_logprobs=2, logit_bias={5: 2.0}),
    dict(ignore_eos=True, logprobs=0, min_new_tokens=2, stop="x"),
]


@pytest.fixture
def compiled():
    """What XLA compiles from now on."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: events.append(event) if "backend_compile" in event else None
    )
    yield events
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize(("slots", "max_seq_len"), [(1, 100), (3, 256), (4, 250)])
def test_nothing_compiles_behind_a_warm_up(model, compiled, slots, max_seq_len):
    with Engine(model, slots=slots, max_seq_len=max_seq_len) as engine:
        count = engine.warm_up()
        assert count == len(set(keys(engine)))
        compiled.clear()
        lengths = [n for n in (1, 2, 16, 17, 31, 33, 65, 99, 129, 255, 257, 511, 599) if n < max_seq_len]
        for together in (1, 2, 4):
            requests = [
                dict(prompt=[7 + at % 3] * length, max_new_tokens=3 + 5 * at, **SETTINGS[at % len(SETTINGS)])
                for at, length in enumerate(lengths)
            ]
            for begin in range(0, len(requests), together):
                for stream in engine.submit_all(requests[begin : begin + together]):
                    stream.result(WAIT)
        assert compiled == []


def keys(engine):
    """What tells a program from another one."""
    for program, arguments, options in slot_warm_up._programs(engine._slots):
        shapes = [leaf.shape for leaf in jax.tree.leaves(arguments) if hasattr(leaf, "shape")]
        yield program, str(shapes), str(options)


def test_a_gpu_also_runs_what_it_compiled(model, monkeypatch):
    ran = set()

    def noted(method, key):
        def call(*arguments):
            ran.add(key(*arguments))
            return method(*arguments)

        return call

    with Engine(model, slots=3, max_seq_len=100) as engine:
        slots = engine._slots
        monkeypatch.setattr(slots, "run", noted(slots.run, lambda rows, steps: len(rows)))
        monkeypatch.setattr(
            slots, "read_together", noted(slots.read_together, lambda _, size: f"chunk {size}")
        )
        engine._run_once()
        assert ran >= {1, 2, 3, "chunk 32", "chunk 128"}


def test_a_warm_up_allocates_nothing(model):
    with Engine(model, slots=2, max_seq_len=100) as engine:
        before = {id(array) for array in jax.live_arrays()}
        engine.warm_up()
        assert {id(array) for array in jax.live_arrays()} <= before
