"""What one request may ask of an engine: an earliest and other ends, and how likely its prompt was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama.batching.engine import Engine
from jllama.errors import EngineFailedError, JllamaError, PromptTooLongError, QueueFullError
from jllama.layers.cache import KVCache
from jllama.session import Session
from tests.support.serving import held

WAIT = 300
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def alone(model, **settings):
    session = Session(model, max_seq_len=256)
    "".join(session.stream(PROMPT, **settings))
    return session.result


@pytest.fixture(params=["session", "engine"])
def answer(request, model):
    """What becomes of the prompt, by either decoder."""
    if request.param == "session":
        return lambda **settings: alone(model, **settings)
    engine = request.getfixturevalue("engine")
    return lambda **settings: engine.submit(PROMPT, **settings).result(WAIT)


@pytest.mark.parametrize(
    "drawn", [dict(), dict(temperature=0.9, seed=2), dict(repetition_penalty=1.2)], ids=str
)
def test_nothing_ends_a_text_before_its_floor(model, answer, drawn):
    (end,) = model.tokenizer.eos_ids
    eager = dict(logit_bias={end: 1000.0}, max_new_tokens=12, **drawn)
    for floor in (0, 1, 5):
        result = answer(min_new_tokens=floor, **eager)
        assert result.token_ids.index(end) == floor
        assert (result.finish_reason, result.stop_token) == ("stop", end)
    plain = dict(max_new_tokens=12, logit_bias={end: -1000.0}, **drawn)
    assert result.token_ids[:5] == answer(**plain).token_ids[:5]  # what is barred changes nothing else


def test_a_stop_string_counts_from_the_floor_on(model, answer):
    whole = answer(max_new_tokens=30, ignore_eos=True)
    letter = next(c for c in whole.text[1:] if whole.text.count(c) > 1 and c.isascii())
    texts = [model.tokenizer.decode(whole.token_ids[:n]) for n in range(31)]
    count = next(n for n in range(31) if letter in texts[n])  # tokens with which it stands there first
    late = answer(max_new_tokens=30, ignore_eos=True, stop=letter, min_new_tokens=count)
    again = whole.text.index(letter, len(texts[count]))
    assert (late.text, late.stop_string) == (whole.text[:again], letter)
    early = answer(max_new_tokens=30, ignore_eos=True, stop=letter, min_new_tokens=count - 1)
    assert early.text == whole.text[: whole.text.index(letter)]


def test_stop_token_ids_end_a_text_even_where_its_own_ends_do_not(answer):
    whole = answer(max_new_tokens=20, ignore_eos=True)
    token = whole.token_ids[6]
    first = whole.token_ids.index(token)
    result = answer(max_new_tokens=20, ignore_eos=True, stop_token_ids=[token, 7])
    assert result.token_ids == whole.token_ids[: first + 1]
    assert (result.finish_reason, result.stop_token, result.stop_string) == ("stop", token, None)
    assert whole.text.startswith(result.text)
    assert whole.stop_token is None


def test_floors_of_neighbours_are_their_own(model, engine):
    (end,) = model.tokenizer.eos_ids
    eager = dict(logit_bias={end: 1000.0}, max_new_tokens=12)
    streams = [engine.submit(PROMPT, min_new_tokens=floor, **eager) for floor in (0, 7, 2, 0, 9)]
    assert [len(stream.result(WAIT).token_ids) for stream in streams] == [1, 8, 3, 1, 10]


@pytest.mark.parametrize("length", [1, 2, 33, 130, 200])
def test_log_probabilities_of_a_prompt(model, engine, length):
    ids = np.random.default_rng(length).integers(3, model.config.vocab_size, length).tolist()
    cache = KVCache.empty(model.config, batch=1, max_len=256, dtype="float32")
    logits, _ = jllama.forward(model.config, model.params, jnp.array([ids]), cache, last_only=False)
    wanted = np.asarray(jax.nn.log_softmax(logits[0]))
    engine.submit(ids, max_new_tokens=2).result(WAIT)  # a slot holds the whole prompt
    result = engine.submit(ids, max_new_tokens=2, prompt_logprobs=3).result(WAIT)
    assert result.reused_tokens == 0
    none, *scores = result.prompt_logprobs
    assert none is None
    assert [score.token for score in scores] == ids[1:]
    for row, score in enumerate(scores):
        np.testing.assert_allclose(score.logprob, wanted[row, score.token], atol=1e-4)
        assert list(score.likeliest) == np.argsort(-wanted[row], kind="stable")[:3].tolist()
        assert list(score.likeliest.values()) == sorted(score.likeliest.values(), reverse=True)
    assert result.token_ids == engine.submit(ids, max_new_tokens=2).result(WAIT).token_ids
    assert result.logprobs is None
    assert "prompt_logprobs" not in engine.submit(ids, max_new_tokens=1).result(WAIT).summary()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(min_new_tokens=5, max_new_tokens=4), "min_new_tokens=5 is more than max_new_tokens=4"),
        (dict(min_new_tokens=-1), "min_new_tokens=-1 must be"),
        (dict(stop_token_ids="7"), "stop_token_ids='7' must be token ids"),
        (dict(stop_token_ids=[1.5]), "must be token ids"),
        (dict(stop_token_ids=[True]), "must be token ids"),
        (dict(stop_token_ids=[10**7]), "stop_token_ids holds token 10000000"),
        (dict(prompt_logprobs=21), "prompt_logprobs=21 must be"),
        (dict(stop_token_ids=range(40)), "tokens would end the answer; at most 32 may"),
    ],
)
def test_bad_settings(engine, settings, words):
    with pytest.raises(JllamaError, match=words):
        engine.submit(PROMPT, **settings)


@pytest.fixture(scope="module")
def small(model):
    with Engine(model, slots=1, max_seq_len=64) as engine:
        yield engine


@pytest.mark.parametrize(("wanted", "limit"), [(5, 5), (56, 56), (57, 56), (100, 56)])
def test_what_a_slot_is_told(model, small, wanted, limit):
    row = small._stream(PROMPT, max_new_tokens=wanted, ignore_eos=True).row
    assert (row.limit, row.floor, row.scores, list(row.stop_ids)) == (limit, 0, False, [])
    assert row.prompt.tolist() == PROMPT
    told = dict(min_new_tokens=4, logprobs=0, stop_token_ids=[9])
    row = small._stream(PROMPT, max_new_tokens=wanted, **told).row
    assert (row.limit, row.floor, row.scores) == (limit, 4, True)
    assert list(row.stop_ids) == sorted({9, *model.tokenizer.eos_ids})


@pytest.mark.parametrize("count", [None, 0, 20])
def test_what_is_told_beside_a_token(small, count):
    stream = small._stream(PROMPT, logprobs=count, prompt_logprobs=count)
    asked = count is not None
    assert stream._logprobs == stream._prompt_logprobs == count
    assert (stream.row.scores, stream.scores_prompt, stream.job.whole) == (asked, asked, asked)
    assert stream.answer.result.logprobs == ([] if asked else None)
    assert stream.answer.result.prompt_logprobs == ([None] if asked else None)
    other = small._stream(PROMPT, logprobs=count)
    assert (other.scores_prompt, other.job.whole) == (False, False)


def test_as_many_ends_as_a_row_has_places_for(model, small):
    ends = len(model.tokenizer.eos_ids)
    most = small._stream(PROMPT, stop_token_ids=range(10, 42 - ends))
    assert len(most.row.stop_ids) == 32
    with pytest.raises(JllamaError, match="33 tokens would end the answer; at most 32 may"):
        small._stream(PROMPT, stop_token_ids=range(10, 43 - ends))


def test_errors_say_what_kind_they_are(model):
    with Engine(model, slots=1, max_seq_len=64, max_queue=1) as engine:
        with pytest.raises(PromptTooLongError) as long:
            engine.submit([1] * 64)
        assert (long.value.prompt_tokens, long.value.limit) == (64, 64)
        with pytest.raises(QueueFullError):
            engine.submit_all([dict(prompt=PROMPT)] * 3)
        engine._loop._slots.read_together = None
        with pytest.raises(EngineFailedError):
            engine.submit(PROMPT).result(WAIT)
        assert isinstance(engine.error, TypeError)


def test_stats(model):
    with Engine(model, slots=2, max_seq_len=64, max_queue=5) as engine:
        idle = engine.stats
        assert (idle.running, idle.waiting, idle.slots, idle.max_queue, idle.used) == (0, 0, 2, 5, 0.0)
        with held(engine, "run", passing=4):  # fewer than they take
            running = [engine.submit(PROMPT, max_new_tokens=50, ignore_eos=True) for _ in range(3)]
            next(iter(running[0]))
            assert 1 <= engine.stats.running <= 2
            assert 0 < engine.stats.used <= 1
        for stream in running:
            stream.result(WAIT)
        after = engine.stats
        assert (after.running, after.waiting, after.asked_tokens) == (0, 0, 3 * len(PROMPT))
        assert after.reused_tokens == sum(stream.answer.result.reused_tokens for stream in running) > 0
