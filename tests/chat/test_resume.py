"""An answer that was cut goes on from its own tokens, as if nothing had cut it."""

import dataclasses
import json

import pytest

from jllama.answer import Answer
from jllama.chat.archive import archive
from jllama.chat.conversation import Conversation
from jllama.engine.slots import Slots
from jllama.errors import JllamaError
from jllama.session import Session
from jllama.settings import GenerationSettings

WHOLE = GenerationSettings(max_new_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def model(instruct):
    """Its tokens are single bytes, so that most cuts fall into a character."""
    return instruct


def ask(conversation, text="Hello", **changes):
    return "".join(conversation.ask(text, dataclasses.replace(WHOLE, **changes)))


def resume(conversation, **changes):
    return "".join(conversation.resume(dataclasses.replace(WHOLE, **changes)))


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 20, 39])
def test_two_halves_are_the_whole(model, cut):
    uncut, conversation = Conversation(model), Conversation(model)
    ask(uncut)
    first = ask(conversation, max_new_tokens=cut)
    assert conversation.messages[-1].cut
    rest = resume(conversation, max_new_tokens=40 - cut)
    assert conversation.messages == uncut.messages
    assert conversation.turns == 1
    answer = conversation.messages[-1].content
    assert rest == answer[len(first) :]  # U+FFFD stands where the cut fell into a character
    result = conversation.result
    assert (result.generated_tokens, result.reused_tokens) == (40 - cut, result.prompt_tokens - 1)
    assert ask(conversation, "And?") == ask(uncut, "And?")


def test_many_small_steps_are_the_whole(model):
    uncut, conversation = Conversation(model), Conversation(model)
    ask(uncut)
    ask(conversation, max_new_tokens=5)
    for _ in range(7):
        resume(conversation, max_new_tokens=5)
    assert conversation.messages == uncut.messages


def test_what_ctrl_c_cut_goes_on(model):
    uncut, conversation = Conversation(model), Conversation(model)
    ask(uncut)
    pieces = conversation.ask("Hello", WHOLE)
    came = next(pieces) + next(pieces)
    pieces.close()
    assert (conversation.messages[-1].content, conversation.messages[-1].cut) == (came, True)
    rest = resume(conversation, max_new_tokens=40 - len(conversation.messages[-1].token_ids))
    assert came + rest == conversation.messages[-1].content == uncut.messages[-1].content


@pytest.mark.parametrize("how", ["length", "eos"])
def test_a_turn_ends_by_itself_or_by_length(model, how):
    conversation = Conversation(model)
    end = model.tokenizer.special_id("<|end|>")
    ask(conversation, max_new_tokens=3)
    before = conversation.messages[-1]
    if how == "eos":
        assert resume(conversation, ignore_eos=False, logit_bias={end: 100.0}) == ""
        assert conversation.messages[-1] == dataclasses.replace(before, cut=False)
        with pytest.raises(JllamaError, match="nothing to continue: the last answer ended by itself"):
            resume(conversation)
    else:
        resume(conversation, max_new_tokens=1)
        assert conversation.messages[-1].cut
    with pytest.raises(JllamaError, match="nothing to continue: there is no turn yet"):
        resume(Conversation(model))


def test_a_stop_string_of_the_user_is_a_cut_and_one_of_the_transcript_is_none(model):
    for transcript, cut in ((None, True), ("U{user}A{ai}", False)):
        conversation = Conversation(model, transcript=transcript)
        stop = "U" if transcript else "x"
        bias = {model.tokenizer.encode(stop, add_special=False)[0]: 100.0}
        ask(conversation, stop=() if transcript else (stop,), logit_bias=bias)
        assert conversation.result.stop_string == stop
        assert conversation.messages[-1].cut is cut


def test_a_stop_string_that_the_cut_went_through_still_ends_the_answer(model):
    """`abc` with a stop of `bc`, cut behind the `b`: it stays on the screen, but not in the history."""
    a, b, c = model.tokenizer.encode("abc", add_special=False)
    conversation = Conversation(model)
    for token in (a, b):
        settings = {"max_new_tokens": 1, "logit_bias": {token: 100.0}, "stop": ("bc",)}
        assert (resume if conversation.turns else ask)(conversation, **settings) == chr(97 + (token == b))
    assert resume(conversation, logit_bias={c: 100.0}, stop=("bc",)) == ""
    assert (conversation.messages[-1].content, conversation.messages[-1].token_ids) == ("a", (a,))
    assert conversation.result.finish_reason == "stop"


