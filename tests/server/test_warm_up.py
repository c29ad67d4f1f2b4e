"""A server that has warmed up compiles nothing more, whatever it is asked."""

import jax
import pytest

from jllama.server.warm_up import warm_up
from tests.support.serving import WAIT, start_engine


@pytest.mark.parametrize("slots", [1, 3])
def test_nothing_compiles_behind_a_warm_up(served_model, slots):
    compiled = []
    with start_engine(served_model, slots=slots) as engine:
        warm_up(engine)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
        )
        requests = [
            dict(prompt=[at] * (1 + 40 * at), max_new_tokens=5 + 9 * at, temperature=at / 3)
            for at in range(5)
        ]
        for stream in engine.submit_all(requests):
            stream.result(WAIT)
    jax.monitoring.clear_event_listeners()
    assert not compiled
