"""A session's promises: what is reused, what an interruption keeps, when and why an answer ends."""

import dataclasses
import gc
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import jllama
from jllama.engine import leading
from jllama.engine.slots import STOPS
from jllama.errors import JllamaError
from jllama.kernels.programs import program, shelf
from jllama.machine import devices
from jllama.session import Session
from jllama.settings import GenerationSettings
from tests.support.tiny_checkpoint import CONTEXT, KEYS, write_tiny_model

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return jllama.load(str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")), dtype="float32")


@pytest.fixture
def session(model):
    return Session(model, max_seq_len=96)


def settings(**changes):
    return GenerationSettings(**{"max_new_tokens": 12, "ignore_eos": True, **changes})


def run(session, prompt, **changes):
    text = "".join(session.stream(prompt, settings(**changes)))
    assert text == session.result.text
    return session.result


def fresh(model, prompt, **changes):
    return run(Session(model, max_seq_len=96), prompt, **changes)


def test_the_result_says_it_all(session):
    result = run(session, PROMPT, seed=7)
    assert (result.finish_reason, result.stop_string, result.seed) == ("length", None, 7)
    assert (result.prompt_tokens, result.generated_tokens, result.reused_tokens) == (20, 12, 0)
    assert result.text == session.model.tokenizer.decode(result.token_ids)
    assert result.prefill_seconds > 0 < result.decode_seconds
    assert session.ids == PROMPT + result.token_ids[:-1]


def test_what_begins_the_first_text_is_made_ready_while_its_prompt_is_read(model, monkeypatch, tmp_path):
    """And the call finds that very program."""
    monkeypatch.setenv("JLLAMA_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "keeps_programs", lambda: True)
    monkeypatch.setattr(program, "surroundings", lambda: "here")
    monkeypatch.setattr(program, "SHELF", shelf.Shelf())
    made, kept = [], program.Program._kept

    def noted(self, *given):
        made.append((self.__name__, threading.current_thread().name))
        return kept(self, *given)

    monkeypatch.setattr(program.Program, "_kept", noted)
    session = Session(model, max_seq_len=92)
    first = run(session, PROMPT, temperature=1.0, seed=7)
    assert [thread for name, thread in made if name == "begin"] == ["jllama beginning"]
    assert first.token_ids == fresh(model, PROMPT, temperature=1.0, seed=7).token_ids
    made.clear()
    run(session, [*PROMPT, 33])
    assert made == []


def test_a_longer_prompt_computes_only_what_is_new(session, model):
    first = run(session, PROMPT)
    longer = [*PROMPT, *first.token_ids, 33, 34]
    second = run(session, longer)
    assert second.reused_tokens == len(PROMPT) + 11
    assert second.token_ids == fresh(model, longer).token_ids


class Counts:
    """A bar that remembers its total and what it was told."""

    def __init__(self, total):
        self.seen, self.open = [total], None
        bars.append(self)

    def __enter__(self):
        self.open = True
        return self

    def __exit__(self, *_):
        self.open = False

    def advance(self, count):
        self.seen.append(count)


bars: list[Counts] = []


def test_a_long_prompt_is_counted_chunk_by_chunk(session, model):
    bars.clear()
    stream = session.stream(PROMPT * 2, settings(), progress=Counts)
    next(stream)
    assert [(bar.seen, bar.open) for bar in bars] == [([40, 32, 8], False)]
    stream.close()
    text = "".join(session.stream(PROMPT * 4, settings(), progress=Counts))
    assert bars[1].seen == [40, 32, 8]  # of what the cache did not hold
    assert text == fresh(model, PROMPT * 4).text
    "".join(session.stream(PROMPT * 4, settings(), progress=Counts))
    "".join(session.stream([1] * 32, settings(), progress=Counts))
    assert len(bars) == 2  # one chunk: nothing to count


def test_words_of_a_chat_template_reach_the_prompt(tmp_path):
    """`chat`, `system` and variables: what is read is told by the ids that the cache holds."""
    template = "{{ odd }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    model = jllama.load(str(write_tiny_model(tmp_path / "chat", template=template)), dtype="float32")
    for words, text in [
        (dict(system="S", chat_template_kwargs={"odd": "O"}), "O<system>S<user>Hi"),
        (dict(chat=False), "Hi"),
        ({}, "<user>Hi"),
    ]:
        session = Session(model, max_seq_len=96)
        list(session.stream("Hi", max_new_tokens=1, **words))
        assert model.tokenizer.decode(session.ids).removeprefix("<s>") == text


def test_another_prompt_reuses_the_common_part(session, model):
    run(session, PROMPT)
    other = [*PROMPT[:9], 90, 91, 92]
    assert run(session, other).reused_tokens == 9
    assert session.result.token_ids == fresh(model, other).token_ids
    assert run(session, [1, 2, 3]).reused_tokens == 0


def test_the_same_prompt_again_computes_its_last_token(session):
    first = run(session, PROMPT).token_ids
    assert run(session, PROMPT).token_ids == first
    assert session.result.reused_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("pieces", [1, 3])
def test_closing_early_keeps_what_came(session, model, pieces):
    whole = fresh(model, PROMPT, max_new_tokens=60)
    stream = session.stream(PROMPT, settings(max_new_tokens=60))
    text = "".join(next(stream) for _ in range(pieces))
    stream.close()
    result = session.result
    assert result.finish_reason == "interrupted"
    assert text == result.text
    assert whole.text.startswith(text)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    onward = [*PROMPT, *result.token_ids]
    again = run(session, onward)
    assert again.reused_tokens == len(onward) - 1
    assert again.token_ids == whole.token_ids[len(result.token_ids) :][:12]


@pytest.mark.parametrize("count", [1, 5, 11])
def test_an_answer_that_was_cut_goes_on_from_its_tokens(session, model, count):
    whole = fresh(model, PROMPT)
    begun = whole.token_ids[:count]
    new = "".join(session.stream(PROMPT, settings(max_new_tokens=12 - count), begun=begun))
    result = session.result
    assert (result.token_ids, result.text) == (whole.token_ids, whole.text)
    assert (result.begun_tokens, whole.text.endswith(new)) == (count, True)
    assert session.ids == [*PROMPT, *whole.token_ids[:-1]]
    longer = [*PROMPT, *whole.token_ids, 33]
    again = run(session, longer)
    assert again.reused_tokens == len(PROMPT) + 11
    assert again.token_ids == fresh(model, longer).token_ids


def test_a_snapshot_has_as_many_positions_as_there_are_ids(session, model):
    """Whatever the device computed beyond the answer; another session goes on from it."""
    assert session.snapshot() is None
    stream = session.stream(PROMPT, settings(max_new_tokens=60))
    for _ in range(3):
        next(stream)
    assert session.snapshot() is None
    stream.close()
    snapshot = session.snapshot()
    assert snapshot.length.tolist() == [len(session.ids)]
    other = Session(model, max_seq_len=96)
    ids, longer = list(session.ids), [*session.ids, 7, 8]
    other.adopt(ids, snapshot)
    assert (other.ids, other.ids is ids) == (ids, False)
    assert run(other, longer).reused_tokens == len(ids)
    assert other.result.token_ids == fresh(model, longer).token_ids


def test_ctrl_c_between_two_pieces_keeps_what_came(session, model):
    stream = session.stream(PROMPT, settings(max_new_tokens=60))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert session.ids[: len(PROMPT)] == PROMPT
    assert run(session, PROMPT).token_ids == fresh(model, PROMPT).token_ids


def test_stop_strings_across_tokens(session):
    whole = run(session, PROMPT, max_new_tokens=30)
    stop = whole.text[7:10]
    at = whole.text.index(stop)
    result = run(session, PROMPT, max_new_tokens=30, stop=("never there", stop))
    assert (result.text, result.finish_reason, result.stop_string) == (whole.text[:at], "stop", stop)
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    # The tokens of the stop string itself are reported; what the device computed beyond them is not.
    assert session.model.tokenizer.decode(result.token_ids) == whole.text[:at] + stop


def test_end_of_text(session):
    (end,) = session.model.tokenizer.eos_ids
    for ignore_eos, count, reason in ((False, 1, "stop"), (True, 12, "length")):
        result = run(session, PROMPT, logit_bias={end: 1000.0}, ignore_eos=ignore_eos)
        assert (result.token_ids, result.finish_reason, result.text) == ([end] * count, reason, "")


def test_a_special_token_is_text_where_it_is_to_be_shown(session):
    (end,) = session.model.tokenizer.eos_ids
    spelt = session.model.tokenizer.decode([end], skip_special=False)
    biased = settings(logit_bias={end: 1000.0}, max_new_tokens=3)
    for shown, text in (((), ""), ((end,), spelt * 3)):
        assert "".join(session.stream(PROMPT, biased, shown=shown)) == text == session.result.text


def test_any_number_of_ids_may_end_a_text(session, monkeypatch):
    monkeypatch.setattr(session.model.tokenizer, "eos_ids", frozenset([*range(40), -1, 5000, 2**40]))
    result = run(session, PROMPT, logit_bias={39: 1000.0}, ignore_eos=False)
    assert (result.token_ids, result.finish_reason) == ([39], "stop")


def test_the_cache_is_filled_to_its_end_and_no_further(session):
    result = run(session, PROMPT, max_new_tokens=1000)
    assert result.prompt_tokens + result.generated_tokens == session.max_seq_len
    assert result.finish_reason == "length"
    assert run(session, PROMPT * 4 + [1] * 15, max_new_tokens=5).generated_tokens == 1
    with pytest.raises(JllamaError, match="the prompt has 96 tokens and max_seq_len is 96"):
        run(session, PROMPT * 4 + [1] * 16)


def test_prompts_that_are_refused_leave_the_session_as_it_was(session):
    run(session, PROMPT)
    held = list(session.ids)
    for prompt, words in (([], "empty"), ([-1], "token -1"), ([0, KEYS["vocab_size"]], "token 258;")):
        with pytest.raises(JllamaError, match=words):
            run(session, prompt)
        assert session.ids == held
    assert run(session, PROMPT).reused_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("size", [-1, 0, 1, CONTEXT + 1])
def test_sizes_that_are_refused(model, size):
    with pytest.raises(
        JllamaError, match=f"max_seq_len={size} must be from 2 to the model's context of {CONTEXT}"
    ):
        Session(model, max_seq_len=size)


def test_the_default_size_is_the_context_of_a_small_model(model):
    assert Session(model).max_seq_len == CONTEXT


def test_seeds(session):
    assert settings(seed=0).seeded().seed == 0
    hot = dict(temperature=1.5)
    first = run(session, PROMPT, **hot)
    assert run(session, PROMPT, seed=first.seed, **hot).token_ids == first.token_ids
    large = run(session, PROMPT, seed=2**63 - 1, **hot).token_ids
    assert large != run(session, PROMPT, seed=2**31 - 1, **hot).token_ids
    assert (
        run(session, PROMPT, seed=5, **hot).token_ids != run(session, PROMPT, seed=5 + 2**32, **hot).token_ids
    )


def test_a_fork_goes_its_own_way(session, model):
    run(session, PROMPT)
    twin = session.fork()
    a, b = [*PROMPT, 1, 2], [*PROMPT, 3]
    assert run(twin, a).token_ids == fresh(model, a).token_ids
    assert run(session, b).token_ids == fresh(model, b).token_ids
    assert twin.result.reused_tokens == session.result.reused_tokens == len(PROMPT)


def test_penalties_see_the_whole_prompt_though_it_is_reused(session, model):
    strong = dict(repetition_penalty=5.0, max_new_tokens=20)
    run(session, PROMPT)
    reused, whole = run(session, PROMPT, **strong), fresh(model, PROMPT, **strong)
    assert reused.reused_tokens > 0
    assert reused.token_ids == whole.token_ids != fresh(model, PROMPT, max_new_tokens=20).token_ids


def broken(model):
    norm = jnp.full_like(model.params.norm, np.inf)
    return dataclasses.replace(model, params=dataclasses.replace(model.params, norm=norm))


def test_logits_that_are_not_finite_end_with_advice(model):
    with pytest.raises(JllamaError, match="not finite in float32"):
        run(Session(broken(model), max_seq_len=96), PROMPT)


def test_a_cache_that_may_hold_nan_is_forgotten(session, model):
    run(session, PROMPT)
    session.model = broken(model)
    with pytest.raises(JllamaError, match="not finite"):
        run(session, [*PROMPT, 1, 2])
    assert (session.ids, session.snapshot()) == ([], None)
    session.model = model
    assert run(session, PROMPT).token_ids == fresh(model, PROMPT).token_ids
    assert session.result.reused_tokens == 0


def test_a_cache_has_to_fit_on_each_of_the_devices_that_hold_the_weights(session, model, monkeypatch):
    asked = []
    monkeypatch.setattr("jllama.sharding.devices_under", lambda params: 3 if params is model.params else 0)
    monkeypatch.setattr("jllama.session.check_cache", lambda *given, **named: asked.append((given, named)))
    run(session, PROMPT)
    run(session, PROMPT)
    assert asked == [((model.config, "float32"), dict(batch=1, max_len=96, devices=3))]


def test_what_reads_the_prompt_has_the_session_s_name(session, monkeypatch):
    """By which the other processes know the cache."""
    names, read = [], jllama.session.read_prompt
    monkeypatch.setattr(
        "jllama.session.read_prompt",
        lambda slots, *a, **k: (names.append(slots.name), read(slots, *a, **k))[1],
    )
    run(session, PROMPT)
    assert names == [session._name]


def test_a_fork_has_a_result_and_ids_of_its_own(session):
    run(session, PROMPT)
    twin = session.fork()
    assert twin.result == session.result
    assert twin.result is not session.result
    given = [1, 2, 3]
    session.adopt(given, twin.snapshot())
    given.append(4)
    assert session.ids == [1, 2, 3]


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_a_cache_of_which_a_part_is_gone_is_forgotten(session, kind):
    """As a step leaves it that was interrupted."""
    run(session, PROMPT)
    cache = session.snapshot()
    session._cache, session.ids = None, []
    getattr(cache, kind)[0].delete()
    session._keep(SimpleNamespace(state=SimpleNamespace(cache=cache)), PROMPT)
    assert (session.ids, session.snapshot()) == ([], None)


def test_other_processes_forget_what_a_session_held_when_it_goes(model, monkeypatch):
    forgotten = []
    monkeypatch.setattr("jllama.engine.leading.forget", forgotten.append)
    session = Session(model, max_seq_len=96)
    name = session._name
    del session
    gc.collect()
    assert name in forgotten


def test_a_fork_is_copied_once(session):
    """By who goes on first; from then on each has arrays of its own."""
    run(session, PROMPT)
    twin = session.fork()
    assert twin.snapshot().keys[0] is session.snapshot().keys[0]
    run(twin, PROMPT)
    assert (list(session._sharers), list(twin._sharers)) == ([session], [twin])
    for one in (twin, session, twin):
        held = one.snapshot().keys[0]
        place = held.unsafe_buffer_pointer()
        run(one, PROMPT)
        assert held.is_deleted()
        assert one.snapshot().keys[0].unsafe_buffer_pointer() == place


def test_other_processes_do_with_a_session_s_cache_what_it_does(session, model, monkeypatch):
    told, tell = [], leading.tell
    monkeypatch.setattr(leading, "tell", lambda *given: (told.append(given), tell(*given)))

    def ones():
        """Those on caches alone."""
        found = [
            (name, operation, *given) for name, operation, *given in told if operation <= leading.FORGOTTEN
        ]
        told.clear()
        return found

    size, name = (0, 96, STOPS), session._name
    Session(model, max_seq_len=96).fork()
    assert ones() == []  # there is none yet
    run(session, PROMPT)
    assert ones() == [(name, leading.NEW, *size)]
    run(session, PROMPT)
    assert ones() == [(name, leading.RESUMED, name, *size)]
    twin = session.fork()
    assert ones() == [(twin._name, leading.RESUMED, name, *size)]
    run(twin, PROMPT)
    copied = [(twin._name, operation, twin._name, *size) for operation in (leading.COPIED, leading.RESUMED)]
    assert ones() == copied
    run(session, PROMPT)
    assert ones() == [(name, leading.RESUMED, name, *size)]
    other = session.fork()
    ones()
    run(session, [200, 201])  # it begins with nothing of the cache, which is the other's from now on
    assert ones() == [(name, leading.FORGOTTEN, name, *size), (name, leading.NEW, *size)]
    assert other.ids[: len(PROMPT)] == PROMPT


def test_a_cache_that_several_processes_hold_leaves_them_not_and_none_comes_from_outside(
    session, monkeypatch
):
    run(session, PROMPT)
    held, cache = list(session.ids), session.snapshot()
    monkeypatch.setattr(leading, "followed", lambda: True)
    assert session.snapshot() is None
    session.adopt([1, 2], cache)
    assert session.ids == held


@pytest.mark.parametrize("error", [None, JllamaError("what was begun can't match")])
def test_what_was_begun_is_taken_into_what_an_answer_must_match(session, monkeypatch, error):
    """At once, before the first piece is asked for."""
    followed, constraint = [], SimpleNamespace(error=None)

    def follow(ids):
        followed.append([*ids])
        constraint.error = error

    constraint.follow = follow
    monkeypatch.setattr("jllama.session.constraint_for", lambda *given: constraint)
    if error is None:
        session.stream(PROMPT, settings(), begun=[7, 8]).close()
    else:
        with pytest.raises(JllamaError, match="what was begun can't match"):
            session.stream(PROMPT, settings(), begun=[7, 8])
    assert followed == [[7, 8]]