def test_a_stop_string_that_stands_there_already_takes_nothing_back(model):
    a, b, _ = model.tokenizer.encode("abc", add_special=False)
    conversation = Conversation(model)
    ask(conversation, max_new_tokens=4, logit_bias={a: 100.0})
    assert resume(conversation, max_new_tokens=3, logit_bias={b: 100.0}, stop=("aa",)) == "bbb"
    assert conversation.messages[-1].content == "aaaabbb"


def test_nothing_new_leaves_the_turn_as_it_was(model, monkeypatch):
    conversation = Conversation(model)
    ask(conversation, max_new_tokens=12)
    before = conversation.messages

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "begin_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume(conversation, stop=(conversation.messages[-1].content[-1] + "\x00",))
    assert conversation.messages is before
    resume(conversation, max_new_tokens=28)
    uncut = Conversation(model)
    ask(uncut)
    assert conversation.messages == uncut.messages


def test_a_branch_goes_on_alone(model):
    conversation = Conversation(model)
    ask(conversation, max_new_tokens=5)
    conversation.fork("other")
    resume(conversation)
    conversation.switch("main")
    assert conversation.messages[-1].cut
    assert len(conversation.messages[-1].token_ids) == 5
    assert len(conversation.branches["other"].messages[-1].token_ids) == 45


@pytest.mark.parametrize("cache", [False, True])
def test_a_saved_conversation_knows_that_it_was_cut(model, tmp_path, cache):
    uncut, conversation = Conversation(model), Conversation(model)
    ask(uncut)
    ask(conversation, max_new_tokens=15)
    archive.save(conversation, WHOLE, tmp_path / "talk.json", cache=cache)
    again = Conversation(model)
    archive.load(again, tmp_path / "talk.json")
    assert again.messages == conversation.messages
    resume(again, max_new_tokens=25)
    assert again.messages == uncut.messages
    assert (again.result.reused_tokens > 0) is cache


def test_a_changed_answer_goes_on_from_its_text(model, tmp_path):
    conversation = Conversation(model)
    ask(conversation, max_new_tokens=15)
    archive.save(conversation, WHOLE, tmp_path / "talk.json")
    data = json.loads((tmp_path / "talk.json").read_text())
    data["messages"][1]["content"] = "Changed"
    (tmp_path / "talk.json").write_text(json.dumps(data))
    archive.load(conversation, tmp_path / "talk.json")
    rest = resume(conversation, max_new_tokens=5)
    assert conversation.messages[-1].content == "Changed" + rest
    fresh = Session(model)
    prompt = [*conversation.encode(conversation.messages[:-1]), *model.tokenizer.encode("Changed")]
    assert "".join(fresh.stream(prompt, dataclasses.replace(WHOLE, max_new_tokens=5))) == rest
    data["messages"][1]["cut"] = "yes"
    (tmp_path / "talk.json").write_text(json.dumps(data))
    with pytest.raises(JllamaError, match="Expected `bool`, got `str`"):
        archive.load(conversation, tmp_path / "talk.json")


def test_a_full_context_drops_old_turns_or_says_that_there_is_no_room(model):
    conversation = Conversation(model, max_seq_len=64)
    ask(conversation, "One", max_new_tokens=8)
    ask(conversation, "Two", max_new_tokens=13)
    assert conversation.branch.dropped == 0
    before = len(conversation.messages[-1].token_ids)
    resume(conversation, max_new_tokens=4)
    assert conversation.branch.dropped == 1
    assert len(conversation.messages[-1].token_ids) == before + 4
    resume(conversation, max_new_tokens=60)
    assert conversation.context_used == 63  # the last token was never fed
    with pytest.raises(JllamaError, match="the message and its answer are too long: 64 tokens"):
        resume(conversation)


def test_the_pieces_are_what_is_new_whatever_was_cut(model):
    """For any bytes and any place: both halves make up the whole, but for the mark of a cut character."""
    tokenizer, settings = model.tokenizer, GenerationSettings(stop=("é!", "xyz"))
    ids = tokenizer.encode("xaé€😀 x\n xy😀é?", add_special=False)
    for count in range(len(ids) + 1):
        answer = Answer(tokenizer, [], settings, ids[:count])
        came = "".join([*answer.push(ids[count:]), *answer.end()])
        shown = tokenizer.decode(ids[:count])
        assert answer.result.text == tokenizer.decode(ids)
        assert came == answer.result.text[len(shown) :]
        assert answer.result.token_ids == ids
