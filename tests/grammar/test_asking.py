"""An engine whose bursts ask for masks while they run; callbacks take the place of a GPU's words."""

import pytest

import jllama
from jllama.engine import asking
from tests.grammar.test_paths import JSON, WAIT, is_person, with_prompt
from tests.support.played_desk import played


@pytest.fixture
def engine(model, monkeypatch):
    asking.asker.cache_clear()
    with jllama.Engine(model, slots=4, max_seq_len=256) as engine:
        engine.desk = played(monkeypatch, engine._slots)
        yield engine
    asking.asker.cache_clear()


def test_rows_come_and_go_as_they_run_alone(model, engine):
    """In any mixture, alone for a while, with ends by a stop string, by a token and by the limit."""

    def settings(seed):
        if seed % 3 == 0:
            return dict(max_new_tokens=40, temperature=1.0, seed=seed)
        return JSON | dict(seed=seed, stop=['"age"'] if seed == 4 else [], min_new_tokens=seed % 2)

    streams = [engine.submit("One day", **settings(seed)) for seed in range(9)]
    for seed, stream in enumerate(streams):
        text, alone = with_prompt(model, "One day", **settings(seed))
        assert stream.result(WAIT).text == text
        assert stream.result().finish_reason == alone.finish_reason
        assert seed % 3 == 0 or seed == 4 or is_person(text)
    assert engine.desk.turn > 2, "some bursts asked"


def test_log_probabilities_are_those_of_a_row_alone(model, engine):
    settings = [JSON | dict(seed=seed, logprobs=3) for seed in range(2)]
    streams = [engine.submit("Who?", **each) for each in settings]
    together = [stream.result(WAIT) for stream in streams]
    for each, found in zip(settings, together, strict=True):
        wanted = engine.submit("Who?", **each).result(WAIT)
        assert found.token_ids == wanted.token_ids
        assert [a.logprob for a in found.logprobs] == pytest.approx(
            [b.logprob for b in wanted.logprobs], abs=1e-4
        )
