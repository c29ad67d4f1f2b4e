"""Which turns are left out when the context is full."""

import pytest

import jllama
from jllama.chat.conversation import Conversation
from jllama.chat.overflow import fit
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

SIZE = 100
SETTINGS = GenerationSettings(max_new_tokens=8, ignore_eos=True)


def prompt_of(turns, length=10, question=5):
    """Encodes `turns` turns of `length` tokens each, and a question."""

    def encode(dropped):
        assert 0 <= dropped <= turns
        return [0] * ((turns - dropped) * length + question)

    return encode


@pytest.mark.parametrize(
    ("turns", "dropped", "wanted", "left_out"),
    [
        (9, 0, 5, 0),  # 95 and 5: exactly full
        (9, 0, 6, 3),  # 65 of 100 - 6 - 25
        (10, 0, 500, 6),  # a quarter is enough for an answer, and a quarter stays free
        (10, 7, 5, 7),
        (3, 7, 5, 3),  # turns were taken back: no more than there are
        (0, 7, 5, 0),
    ],
)
def test_enough_turns_go_that_the_next_ones_fit(turns, dropped, wanted, left_out):
    encode = prompt_of(turns)
    prompt, gone = fit(encode, turns=turns, dropped=dropped, wanted=wanted, size=SIZE, policy="drop_oldest")
    assert (gone, prompt) == (left_out, encode(left_out))


def test_a_question_alone_may_use_the_reserve_and_no_more():
    for policy in ("drop_oldest", "stop"):
        prompt, _ = fit(prompt_of(0, question=99), turns=0, dropped=0, wanted=9, size=SIZE, policy=policy)
        assert len(prompt) == 99
        for turns in (0, 3):  # to drop them again would not help
            encode = prompt_of(turns, question=100)
            with pytest.raises(JllamaError, match="the message is too long: 100 tokens, the context has 100"):
                fit(encode, turns=turns, dropped=turns, wanted=9, size=SIZE, policy=policy)


@pytest.mark.parametrize(("size", "gone"), [(3, 0), (4, 1)])
def test_of_fewer_than_four_tokens_no_quarter_is_kept(size, gone):
    """A turn that fills the context stays where a quarter of it is none."""
    encode = prompt_of(1, length=size - 1, question=1)
    assert fit(encode, turns=1, dropped=0, wanted=9, size=size, policy="drop_oldest") == (encode(gone), gone)


def test_or_it_is_refused_with_what_would_help():
    with pytest.raises(JllamaError, match="the context is full: the conversation would have 105 tokens"):
        fit(prompt_of(10), turns=10, dropped=0, wanted=5, size=SIZE, policy="stop")


@pytest.mark.parametrize(
    ("may_grow", "advice"), [(True, "shorten it or raise max_seq_len$"), (False, "has 100: shorten it$")]
)
def test_a_longer_context_is_advised_where_the_model_takes_one(may_grow, advice):
    whole = dict(turns=0, dropped=0, wanted=9, size=SIZE, may_grow=may_grow)
    for policy in ("drop_oldest", "stop"):
        with pytest.raises(JllamaError, match=advice):
            fit(prompt_of(0, question=SIZE), policy=policy, **whole)


@pytest.fixture
def overflown(tmp_path):
    """A conversation that has just left out its oldest turns."""
    model = jllama.load(write_tiny_model(tmp_path / "tiny", template=TEMPLATE), dtype="float32")
    talk = Conversation(model, max_seq_len=250)
    while not talk.branch.dropped:
        "".join(talk.ask("Hello", SETTINGS))
    return talk


def test_the_turns_after_an_overflow_reuse_the_cache_again(overflown):
    gone = overflown.branch.dropped
    held = overflown.context_used
    "".join(overflown.ask("Hello", SETTINGS))
    assert overflown.branch.dropped == gone > 1
    assert overflown.result.reused_tokens == held


def test_after_an_overflow_an_early_turn_can_be_edited(overflown):
    "".join(overflown.edit(1, "Another question?", SETTINGS))
    assert "Another question?" in overflown.model.tokenizer.decode(overflown.branch.session.ids)
    assert (overflown.turns, overflown.branch.dropped) == (1, 0)
