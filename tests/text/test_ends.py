"""What ends an answer: the ends of the model, those of the template in use, and special tokens as stops."""

import dataclasses
import json

import pytest

import jllama
from jllama.answer import Answer, Result
from jllama.chat.conversation import Conversation
from jllama.chat.transcript import Transcript, kept_ids
from jllama.errors import JllamaError
from jllama.session import Session
from jllama.settings import GenerationSettings
from jllama.text.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import END, TEMPLATE, write_tiny_model
from tests.support.tokenizer_helpers import byte_level_json, spm_directory, write_directory

ALWAYS_END = {256: 1000.0}
TURN = "{% for m in messages %}{{ m.role }}: {{ m.content }}ENDS{% endfor %}"


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """A base model whose files name no end."""
    directory = write_tiny_model(tmp_path_factory.mktemp("models") / "nameless")
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
    return jllama.load(str(directory), dtype="float32")


@pytest.fixture
def tokenizer(tmp_path):
    names = [("<|x|>", True), ("<|y|>", True), ("<|eot_id|>", False)]
    return Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=byte_level_json(added=names)))


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_the_text_of_a_special_token_stops_at_the_token(nameless, ignore_eos):
    session = Session(nameless, max_seq_len=64)
    settings = GenerationSettings(stop=("never", END), logit_bias=ALWAYS_END, ignore_eos=ignore_eos)
    assert "".join(session.stream([40, 41], settings)) == ""
    result = session.result
    assert (result.token_ids, result.finish_reason, result.stop_string) == ([256], "stop", END)


def test_the_end_of_a_turn_in_the_template_in_use_ends_an_answer(nameless):
    assert nameless.tokenizer.eos_ids == frozenset()
    conversation = Conversation(nameless, transcript=TEMPLATE, max_seq_len=128)
    for _ in range(2):
        list(conversation.ask("Hi", GenerationSettings(max_new_tokens=4, logit_bias=ALWAYS_END)))
        assert (conversation.result.token_ids, conversation.result.finish_reason) == ([256], "stop")
    # The template writes the end; the history does not have it twice.
    assert [message.token_ids for message in conversation.messages[1::2]] == [(), ()]


@pytest.mark.parametrize(
    ("written", "ends"),
    [
        ("<|x|>", ["<|x|>"]),
        (" <|y|>\n", ["<|y|>"]),
        ("<|eot_id|>", ["<|eot_id|>"]),
        ("\n<|x|><|y|>", ["<|x|>"]),
        (".<|x|>", []),
        ("\n", []),
        ("{% if false %}<|eot_id|>{% endif %}<|x|>", ["<|eot_id|>", "<|x|>"]),
    ],
)
def test_a_turn_ends_with_what_the_template_writes_behind_an_answer(tokenizer, written, ends):
    template = tokenizer.compile_template(TURN.replace("ENDS", written))
    assert list(tokenizer.turn_ends(template)) == ends
    transcript = Transcript(tokenizer, TURN.replace("ENDS", written))
    assert [*transcript.stops] == [*transcript.turn_ends] == ends


def test_a_template_that_wants_other_messages_names_its_ends(tokenizer):
    template = tokenizer.compile_template("{{ raise_exception('no') }}<|eot_id|><|x|>")
    assert tokenizer.turn_ends(template) == ("<|eot_id|>",)


def test_a_template_that_writes_no_answer_has_no_end_behind_it(tokenizer):
    template = tokenizer.compile_template("<|x|>{{ messages[0].content }}<|y|>")
    assert tokenizer.turn_ends(template) == ()


def test_a_format_ends_turns_as_well(tokenizer):
    transcript = Transcript(tokenizer, r"<|x|>{user}<|y|>\n{ai}<|y|>\n")
    assert transcript.turn_ends == ("<|y|>",)
    assert Transcript(tokenizer).turn_ends == ()


def test_the_models_own_template_counts(tmp_path, tokenizer):
    write_directory(tmp_path, chat_template__jinja=TURN.replace("ENDS", "<|x|>"))
    assert Tokenizer.from_dir(tmp_path).eos_ids == {256}


def test_a_broken_template_does_not_stop_plain_text(tmp_path):
    state = byte_level_json(added=[("<e>", True)])
    config = {"eos_token": "<e>", "chat_template": "{% if"}
    made = Tokenizer.from_dir(write_directory(tmp_path, tokenizer__json=state, tokenizer_config=config))
    assert made.eos_ids == {256}
    assert made.decode(made.encode("a")) == "a"
    with pytest.raises(JllamaError, match="does not compile"):
        made.encode_chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(("ids", "stop", "kept"), [([65, 256], "<|x|>", (65,)), ([65, 256], None, (65, 256))])
def test_an_answer_is_kept_without_the_stop_that_ended_it(tokenizer, ids, stop, kept):
    result = Result(text="B" if stop is None else tokenizer.decode([65]), token_ids=ids, finish_reason="stop")
    assert kept_ids(tokenizer, [1], dataclasses.replace(result, stop_string=stop)) == kept


def test_what_is_left_of_a_cut_token_is_no_new_text(tmp_path):
    """A first word gets a blank before it, the rest of an answer none."""
    tokenizer = Tokenizer.from_dir(spm_directory(tmp_path, "bpe", tokenizer_config={"legacy": False}))
    whole, rest = (tokenizer.encode(text, add_special=False, begins=False) for text in ("he", "h"))
    result = Result(text="h", token_ids=whole, finish_reason="interrupted")
    assert len(whole) == 1
    assert [*kept_ids(tokenizer, [1, 5], result)] == rest != tokenizer.encode("h", add_special=False)


def test_a_stop_of_ordinary_text_shows_nothing_of_it(tokenizer):
    answer = Answer(tokenizer, [1], GenerationSettings(stop=("<|z|>", "<|x|>")))
    shown = "".join(answer.push(tokenizer.encode("a<|z|>b")))
    assert (shown, answer.result.stop_string, answer.finished) == ("a", "<|z|>", True)
