"""Lists of prompts and several answers to one: each as it would be alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama.batching import calls
from jllama.checkpoint.sizes import cache_bytes
from jllama.errors import JllamaError, PromptTooLongError

PROMPTS = ["One", "Two and", "Three and four and five", "Six"]


@pytest.mark.parametrize("settings", [{}, dict(temperature=1.0, seed=5)], ids=str)
def test_a_list_in_a_list_out(model, settings):
    options = dict(max_new_tokens=12, chat=False, **settings)
    together = jllama.generate(model, PROMPTS, **options)
    assert together == [jllama.generate(model, prompt, **options) for prompt in PROMPTS]


def test_lists_of_every_kind_of_prompt(model):
    talks = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:2]]
    ids = [model.tokenizer.encode_chat(talk) for talk in talks]
    by_text = jllama.generate(model, PROMPTS[:2], max_new_tokens=6)
    assert (
        jllama.generate(model, talks, max_new_tokens=6)
        == jllama.generate(model, ids, max_new_tokens=6)
        == by_text
    )
    assert jllama.generate(model, tuple(PROMPTS[:1]), max_new_tokens=6) == by_text[:1]
    assert jllama.generate(model, ids[0], max_new_tokens=6) == by_text[0]  # one prompt, not a list of them


def test_a_bad_prompt_among_good_ones_is_refused_before_anything_runs(model):
    with pytest.raises(JllamaError, match=r"^prompts\[1\]: the prompt is empty"):
        jllama.generate(model, ["One", "", "Two"])
    with pytest.raises(JllamaError, match=r"^prompts\[2\]: the prompt must be a text"):
        jllama.generate(model, ["One", "Two", None])
    with pytest.raises(PromptTooLongError, match=r"^prompts\[1\]: .*max_seq_len is 64"):
        jllama.generate(model, ["One", "Two " * 40], max_seq_len=64)


def test_no_prompts_have_no_answers(model):
    assert jllama.generate(model, [], max_new_tokens=6) == []


def test_prompts_may_come_from_a_generator(model):
    asked = jllama.generate(model, (prompt for prompt in PROMPTS[:2]), max_new_tokens=6)
    assert asked == jllama.generate(model, PROMPTS[:2], max_new_tokens=6)
    assert jllama.generate(model, iter([5, 6]), max_new_tokens=6) == jllama.generate(
        model, [5, 6], max_new_tokens=6
    )


def test_several_answers_have_seeds_of_their_own(model):
    answers = jllama.complete(model, PROMPTS[2], n=5, temperature=1.0, seed=2**63 - 2, max_new_tokens=12)
    assert [answer.seed for answer in answers] == [2**63 - 2, 2**63 - 1, 0, 1, 2]
    for answer in answers:
        alone = jllama.generate(model, PROMPTS[2], temperature=1.0, seed=answer.seed, max_new_tokens=12)
        assert answer.text == alone
        assert answer.generated_tokens == len(answer.token_ids) <= 12
    assert len({answer.text for answer in answers}) > 1


def test_the_prompt_of_several_answers_is_read_once(model):
    prompt = model.tokenizer.encode("One and two and three and four and five and six and seven " * 3)
    assert len(prompt) > 40
    first, *others = jllama.complete(model, prompt, n=3, temperature=1.0, max_new_tokens=4)
    assert first.reused_tokens == 0
    assert {answer.reused_tokens for answer in others} == {len(prompt) - 1}


@pytest.mark.parametrize("n", [0, -1, 1.5, True, 129, "2"])
def test_how_many_answers(model, n):
    with pytest.raises(JllamaError, match=r"n=.* must be a whole number from 1 to 128"):
        jllama.complete(model, "One", n=n)


class AskedError(Exception):
    """An engine is made."""


@pytest.mark.parametrize(
    ("count", "slots"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (16, 16), (17, 32), (128, 32)]
)
def test_an_engine_for_so_many(model, monkeypatch, count, slots):
    """Slots are a power of two, few sizes of program, and no more than 32; the rest waits."""

    def engine(given, **options):
        assert given is model
        raise AskedError(options)

    monkeypatch.setattr(calls, "Engine", engine)
    room = dict(slots=slots, max_queue=count, patient=True)
    for ask in (
        lambda **given: jllama.complete(model, [1, 2], n=count, max_new_tokens=200, **given),
        lambda **given: jllama.generate(model, [[1, 2]] * count, max_new_tokens=200, **given),
    ):
        for given, length in ((dict(), 256), (dict(max_seq_len=64), 64)):
            with pytest.raises(AskedError) as asked:
                ask(**given)
            assert asked.value.args == (room | dict(max_seq_len=length),)


@pytest.mark.parametrize(("there", "slots"), [(None, 32), (2.0, 32), (1.9, 16)])
def test_fewer_slots_where_the_cache_would_fill_the_memory(model, monkeypatch, there, slots):
    def engine(given, **options):
        raise AskedError(options["slots"])

    need = cache_bytes(model.config, batch=32, max_len=256, dtype=model.dtype)
    monkeypatch.setattr(calls, "available_bytes", lambda: there and int(there * need))
    monkeypatch.setattr(calls, "Engine", engine)
    with pytest.raises(AskedError) as asked:
        jllama.generate(model, [[1, 2]] * 40, max_new_tokens=200)
    assert asked.value.args == (slots,)


@pytest.fixture
def noted(model, monkeypatch):
    """What is submitted to an engine that plays: ids, settings, and the keywords."""
    asked = []

    class Played:
        def __init__(self, given, **options):
            self.answers = iter("abcdef")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            asked.append("closed")

        def submit(self, ids, settings, **more):
            asked.append((ids, settings, more))
            text = next(self.answers)
            return SimpleNamespace(result=lambda: SimpleNamespace(text=text, prompt_logprobs=None))

    monkeypatch.setattr(calls, "Engine", Played)
    return asked


@pytest.mark.parametrize("words", [{}, dict(chat=True, system="Be brief", chat_template_kwargs={"a": 1})])
def test_what_is_said_of_prompts_is_handed_on(model, noted, monkeypatch, words):
    said = []

    def encoded(tokenizer, prompt, **given):
        said.append((tokenizer, prompt, given))
        return [len(said)]

    monkeypatch.setattr(calls, "encode_prompt", encoded)
    assert jllama.generate(model, ["x", "y"], max_new_tokens=3, **words) == ["a", "b"]
    assert [each.text for each in jllama.complete(model, "z", n=2, logprobs=4, **words)] == ["a", "b"]
    wanted = dict(chat=None, system=None, chat_template_kwargs=None) | words
    assert said == [(model.tokenizer, prompt, wanted) for prompt in "xyz"]
    ids = [entry[0] if entry != "closed" else entry for entry in noted]
    assert ids == [[1], [2], "closed", [3], [3], "closed"]
    scores = [dict(logprobs=4, prompt_logprobs=None), dict(logprobs=4)]
    assert [entry[2] for entry in noted if entry != "closed"] == [{}, {}, *scores]


def test_several_answers_draw_a_first_seed(model, noted):
    for _ in range(2):
        jllama.complete(model, "One", n=3, temperature=1.0)
    seeds = [entry[1].seed for entry in noted if entry != "closed"]
    assert [seed - seeds[0] for seed in seeds[:3]] == [seed - seeds[3] for seed in seeds[3:]] == [0, 1, 2]
    assert seeds[0] != seeds[3]


def test_log_probabilities_are_the_models_own(model):
    """By `forward` of prompt and answer, whatever drew the tokens."""
    prompt = model.tokenizer.encode(PROMPTS[2])
    options = dict(temperature=0.9, top_k=20, repetition_penalty=1.2, logit_bias={7: 2.0}, seed=3)
    answers = jllama.complete(model, prompt, n=2, logprobs=5, max_new_tokens=20, ignore_eos=True, **options)
    for answer in answers:
        ids = [*prompt, *answer.token_ids]
        cache = jllama.KVCache.empty(model.config, batch=1, max_len=len(ids), dtype="float32")
        logits, _ = jllama.forward(model.config, model.params, jnp.asarray([ids], jnp.int32), cache)
        wanted = np.asarray(jax.nn.log_softmax(logits[0]))[len(prompt) - 1 : -1]
        assert [score.token for score in answer.logprobs] == answer.token_ids
        for score, row in zip(answer.logprobs, wanted, strict=True):
            assert score.logprob == pytest.approx(row[score.token], abs=1e-4)
            assert list(score.likeliest) == np.argsort(-row, kind="stable")[:5].tolist()
            assert list(score.likeliest.values()) == pytest.approx(np.sort(row)[::-1][:5], abs=1e-4)


def test_a_stop_string_ends_the_log_probabilities_too(model):
    options = dict(max_new_tokens=40, ignore_eos=True, chat=False)
    whole = jllama.complete(model, PROMPTS[0], **options)[0].text
    (answer,) = jllama.complete(model, PROMPTS[0], logprobs=0, stop=whole[10:13], **options)
    assert answer.finish_reason == "stop"
    assert [score.token for score in answer.logprobs] == answer.token_ids
    assert all(score.likeliest == {} and score.logprob < 0 for score in answer.logprobs)


def test_a_prompt_of_several_answers_is_scored_once(model):
    prompt = model.tokenizer.encode("One and two and three and four and five and six and seven " * 3)
    first, second = jllama.complete(model, prompt, n=2, prompt_logprobs=1, temperature=1.0, max_new_tokens=2)
    assert [score and score.token for score in first.prompt_logprobs] == [None, *prompt[1:]]
    assert second.prompt_logprobs == first.prompt_logprobs
    assert second.reused_tokens > 0


def test_an_answer_tells_its_use_of_tokens_and_why_it_ended(model):
    prompt, options = [5, 6, 7], dict(max_new_tokens=20, ignore_eos=True)
    (whole,) = jllama.complete(model, prompt, **options)
    assert whole.usage == dict(prompt_tokens=3, cached_tokens=0, completion_tokens=20)
    assert (whole.finish_reason, whole.stop_reason) == ("length", None)
    token = whole.token_ids[6]
    (by_token,) = jllama.complete(model, prompt, stop_token_ids=[token], **options)
    assert (by_token.finish_reason, by_token.stop_reason) == ("stop", token)
    (by_text,) = jllama.complete(model, prompt, stop=whole.text[5:8], **options)
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", whole.text[5:8])
    (end,) = model.tokenizer.eos_ids
    (by_itself,) = jllama.complete(model, prompt, logit_bias={end: 1000.0}, max_new_tokens=20)
    assert (by_itself.finish_reason, by_itself.stop_token, by_itself.stop_reason) == ("stop", end, None)


@pytest.mark.parametrize(
    ("call", "name", "hint"),
    [
        ("complete", "echo", "prompt_logprobs=0"),
        ("generate", "logprobs", "`jllama.complete`"),
        ("generate", "n", "`jllama.complete`"),
    ],
)
def test_what_other_calls_take_is_told(model, call, name, hint):
    with pytest.raises(JllamaError, match=rf"unknown setting {name} \({hint}"):
        getattr(jllama, call)(model, "One", **{name: 1})


def test_without_being_asked_for_there_are_none(model):
    assert jllama.complete(model, PROMPTS[0], max_new_tokens=2)[0].logprobs is None


@pytest.mark.parametrize("count", [-1, 21, 1.5, True, "5"])
def test_how_many_log_probabilities(model, count):
    with pytest.raises(JllamaError, match=r"logprobs=.* must be a whole number from 0 to 20"):
        jllama.complete(model, "One", logprobs=count)
