"""The parts of a tokenizer, each alone: prompts, contents, special tokens, splices, decoders, rules."""

import dataclasses
import json
import struct

import numpy as np
import pytest

from jllama.errors import JllamaError
from jllama.text.content_parts import as_text, settle_parts
from jllama.text.detokenizer import Detokenizer, StreamDecoder, byte_level, from_decoder_json, metaspace
from jllama.text.prompt import checked_variables, encode_prompt
from jllama.text.special_tokens import Special, SpecialTokens, special_texts
from jllama.text.splice import Splices
from jllama.text.surrogates import has_utf8_form, without_surrogates
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.template.traced_text import OWN, Traced
from jllama.text.tokenizer import Tokenizer
from jllama.text.turn_ends import turn_ends
from jllama.text.vocabularies import gguf, spm_charsmap, tokenizer_checks
from jllama.text.vocabularies import spm_file as spm_file_module
from jllama.text.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from jllama.text.vocabularies.spm import (
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SpmEncoder,
    SpmModel,
    settle_types,
)
from jllama.text.vocabularies.spm_charsmap import CharsMap
from jllama.text.vocabularies.spm_file import read_model
from jllama.text.vocabulary import Settings, Vocabulary, ending_ids
from tests.support.tokenizer_helpers import byte_level_json, write_directory
from tests.support.tokenizer_kinds import gguf_bpe, gguf_spm

# Prompts.


class Asked:
    """A tokenizer that tells what it was asked."""

    def __init__(self, has_template=True):
        self.chat_template = has_template or None

    def encode(self, text):
        return ["text", text]

    def encode_chat(self, messages, **variables):
        return ["chat", *messages, *variables.items()]


USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
PROMPTS = [
    ("Hi", {}, True, ["chat", USER]),
    ("Hi", {}, False, ["text", "Hi"]),
    ("Hi", {"chat": False}, True, ["text", "Hi"]),
    ("Hi", {"chat": True}, True, ["chat", USER]),
    ("Hi", {"system": "Be kind."}, True, ["chat", SYSTEM, USER]),
    ([USER], {}, True, ["chat", USER]),
    ((USER,), {"system": "Be kind."}, True, ["chat", SYSTEM, USER]),
    ([USER], {"chat": False}, True, ["chat", USER]),
    ("Hi", {"chat_template_kwargs": {"x": [1]}}, True, ["chat", USER, ("x", [1])]),
    ("Hi", {"chat_template_kwargs": {}}, False, ["text", "Hi"]),
    ([1, 2], {}, True, [1, 2]),
    ((0,), {"chat": True}, False, [0]),
    (np.array([3, 4]), {}, True, [3, 4]),
    (iter([5]), {}, True, [5]),
    (" a\n", {}, False, ["text", " a\n"]),
]


@pytest.mark.parametrize(("prompt", "how", "has_template", "asked"), PROMPTS)
def test_what_a_model_is_asked_with(prompt, how, has_template, asked):
    assert encode_prompt(Asked(has_template), prompt, **how) == asked


def test_the_callers_list_stays_as_it_is():
    messages = [USER]
    encode_prompt(Asked(), messages, system="Be kind.")
    assert messages == [USER]


@pytest.mark.parametrize(
    ("prompt", "how", "has_template", "words"),
    [
        ("", {}, True, "the prompt is empty"),
        (" \n", {}, True, "the prompt is empty"),
        ([], {}, True, "the prompt is empty"),
        ((), {}, True, "the prompt is empty"),
        ("Hi", {"system": "x"}, False, "a system message needs a chat template"),
        ("Hi", {"system": "x", "chat": False}, True, "a system message needs a chat template"),
        ([1], {"system": "x"}, True, "a system message needs a chat template"),
        ("Hi", {"chat_template_kwargs": {"x": 1}}, False, "chat_template_kwargs need a chat template"),
        ([1], {"chat_template_kwargs": {"x": 1}}, True, "chat_template_kwargs need a chat template"),
        ("Hi", {"chat_template_kwargs": {"tools": []}}, True, "tools is not yours to set"),
        ("Hi", {"chat_template_kwargs": "x"}, True, "must be names with values"),
        ("Hi", {"chat_template_kwargs": {5: 1}}, True, "must be names with values"),
        ("Hi", {"chat": True}, False, "the model has no chat template: use --nochat_template"),
        ([USER], {}, False, "the model has no chat template"),
        (b"Hi", {}, True, "the prompt must be a text or a list"),
        (5, {}, True, "the prompt must be a text or a list"),
        (None, {}, True, "the prompt must be a text or a list"),
        (["a"], {}, True, "the prompt must be a text or a list"),
        ([1, "a"], {}, True, "the prompt must be a text or a list"),
        ([1.5], {}, True, "the prompt must be a text or a list"),
        ([USER, 1], {}, True, "the prompt must be a text or a list"),
    ],
)
def test_what_is_no_prompt(prompt, how, has_template, words):
    with pytest.raises(JllamaError, match=words):
        encode_prompt(Asked(has_template), prompt, **how)


@pytest.mark.parametrize("name", "self messages message role content tools documents template".split())
def test_what_the_program_gives_to_a_template_is_nobody_elses_to_set(name):
    for names in ([name], ["x", name], ["add_generation_prompt"], ["bos_token"], ["eos_token"]):
        with pytest.raises(
            JllamaError, match=f"^chat_template_kwargs: {names[-1]} is not yours to set; leave it"
        ):
            checked_variables(dict.fromkeys(names, 1))


def test_a_callers_variables_are_copied():
    given = {"x": [1], "y": None}
    made = checked_variables(given)
    assert (made, checked_variables(None), checked_variables({})) == (given, {}, {})
    assert made is not given


# Contents.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        ("", ""),
        ([], ""),
        (["a", "b"], "ab"),
        ([{"text": "a"}, {"type": "input_text", "text": "b"}], "ab"),
        (({"type": "output_text", "text": "a"},), "a"),
    ],
)
def test_a_content_as_one_text(content, text):
    assert as_text(content) == text


@pytest.mark.parametrize("content", [None, 5, {"text": "a"}, [5], [{}], [None, "a"], b"a"])
def test_what_is_no_content(content):
    with pytest.raises(JllamaError, match="must be a text or a list of text parts, not "):
        as_text(content)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "text"}, "a part of type 'text' without its text"),
        ({"type": "text", "text": 5}, "a part of type 'text' without its text"),
        ({"type": "image", "text": "a"}, "a part of type 'image': the model reads text alone"),
        ({"type": "x" * 50}, "a part of type '" + "x" * 40 + "'"),
    ],
)
def test_a_part_that_is_no_text_is_named_with_its_message(part, words):
    with pytest.raises(JllamaError) as error:
        settle_parts([USER, {"role": "user", "content": [part]}], lambda messages: "")
    assert str(error.value).startswith(f"messages[1]: {words}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"content": None}, "the content must be a text or a list of text parts, not NoneType"),
        ({"content": 5}, "the content must be .*, not int"),
        ({"content": {"type": "text", "text": "a"}}, "the content must be .*, not dict"),
        ({"content": [5]}, "the content must be .*, not a list of something else"),
        ({"role": 5}, "the role must be a text such as 'user', not int"),
        ({"role": None}, "the role must be .*, not NoneType"),
    ],
)
def test_a_message_of_another_kind_is_named_and_not_its_template(changes, words):
    with pytest.raises(JllamaError, match=rf"^messages\[1\]: {words}"):
        settle_parts([USER, {**USER, **changes}], lambda messages: 1 / 0)


def test_no_content_beside_calls_is_none():
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert settle_parts([called], lambda messages: 1 / 0) == [
        {"role": "assistant", "tool_calls": [{"name": "f"}]}
    ]
    assert called["content"] is None
    with pytest.raises(JllamaError, match="not NoneType"):
        settle_parts([{**called, "tool_calls": []}], lambda messages: 1 / 0)


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def goes_through(*roles):
    """A template that goes through the parts of these roles' messages and takes texts of all others."""

    def render(messages):
        out = ""
        for message in messages:
            assert "token_ids" not in message
            if message["role"] in roles:
                if isinstance(message["content"], str):
                    raise JllamaError("no list")
                out += "".join(part["text"] for part in message["content"])
            else:
                out += json.dumps(message["content"], ensure_ascii=False)
        return out

    return render


@pytest.mark.parametrize("roles", [(), ("user",), ("system",), ("system", "user")])
def test_each_message_is_as_its_template_takes_it(roles):
    messages = [{"role": role, "content": ["a", {"text": "b"}]} for role in ("system", "user")]
    settled = settle_parts(messages, goes_through(*roles))
    wanted = [parts("a", "b") if message["role"] in roles else "ab" for message in messages]
    assert [message["content"] for message in settled] == wanted
    assert messages[0]["content"] == ["a", {"text": "b"}]


def test_texts_and_other_lists_are_left_alone():
    messages = [USER, {"role": "tool", "content": [5]}, {"role": "tool", "content": []}, {"role": "user"}]
    messages += [{"role": "function", "content": [{"type": "json", "text": "a"}]}]
    settled = settle_parts(messages, lambda messages: 1 / 0)
    assert settled == messages
    assert settled[0] is not messages[0]
    made = settle_parts(
        [{"role": "ipython", "content": ["a"]}, {"role": "user", "content": []}], lambda m: ""
    )
    assert [message["content"] for message in made] == ["a", ""]
    with pytest.raises(JllamaError, match="a message must be a dictionary such as"):
        settle_parts(["Hi"], lambda messages: "")


def test_a_mark_that_stands_in_the_messages_is_another():
    messages = [{"role": "user", "content": ["\ue0000\ue000", "\ue000" * 5]}]
    assert settle_parts(messages, goes_through("user"))[0]["content"] == parts("\ue0000\ue000", "\ue000" * 5)
    assert settle_parts(messages, goes_through())[0]["content"] == "\ue0000\ue000" + "\ue000" * 5


def test_a_mark_that_another_message_quotes_is_another():
    quoted = '"\ue0000\ue000"'
    messages = [{"role": "user", "content": ["a"]}, {"role": "user", "content": quoted}]

    def render(messages):
        return "".join(c if isinstance(c := m["content"], str) else c[0]["text"] for m in messages)

    assert settle_parts(messages, render)[0]["content"] == parts("a")


def test_an_answer_with_its_ids_is_a_text_where_not_all_lists_are_taken():
    def render(messages):
        user, answer = messages
        if not isinstance(user["content"], str):
            raise JllamaError("no list")
        assert "token_ids" not in answer
        return str(answer["content"]) if isinstance(answer["content"], str) else answer["content"][0]["text"]

    messages = [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": ["b"], "token_ids": [1]}]
    user, answer = settle_parts(messages, render)
    assert (user["content"], answer) == ("a", {"role": "assistant", "content": "b", "token_ids": [1]})
    del messages[1]["token_ids"]
    assert settle_parts(messages, render)[1]["content"] == parts("b")


# Special tokens.


def texts(*known, single=(), **hints):
    return special_texts(known, lambda text: b"x" if text in single else text.encode(), **hints)


def test_which_tokens_are_special_whatever_their_file_says():
    assert texts("<|im_end|>", "<|endoftext|>", "<|im_start|>", "x") == {
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_start|>",
    }
    assert texts("<|im_end|>", by_name=False) == set()
    assert texts("<|im_end|>", by_name=False, templates=["a", "b<|im_end|>"]) == {"<|im_end|>"}
    assert texts("<|endoftext|>", by_name=False) == {"<|endoftext|>"}
    assert texts("</s>", named=["</s>", "absent", None, ""]) == {"</s>"}
    assert texts("</s>", named=["</s>"], single=["</s>"]) == set()
    written = ["<|tool|><think>"]
    assert texts("<|tool|>", "<think>", added=["<|tool|>", "<think>"], templates=written) == {"<|tool|>"}
    assert texts("<|tool|>", added=["<|tool|>"]) == set()
    assert texts("<｜x\ny｜>", added=["<｜x\ny｜>"], templates=["<｜x\ny｜>"]) == {"<｜x\ny｜>"}
    assert texts("x<|a|>", added=["x<|a|>"], templates=["x<|a|>"]) == set()


def test_where_special_tokens_stand():
    specials = SpecialTokens([Special(text="<a>", id=1), Special(text="<b>", id=0), Special(text="", id=9)])
    assert specials.split("<a>x<b><a>") == [1, "x", 0, 1]
    assert specials.split("x") == ["x"]
    assert specials.split("") == []
    assert specials.split(Traced("<a>x<b>", OWN * 3 + "gggg")) == [1, "x<b>"]
    assert specials.leading(" \n<b>x").id == 0
    assert specials.leading("x<b>") is None
    assert specials.leading("  ") is None
    assert SpecialTokens([]).split("x") == ["x"]


def test_blanks_beside_a_token_that_swallows_them():
    both = SpecialTokens([Special(text="<a>", id=1, lstrip=True, rstrip=True)])
    assert both.split("x \n<a>\t y <a> <a>") == ["x", 1, "y", 1, 1]
    left = SpecialTokens([Special(text="<a>", id=1, lstrip=True)])
    assert left.split(" <a> ") == [1, " "]
    assert left.split(" x <a> y ") == [" x", 1, " y "]
    right = SpecialTokens([Special(text="<a>", id=1, rstrip=True)])
    assert right.split(" x <a> y ") == [" x ", 1, "y "]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("end", [1]),
        ("end.", [1, "."]),
        ("bend", ["bend"]),
        ("ends", ["ends"]),
        ("-end-", ["-", 1, "-"]),
        ("ends end", ["ends ", 1]),
    ],
)
def test_a_single_word(text, parts):
    assert SpecialTokens([Special(text="end", id=1, single_word=True)]).split(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<e>", [1]),
        (" <e> ", [" ", 1, " "]),
        ("a<e>", ["a<e>"]),
        ("<e>a", ["<e>a"]),
        (".<e><e>", [".", 1, 1]),
    ],
)
def test_a_single_word_may_be_of_marks(text, parts):
    assert SpecialTokens([Special(text="<e>", id=1, single_word=True)]).split(text) == parts


def test_where_a_single_word_is_none_a_shorter_token_is_one():
    specials = SpecialTokens([Special(text="end", id=1, single_word=True), Special(text="en", id=2)])
    assert specials.split("ends end") == [2, "ds ", 1]


@pytest.mark.parametrize(
    ("source", "ends"),
    [
        ("{{ '<|im_end|>' }}", ("<|im_end|>",)),
        ("{{ '<|eot_id|>' }}", ()),  # well-known, and none of this vocabulary
        ("{{ '<|im_end|>' }}{{ '<|eot_id|>' }}", ("<|im_end|>",)),
        ("{% for m in messages %}{{ m.content }}<|x|>{% endfor %}", ("<|x|>",)),
        ("{% for m in messages %}{{ m.content }}<|x|><|im_end|>{% endfor %}", ("<|im_end|>", "<|x|>")),
        ("{% for m in messages %}{{ m.role }}<|x|>{% endfor %}", ()),
        ("{{ raise_exception('no') }}<|im_end|><|x|>", ("<|im_end|>",)),
    ],
)
def test_what_ends_a_turn_is_of_the_template_and_of_the_vocabulary(source, ends):
    specials = SpecialTokens([Special(text="<|im_end|>", id=1), Special(text="<|x|>", id=2)])
    assert turn_ends(ChatTemplate(source), specials) == ends


def vocabulary(*specials, **changes):
    fields = dict(
        encode=lambda text, first: [("first" if first else "rest", text)],
        token_bytes=lambda token: bytes([token]),
        drop_blanks=0,
        size=300,
        base_size=256,
        ids={},
        specials={s.text: s for s in specials},
        added=(),
        remake=lambda also: 1 / 0,
    )
    return Vocabulary(**fields | changes)


def test_the_tokens_that_end_a_text():
    known = vocabulary(
        *(Special(text=text, id=at) for at, text in enumerate(["<|endoftext|>", "<|im_end|>", "<|eot_id|>"]))
    )
    assert ending_ids(known, {}) == {0}
    assert ending_ids(known, {"default": "x", "tool": "<|im_end|>"}) == {0, 1}


# ChatML, Llama 3 and 4, Gemma, Phi, OpenChat, Command R, gpt-oss, MiniCPM.
ENDS = "<|im_end|> <|eot_id|> <|eom_id|> <|eot|> <end_of_turn> <turn|> <|tool_response> <|end|> "
ENDS += "<|end_of_turn|> <|END_OF_TURN_TOKEN|> <|return|> [EOT]"
BEGINNINGS = "<|im_start|> <|start_header_id|> <|end_header_id|> <start_of_turn>"
TEXT_ENDS = "<|endoftext|> <|end_of_text|> <｜end▁of▁sentence｜>"


@pytest.mark.parametrize("text", [*ENDS.split(), *TEXT_ENDS.split()])
def test_each_known_end_ends_an_answer(text):
    known = vocabulary(Special(text="<s>", id=0), Special(text=text, id=5))
    assert ending_ids(known, {"a": "x", "b": f"y{text}"}) == {5}
    assert ending_ids(known, {"a": "x"}) == ({5} if text in TEXT_ENDS else set())
    assert ending_ids(vocabulary(Special(text="<s>", id=0)), {"a": text}) == set()


@pytest.mark.parametrize("text", [*ENDS.split(), *BEGINNINGS.split(), *TEXT_ENDS.split()])
def test_each_known_mark_of_a_turn_is_special(text):
    assert texts(text, "x") == {text}
    assert texts(text, by_name=False) == ({text} if text in TEXT_ENDS else set())
    assert texts(text, by_name=False, templates=[text]) == {text}


# Splices: answers whose ids are known.


def spliced(messages, render, asks=True):
    stretches = Splices(messages).render(render, asks)
    return [str(one) if isinstance(one, Traced) else list(one) for one in stretches if len(one)]


def chatml(before="<a>", behind="<e>", ask="<a>"):
    def render(messages, asks):
        out = Traced("", OWN)
        for message in messages:
            mark = "<u>" if message["role"] == "user" else before
            content = message["content"]
            out = (
                out
                + Traced(mark, OWN)
                + (content if isinstance(content, Traced) else Traced(content))
                + Traced(behind, OWN)
            )
        return out + Traced(ask if asks else "", OWN)

    return render


TALK = [
    USER,
    {"role": "assistant", "content": "Yes", "token_ids": [7, 8]},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize(
    ("template", "asks", "stretches"),
    [
        (chatml(), True, ["<u>Hi<e><a>", [7, 8], "<e><u>Why?<e><a>"]),
        (chatml(), False, ["<u>Hi<e><a>", [7, 8], "<e><u>Why?<e>"]),
        (chatml(ask="<b>"), True, ["<u>Hi<e><a>Yes<e><u>Why?<e><b>"]),
        (chatml(before="<a> "), True, ["<u>Hi<e><a>", [7, 8], "<e><u>Why?<e><a>"]),
        (chatml(ask="<a>\n"), True, ["<u>Hi<e><a>\n", [7, 8], "<e><u>Why?<e><a>\n"]),
        (chatml(ask=""), True, ["<u>Hi<e><a>", [7, 8], "<e><u>Why?<e>"]),
    ],
)
def test_an_answer_s_own_ids_stand_where_the_template_writes_it(template, asks, stretches):
    assert spliced(TALK, template, asks) == stretches


@pytest.mark.parametrize("content", [" Yes", "Yes\n\n", "\tYes ", "Yes"])
@pytest.mark.parametrize("trims", [False, True])
def test_blanks_around_an_answer_make_it_no_other(content, trims):
    plain = chatml()

    def render(messages, asks):
        if trims:
            messages = [message | {"content": message["content"].strip()} for message in messages]
        return plain(messages, asks)

    talk = [USER, TALK[1] | {"content": content}, TALK[2]]
    assert spliced(talk, render) == ["<u>Hi<e><a>", [7, 8], "<e><u>Why?<e><a>"]


def test_answers_without_ids_are_text_and_an_empty_one_has_a_place():
    assert spliced([USER], chatml()) == ["<u>Hi<e><a>"]
    empty = [USER, {"role": "assistant", "content": " ", "token_ids": [7]}]
    assert spliced(empty, chatml()) == ["<u>Hi<e><a>", [7], "<e><a>"]
    assert spliced(empty, chatml(ask="<b>")) == ["<u>Hi<e><a><e><b>"]
    twice = [TALK[1], TALK[1] | {"token_ids": [9]}]
    assert spliced(twice, chatml(), False) == ["<a>", [7, 8], "<e><a>", [9], "<e>"]
    assert "token_ids" in TALK[1]
    assert spliced([TALK[1]], chatml(before="", ask="")) == [[7, 8], "<e>"]


@pytest.mark.parametrize("ids", ["ab", (1,), [1.0], [-1], [1 << 31], [True], [None]])
def test_ids_of_a_message_are_whole_numbers(ids):
    with pytest.raises(JllamaError, match="token_ids of a message must be a list of token ids"):
        Splices([TALK[1] | {"token_ids": ids}])


def test_the_largest_id():
    assert spliced([TALK[1] | {"token_ids": [(1 << 31) - 1, 0]}], chatml(), False)[1] == [(1 << 31) - 1, 0]


# Ids to text.


def test_a_text_that_comes_byte_by_byte():
    whole = Detokenizer(lambda token: bytes([token]), skipped=[0], drop_blanks=1)
    text = " é €".encode()
    assert whole.decode(text) == "é €"
    assert whole.decode([0, *text, 0]) == "é €"
    assert whole.decode([0, 65], skip_special=False) == "\0A"
    assert whole.decode([32, 32]) == " "
    assert whole.decode([0xC3, 65, 0xFF]) == "\ufffdA\ufffd"
    stream = StreamDecoder(whole)
    assert [stream.push(byte) for byte in text] == ["", "", "é", " ", "", "", "€"]
    assert (stream.push(0xE2), stream.pending(), stream.pending(), stream.flush()) == (
        "",
        "\ufffd",
        "\ufffd",
        "\ufffd",
    )
    assert stream.flush() == ""
    assert StreamDecoder(whole, [65]).push(32) == " "
    assert StreamDecoder(whole, [0]).push(32) == ""
    assert StreamDecoder(whole, [0], skip_special=False).push(32) == " "
    two = StreamDecoder(Detokenizer(lambda token: b"  a" if token else b"", drop_blanks=2))
    assert [two.push(0), two.push(1), two.push(1)] == ["", "a", "  a"]
    assert StreamDecoder(Detokenizer(lambda token: b"a b", drop_blanks=1)).push(1) == "a b"


def test_a_tokens_bytes_are_asked_for_once():
    asked = []
    whole = Detokenizer(lambda token: asked.append(token) or b"x", skipped=[5])
    assert [whole.bytes_of(1), whole.bytes_of(1), whole.bytes_of(5), whole.bytes_of(5, False)] == [
        b"x",
        b"x",
        b"",
        b"x",
    ]
    assert asked == [1, 5]


@pytest.mark.parametrize(
    ("token", "data"),
    [
        ("Ġa", b" a"),
        ("Ċ", b"\n"),
        ("Ã©", b"\xc3\xa9"),
        ("ä½ł", "你".encode()),
        ("é你", "é你".encode()),
        ("", b""),
    ],
)
def test_bytes_of_a_byte_level_token(token, data):
    assert byte_level(token) == data


def test_every_byte_has_a_letter_of_its_own():
    from tokenizers import pre_tokenizers

    assert sorted(byte_level(letter) for letter in pre_tokenizers.ByteLevel.alphabet()) == [
        bytes([n]) for n in range(256)
    ]


@pytest.mark.parametrize(
    ("token", "data"),
    [
        ("▁a▁", b" a "),
        ("<0x0A>", b"\n"),
        ("<0xff>", b"\xff"),
        ("<0xZZ>", b"<0xZZ>"),
        ("<0x0A", b"<0x0A"),
        ("<0x00A>", b"<0x00A>"),
        ("0x0A>>", b"0x0A>>"),
        ("a\ud800", b"a?"),
    ],
)
def test_bytes_of_a_sentencepiece_token(token, data):
    assert metaspace(token) == data


BLANK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 2, "stop": 0}


@pytest.mark.parametrize(
    ("decoder", "blanks", "data"),
    [
        ({"type": "ByteLevel"}, 0, None),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteLevel"}]}, 0, None),
        ({"type": "Metaspace", "prepend_scheme": "always"}, 1, b" a"),
        ({"type": "Metaspace"}, 1, b" a"),
        ({"type": "Metaspace", "prepend_scheme": "first"}, 1, b" a"),
        ({"type": "Metaspace", "prepend_scheme": "never"}, 0, b" a"),
        (
            {"type": "Sequence", "decoders": [BLANK, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]},
            2,
            b" a",
        ),
        (
            {"type": "Sequence", "decoders": [BLANK, {"type": "Sequence", "decoders": [STRIP, STRIP]}]},
            4,
            b" a",
        ),
        (BLANK, 0, b" a"),
    ],
)
def test_a_decoder_is_bytes_of_tokens_and_blanks_to_drop(decoder, blanks, data):
    to_bytes, dropped = from_decoder_json(json.dumps(decoder))
    assert dropped == blanks
    assert to_bytes is byte_level if data is None else to_bytes("▁a") == data


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece"},
        {"type": "Fuse"},
        {"type": "Sequence", "decoders": [BLANK, BLANK]},
        BLANK | {"content": "_"},
        {"type": "Sequence", "decoders": [BLANK, {"type": "CTC"}]},
        {"type": "Sequence", "decoders": [{"type": "Metaspace"}] * 2},
    ],
)
def test_another_decoder_is_refused(decoder):
    with pytest.raises(JllamaError, match="is not supported; ByteLevel, Metaspace and"):
        from_decoder_json(json.dumps(decoder))
    with pytest.raises(JllamaError, match="a decoder of no kind"):
        from_decoder_json(None)


@pytest.mark.parametrize(
    ("text", "mended"),
    [("a", "a"), ("a\ud800b", "a\ufffdb"), ("\ud83d\ude00", "😀"), ("\udc00", "\ufffd"), ("é", "é")],
)
def test_halves_of_pairs(text, mended):
    assert without_surrogates(text) == mended
    assert has_utf8_form(text) == (text == mended)


# A tokenizer over a vocabulary that tells how it was asked.


def tokenizer(settings=None, **changes):
    made = vocabulary(Special(text="<s>", id=1), Special(text="</s>", id=2), **changes)
    return Tokenizer(made, settings or Settings(bos_id=1, prefix=(1,), suffix=(2,)))


def test_what_is_put_around_a_text():
    whole = tokenizer()
    assert whole.encode("a") == [1, ("first", "a"), 2]
    assert whole.encode("a", add_special=False) == [("first", "a")]
    assert whole.encode("a", begins=False, add_special=False) == [("rest", "a")]
    assert whole.encode("<s>a</s>", parse_special=True) == [1, ("rest", "a"), 2]
    assert whole.encode("a<s>b", parse_special=True, add_special=False) == [("first", "a"), 1, ("rest", "b")]
    assert whole.encode("<s>a") == [1, ("first", "<s>a"), 2]
    assert whole.encode("a\ud800")[1] == ("first", "a\ufffd")
    assert whole.encode("", parse_special=True) == [1, 2]
    assert tokenizer(Settings()).encode("a") == [("first", "a")]
    assert [whole.special_id(text) for text in ("<s>", "</s>", "x", "", None)] == [1, 2, None, None, None]
    assert (whole.vocab_size, whole.base_vocab_size, whole.bos_id) == (300, 256, 1)


def test_what_is_put_around_a_text_is_left_out_where_all_of_it_is_there():
    whole = tokenizer(Settings(prefix=(1, 2), suffix=(2, 1)))
    asked = dict(parse_special=True)
    assert whole.encode("<s></s>a</s><s>", **asked) == [1, 2, ("rest", "a"), 2, 1]
    assert whole.encode("<s>a<s>", **asked) == [1, 2, 1, ("rest", "a"), 1, 2, 1]
    assert whole.encode("</s><s>", **asked) == [1, 2, 2, 1]
    assert whole.encode("<s></s>", **asked) == [1, 2, 2, 1]


def test_a_conversation_begins_once():
    templates = {
        "default": "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    }
    whole = tokenizer(Settings(bos_id=1, prefix=(1,), templates=templates, variables={"bos_token": "<s>"}))
    assert whole.encode_chat([USER]) == [1, ("rest", "Hi")]
    without = tokenizer(Settings(templates=templates, variables={"bos_token": "<s>"}))
    assert without.encode_chat([USER]) == [1, 1, ("rest", "Hi")]


@pytest.mark.parametrize("count", range(5))
def test_however_often_a_template_begins_a_conversation_it_begins_once(count):
    source = "{{ bos_token }}" * count + "{{ messages[0].content }}{{ bos_token * 2 }}"
    settings = Settings(bos_id=1, templates={"default": source}, variables={"bos_token": "<s>"})
    text = ("first" if count == 0 else "rest", "Hi")
    assert tokenizer(settings).encode_chat([USER]) == [1] * min(count, 1) + [text, 1, 1]


def test_a_template_is_compiled_once(monkeypatch):
    whole = tokenizer(Settings(templates={"default": "d", "same": "d", "tool_use": "t"}))
    compiled, really = [], whole.compile_template
    monkeypatch.setattr(whole, "compile_template", lambda source: compiled.append(source) or really(source))
    for how in ({}, {}, {"template": "same"}, {"tools": [{"a": 1}]}, {"template": "tool_use"}, {}):
        whole.encode_chat([USER], **how)
    assert whole.template_for_tools() is whole.template_for_tools()
    assert whole.chat_template is not whole.template_for_tools()
    assert compiled == ["d", "t"]


def test_templates_by_name_and_for_tools():
    templates = {"default": "d{{ add_generation_prompt }}", "tool_use": "t{{ x }}", "rag": "r"}
    whole = tokenizer(Settings(templates=templates))

    def text(**how):
        return "".join(part for _, part in whole.encode_chat([USER], **how))

    assert text() == "dTrue"
    assert text(add_generation_prompt=False) == "dFalse"
    assert text(tools=[{"a": 1}], x=5) == "t5"
    assert text(tools=[]) == "dTrue"
    assert text(template="rag") == "r"
    assert text(template=whole.compile_template("own")) == "own"
    with pytest.raises(JllamaError, match=r"no chat template 'x' \(it has: default, tool_use, rag\)"):
        text(template="x")
    with pytest.raises(JllamaError, match=r"no chat template 'default' \(it has: none\)"):
        tokenizer().encode_chat([USER])
    assert tokenizer().chat_template is None
    assert tokenizer(Settings(templates={"default": ""})).chat_template is None
    assert whole.chat_template is whole.chat_template


# SentencePiece.


def model(pieces, types=None, **changes):
    types = [UNKNOWN, *[NORMAL] * (len(pieces) - 1)] if types is None else types
    fields = dict(scores=[-float(at) for at in range(len(pieces))], add_prefix=False, byte_fallback=False)
    return SpmModel(pieces=pieces, types=types, **fields | changes)


@pytest.mark.parametrize(
    ("changes", "text", "first", "rest"),
    [
        ({}, " a  b ", "▁a▁▁b▁", "▁a▁▁b▁"),
        ({"squeeze": True}, "  a   b ", "a▁b", "a▁b"),
        ({"squeeze": True}, "   ", "", ""),
        ({"add_prefix": True}, "a", "▁a", "▁a"),
        ({"add_prefix": True}, "", "", ""),
        ({"add_prefix": True, "every_stretch": False}, "a", "▁a", "a"),
        ({"add_prefix": True, "squeeze": True}, " ", "", ""),
    ],
)
def test_a_text_before_it_is_cut(changes, text, first, rest):
    encoder = SpmEncoder(model(["<unk>", "a"], **changes))
    assert (encoder.normalise(text, True), encoder.normalise(text, False)) == (first, rest)


def test_a_blank_stands_before_what_follows_a_symbol_and_not_before_the_rest_of_a_text():
    types = [UNKNOWN, NORMAL, USER_DEFINED, NORMAL, NORMAL]
    made = model(["<unk>", "a", "<x>", "▁a", "▁"], types, add_prefix=True, symbols_first=True)
    assert [SpmEncoder(made)("a<x>a", first) for first in (True, False)] == [[3, 2, 3], [3, 2, 3]]
    later = dataclasses.replace(made, every_stretch=False)
    assert [SpmEncoder(later)("a<x>a", first) for first in (True, False)] == [[3, 2, 3], [1, 2, 3]]


def test_a_vocabulary_of_pieces():
    types = [UNKNOWN, CONTROL, BYTE, USER_DEFINED, UNUSED, NORMAL]
    made = model(["<unk>", "<s>", "<0x41>", "▁x", "y", "▁"], types, add_prefix=True).vocabulary(
        {"<new>": Special(text="<new>", id=8)}
    )
    assert set(made.specials) == {"<unk>", "<s>", "<new>"}
    assert (made.size, made.base_size, made.drop_blanks) == (9, 6, 1)
    assert [made.token_bytes(at) for at in (2, 3, 8, 7)] == [b"A", b" x", b"<new>", b""]
    assert (made.ids["<new>"], made.ids["y"], list(made.added)) == (8, 4, ["▁x"])
    again = made.remake({"▁x"})
    assert set(again.specials) == {"<unk>", "<s>", "<new>", "▁x"}
    assert list(again.added) == []


def test_the_better_score_merges_first():
    pieces = ["<unk>", "a", "b", "c", "ab", "bc"]
    scores = [0.0, -9.0, -9.0, -9.0, -2.0, -1.0]
    made = model(pieces, scores=scores).vocabulary()
    assert made.encode("abc", True) == [1, 5]
    assert model(pieces, scores=[*scores[:4], -1.0, -1.0]).vocabulary().encode("abc", True) == [4, 3]


def test_what_is_unknown_is_a_byte_or_unknown_and_a_spelt_byte_is_text():
    pieces = ["<unk>", "a", *"<0x41>", *(f"<0x{at:02X}>" for at in range(256))]
    types, first = [UNKNOWN, *[NORMAL] * 7, *[BYTE] * 256], 8
    for kind in ({}, {"kind": UNIGRAM}):
        with_bytes = model(pieces, types, byte_fallback=True, **kind).vocabulary()
        assert with_bytes.encode("aé", True) == [1, first + 0xC3, first + 0xA9]
        assert with_bytes.encode("<0x41>", True) == [2, 3, 4, 5, 6, 7]
        assert model(["<unk>", "a"], **kind).vocabulary().encode("aéa", True) == [1, 0, 1]


def test_a_unigram_takes_the_likeliest_cut():
    made = model(["<unk>", "a", "b", "ab"], kind=UNIGRAM, scores=[0.0, -1.0, -1.0, -3.0]).vocabulary()
    assert made.encode("ab", True) == [1, 2]
    made = model(["<unk>", "a", "b", "ab"], kind=UNIGRAM, scores=[0.0, -1.0, -1.0, -1.5]).vocabulary()
    assert made.encode("ab", True) == [3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(pieces=["<unk>", "x" * 1025]), "a piece of 1025 characters"),
        (dict(pieces=["<unk>"], unk_id=1), "no piece 1, its unknown token"),
        (dict(pieces=["<unk>"], unk_id=-1), "no piece -1"),
        (dict(pieces=["<unk>"], kind=3), "of kind 3 is not supported"),
    ],
)
def test_a_vocabulary_that_can_not_work(changes, words):
    with pytest.raises(JllamaError, match=words):
        model(**changes).vocabulary()
    model(["<unk>", "x" * 1024]).vocabulary()


def test_a_symbol_may_be_the_first_piece_of_all():
    types = [USER_DEFINED, UNKNOWN, NORMAL, NORMAL, NORMAL]
    for kind in ({}, {"kind": UNIGRAM}):
        made = model(["<x>", "<unk>", "a", "<", ">"], types, unk_id=1, **kind).vocabulary()
        assert made.encode("a<x>a", True) == [2, 0, 2]


@pytest.mark.parametrize("adds", [True, False])
def test_the_blank_that_is_put_before_a_text_is_dropped(adds):
    made = model(["<unk>", "a"], [UNKNOWN, NORMAL], add_prefix=adds).vocabulary()
    assert made.drop_blanks == int(adds)


def test_types_are_settled():
    pieces = ["<unk>", "<s>", "<|im_end|>", "x", "<|t|>"]
    types = (UNKNOWN, NORMAL, NORMAL, NORMAL, USER_DEFINED)
    assert settle_types(pieces, types) == [UNKNOWN, NORMAL, CONTROL, NORMAL, USER_DEFINED]
    assert settle_types(pieces, types, named=["<unk>", "<s>"], templates=["<|t|>"]) == [
        UNKNOWN,
        CONTROL,
        CONTROL,
        NORMAL,
        CONTROL,
    ]
    assert types[2] == NORMAL


# A SentencePiece file, field by field.


def varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text, score=None, kind=None):
    data = field(1, text.encode())
    data += b"" if score is None else field(2, score)
    return field(1, data + (b"" if kind is None else field(3, kind)))


def spm_file(tmp_path, *fields):
    (tmp_path / "m").write_bytes(b"".join(fields))
    return read_model(tmp_path / "m")


def test_the_defaults_of_a_sentencepiece_file(tmp_path):
    made = spm_file(tmp_path, piece("a"), piece("é", -1.5, 3), field(2, b""), field(3, b""))
    assert (made.pieces, made.scores, made.types) == (["a", "é"], [0.0, -1.5], [1, 3])
    assert (made.kind, made.unk_id, made.bos_id, made.eos_id) == (1, 0, 1, 2)
    assert (made.byte_fallback, made.charsmap, made.add_prefix, made.squeeze) == (False, b"", True, True)


def test_each_field_of_a_sentencepiece_file(tmp_path):
    minus_one = (1 << 64) - 1
    trainer = field(3, 2) + field(35, 1) + field(40, 5) + field(41, minus_one) + field(42, (1 << 31) - 1)
    normalizer = field(2, b"xy") + field(3, 0) + field(4, 0)
    skipped = varint(9 << 3 | 1) + bytes(8) + field(8, 300)
    made = spm_file(tmp_path, piece("a"), field(2, trainer), skipped, field(3, normalizer))
    assert (made.kind, made.unk_id, made.bos_id, made.eos_id) == (2, 5, None, (1 << 31) - 1)
    assert (made.byte_fallback, made.charsmap, made.add_prefix, made.squeeze) == (True, b"xy", False, False)


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05a", b"\x08" + b"\xff" * 10 + b"\x01", b"\x0b\x00", b"\x08\x80", b"\x0a\x05abcd"],
)
def test_fields_that_do_not_end(tmp_path, data):
    sound = piece("a") + field(2, b"") + field(3, b"")
    with pytest.raises(JllamaError, match="is not a SentencePiece model"):
        spm_file(tmp_path, sound, data)
    spm_file(tmp_path, sound)


def test_how_large_a_sentencepiece_file_may_be(tmp_path, monkeypatch):
    sound = piece("a") + field(2, b"") + field(3, b"")
    monkeypatch.setattr(spm_file_module, "MAX_BYTES", len(sound))
    spm_file(tmp_path, sound)
    monkeypatch.setattr(spm_file_module, "MAX_BYTES", len(sound) - 1)
    with pytest.raises(JllamaError, match="larger than any SentencePiece model"):
        spm_file(tmp_path, sound)


# Rules of a tokenizer.json.


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


@pytest.mark.parametrize(
    ("steps", "refused"),
    [
        ([replace("a", "b" * 256)], False),
        ([replace("a", "b" * 257)], True),
        ([replace("aa", "b" * 512)], False),
        ([replace("aaaa", "b")] * 9 + [replace("a", "b" * 257)], True),
        ([{"type": "Replace", "pattern": {"Regex": "a"}, "content": "b" * 255}], False),
        ([{"type": "Replace", "pattern": {"Regex": "a"}, "content": "b" * 256}], True),
        ([{"type": "Prepend", "prepend": "b" * 4096}], False),
        ([{"type": "Prepend", "prepend": "b" * 4097}], True),
        ([{"type": "Prepend", "prepend": ""}, replace("a", "b" * 256)], False),
        ([{"type": "Prepend", "prepend": ""}, replace("a", "b" * 257)], True),
        ([{"type": "Prepend", "prepend": "b"}] * 9 + [replace("a", "b" * 257)], True),
        ([{"type": "NFC"}, {"type": "NFKD"}, {"type": "Lowercase"}], False),
        ([{"type": "NFKC"}] * 2, False),
        ([{"type": "NFKC"}] * 3, True),
        ([replace("a", "b")] * 1000, False),
        ([replace("a", "b")] * 1001, True),
        ([replace("a", "b" * 16)] * 2, False),
        ([replace("a", "b" * 16), {"type": "Sequence", "normalizers": [replace("b", "c" * 17)]}], True),
    ],
)
def test_how_much_longer_a_normalizer_may_make_a_text(tmp_path, steps, refused):
    state = json.loads(byte_level_json()) | {"normalizer": {"type": "Sequence", "normalizers": steps}}
    (tmp_path / "t.json").write_text(json.dumps(state))
    if refused:
        with pytest.raises(JllamaError, match="makes texts longer without bounds"):
            tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")
    else:
        assert (
            tokenizer_checks.check_tokenizer_json(tmp_path / "t.json") == (tmp_path / "t.json").read_bytes()
        )


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("place", ["decoder", "model", "pre_tokenizer"])
def test_a_decoy_before_a_normalizer_hides_nothing(tmp_path, place, count):
    """The library passes over keys that it does not know, and finds the one that counts behind them."""
    state = json.loads(byte_level_json())
    decoys = {f"x{at}": {"normalizer": {"type": "NFC"}} for at in range(count)}
    hostile = {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "bb")] * 30}}
    (tmp_path / "t.json").write_text(json.dumps({place: state.pop(place) | decoys} | state | hostile))
    with pytest.raises(JllamaError, match="makes texts longer without bounds"):
        tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")


def test_a_token_of_the_same_name_hides_no_normalizer(tmp_path):
    state = json.loads(byte_level_json())
    state["model"]["vocab"] |= {"normalizer": 256}
    hostile = {"normalizer": {"type": "Sequence", "normalizers": [replace("a", "bb")] * 30}}
    (tmp_path / "t.json").write_text(json.dumps({"model": state.pop("model")} | state | hostile))
    with pytest.raises(JllamaError, match="makes texts longer without bounds"):
        tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")


@pytest.mark.parametrize(("length", "refused"), [(4096, False), (4097, True)])
@pytest.mark.parametrize("place", ["vocab", "added"])
def test_how_long_a_token_may_be(tmp_path, length, refused, place):
    state = json.loads(byte_level_json(added=[("x" * length, False)] if place == "added" else ()))
    if place == "vocab":
        state["model"]["vocab"]["x" * length] = 256
    (tmp_path / "t.json").write_text(json.dumps(state))
    if refused:
        with pytest.raises(JllamaError, match="a token of 4097 characters"):
            tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")
    else:
        tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")


def test_how_large_a_tokenizer_may_be(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text(byte_level_json())
    size = (tmp_path / "t.json").stat().st_size
    monkeypatch.setattr(tokenizer_checks, "MAX_BYTES", size)
    tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")
    monkeypatch.setattr(tokenizer_checks, "MAX_BYTES", size - 1)
    with pytest.raises(JllamaError, match="larger than any tokenizer"):
        tokenizer_checks.check_tokenizer_json(tmp_path / "t.json")


# GGUF fields.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": None}, "the GGUF file has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of kind 'bert'; jllama reads the kinds"),
        ({"tokenizer.ggml.tokens": []}, "a tokenizer of kind"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "neither true nor false"),
        ({"tokenizer.ggml.bos_token_id": "1"}, "which is no token id"),
        ({"tokenizer.ggml.bos_token_id": True}, "which is no token id"),
        ({"tokenizer.chat_template": 5}, "not a text"),
        ({"tokenizer.chat_template.rag": 5}, "not a text"),
    ],
)
@pytest.mark.parametrize("make", [gguf_spm, gguf_bpe])
def test_a_gguf_field_that_is_unsound_is_named(make, changes, words):
    with pytest.raises(JllamaError, match=words):
        Tokenizer.from_gguf(make("control") | changes)


@pytest.mark.parametrize("given", [5, "ab", [300], [1.5], [[1]], [-1, 255]])
def test_rules_in_a_gguf_are_bytes(given):
    with pytest.raises(JllamaError, match="precompiled_charsmap"):
        Tokenizer.from_gguf(gguf_spm("control") | {"tokenizer.ggml.precompiled_charsmap": given})


@pytest.mark.parametrize("given", [b"", [], np.array([], np.int8)])
def test_no_rules_in_a_gguf_are_none(given):
    plain = Tokenizer.from_gguf(gguf_spm("control")).encode("a b")
    assert (
        Tokenizer.from_gguf(gguf_spm("control") | {"tokenizer.ggml.precompiled_charsmap": given}).encode(
            "a b"
        )
        == plain
    )


@pytest.mark.parametrize(
    "change", [lambda types: types[:-1], lambda types: [*types, CONTROL], lambda types: []]
)
@pytest.mark.parametrize("make", [gguf_spm, gguf_bpe])
def test_types_that_are_not_one_for_each_token_say_nothing(make, change):
    fields = make("control")
    types, key = fields["tokenizer.ggml.token_type"], "tokenizer.ggml.token_type"
    changed = Tokenizer.from_gguf(fields | {key: change(types)})
    without = Tokenizer.from_gguf({name: value for name, value in fields.items() if name != key})
    assert changed.special_ids == without.special_ids
    assert changed.encode("a b<|im_end|>") == without.encode("a b<|im_end|>")
    assert changed.special_ids <= Tokenizer.from_gguf(fields).special_ids


@pytest.mark.parametrize("scores", [None, [1.0]])
def test_each_token_has_a_score(scores):
    with pytest.raises(JllamaError, match="has no score for each token"):
        Tokenizer.from_gguf(gguf_spm("control") | {"tokenizer.ggml.scores": scores})


def test_named_templates_and_variables_of_a_gguf():
    fields = gguf_bpe("control") | {"tokenizer.chat_template": "d", "tokenizer.chat_template.rag": "r"}
    fields |= {
        "tokenizer.ggml.bos_token_id": 5,
        "tokenizer.ggml.padding_token_id": 7,
        "tokenizer.ggml.add_eos_token": True,
    }
    _, settings = gguf.read_vocabulary(fields)
    tokens, eos = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.eos_token_id"]
    assert settings.templates == {"default": "d", "rag": "r"}
    assert settings.variables["bos_token"] == tokens[5]
    assert settings.variables["pad_token"] == tokens[7]
    assert (settings.bos_id, settings.suffix) == (5, (eos,))
    without = {key: value for key, value in fields.items() if "template" not in key}
    assert gguf.read_vocabulary(without)[1].templates == {}


@pytest.mark.parametrize(
    "also", [{}, {"unknown": 0, "bos": 1, "eos": 2, "padding": 3}, {"bos": 3, "padding": 0}]
)
def test_variables_of_a_gguf_are_the_texts_of_its_roles(also):
    fields = {key: value for key, value in gguf_bpe("control").items() if "_token_id" not in key}
    fields |= {f"tokenizer.ggml.{name}_token_id": at for name, at in also.items()}
    tokens, short = fields["tokenizer.ggml.tokens"], {"unknown": "unk", "padding": "pad"}
    wanted = {f"{short.get(name, name)}_token": tokens[at] for name, at in also.items()}
    assert gguf.read_vocabulary(fields)[1].variables == wanted


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm"])
@pytest.mark.parametrize("kind", [CONTROL, UNKNOWN, NORMAL])
def test_no_word_is_a_special_token_of_a_gguf(pre, kind):
    """Neither whole, where a word that is a token stays so, nor by a merge."""
    fields = gguf_bpe("control", pre)
    fields["tokenizer.ggml.tokens"].append("endim")
    fields["tokenizer.ggml.token_type"].append(kind)
    vocabulary, _ = gguf.read_vocabulary(fields)
    parts = [vocabulary.ids["end"], vocabulary.ids["im"]]
    whole = kind == NORMAL and pre == "llama-bpe"
    assert vocabulary.encode("endim", True) == ([vocabulary.ids["endim"]] if whole else parts)
    assert ("endim" in vocabulary.specials) == (kind != NORMAL)


@pytest.mark.parametrize("kind", [CONTROL, UNKNOWN])
def test_a_token_of_a_gguf_that_is_no_text_is_special(kind):
    fields = gguf_bpe("control")
    fields["tokenizer.ggml.tokens"].append("<odd>")
    fields["tokenizer.ggml.token_type"].append(kind)
    vocabulary, _ = gguf.read_vocabulary(fields)
    assert vocabulary.specials["<odd>"].id == len(fields["tokenizer.ggml.tokens"]) - 1
    assert vocabulary.encode("<odd>", True) != [vocabulary.specials["<odd>"].id]
    last = vocabulary.specials["<odd>"].id
    assert [vocabulary.token_bytes(token) for token in (last, last + 1, 1 << 31)] == [b"<odd>", b"", b""]


@pytest.mark.parametrize(
    "kinds", [(CONTROL, NORMAL), (NORMAL, CONTROL), (USER_DEFINED, NORMAL), (CONTROL, CONTROL)]
)
def test_of_two_tokens_of_one_text_the_last_counts(kinds):
    fields = gguf_bpe("control")
    first = len(fields["tokenizer.ggml.tokens"])
    fields["tokenizer.ggml.tokens"] += ["<odd>", "<odd>"]
    fields["tokenizer.ggml.token_type"] += kinds
    vocabulary, _ = gguf.read_vocabulary(fields)
    special = vocabulary.specials.get("<odd>")
    assert (special and special.id) == (first + 1 if kinds[1] == CONTROL else None)
    assert (vocabulary.ids["<odd>"], list(vocabulary.added)) == (first + 1, [])
    assert first not in vocabulary.encode("a<odd>b", True)


@pytest.mark.parametrize(
    ("kind", "pre", "name"),
    [
        ("gpt2", None, "default"),
        ("gpt2", "default", "default"),
        ("gpt2", "gpt-2", "gpt-2"),
        ("gpt2", "qwen2", "qwen2"),
        ("gemma4", None, "gemma4"),
        ("gemma4", "qwen2", "gemma4"),
    ],
)
def test_which_way_of_cutting_words_a_gguf_means(kind, pre, name):
    fields = {"tokenizer.ggml.model": kind} | ({} if pre is None else {"tokenizer.ggml.pre": pre})
    assert gguf._pre_tokenizer(fields) is PRE_TOKENIZERS[name]
    for way in ("unheard-of", "", "QWEN2"):
        if kind == "gpt2":
            with pytest.raises(JllamaError, match=f"cuts words in the way '{way}', which is not supported"):
                gguf._pre_tokenizer(fields | {"tokenizer.ggml.pre": way})


def test_special_tokens_of_phi_swallow_the_blanks_behind_them():
    tokens = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|end|>", "a"]
    types = [UNKNOWN, CONTROL, USER_DEFINED, CONTROL, CONTROL, NORMAL]
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    assert gguf._swallowing(fields | {"general.architecture": "phi3"}, tokens) == {"</s>", "<|end|>"}
    assert gguf._swallowing(fields | {"general.architecture": "llama"}, tokens) == set()


# Charsmaps.


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        bytes(7),
        struct.pack("<I", 0) + bytes(8),
        struct.pack("<I", 5) + bytes(8),
        struct.pack("<I", 8) + bytes(4),
        struct.pack("<I", 1 << 30) + bytes(8),
    ],
)
def test_rules_whose_sizes_do_not_fit(blob):
    with pytest.raises(JllamaError, match="its sizes do not fit"):
        CharsMap(blob)


@pytest.mark.parametrize(("offset", "fits"), [(2, True), (5, False), (4, False)])
def test_a_rule_s_end_lies_in_its_trie(offset, fits):
    units = [0, offset << 10 | 1 << 8 | ord("a"), 0, 1 << 31]  # the end of unit 1 is unit 1 ^ offset
    blob = struct.pack("<I4I", 16, *units) + b"b\0"
    if fits:
        assert CharsMap(blob) is not None
    else:
        with pytest.raises(JllamaError, match="its trie points outside of itself"):
            CharsMap(blob)


@pytest.mark.parametrize("long", [0, 1, 2])
def test_no_rule_replaces_a_character_by_a_whole_text(monkeypatch, long):
    """Of several rules one is enough. Those of `a` and `b` end at the units 200 and 201."""
    monkeypatch.setattr(spm_charsmap, "MAX_REPLACEMENT", 4)
    texts = [b"x" * (5 if long == at else 4) + b"\0" for at in range(2)]
    units = [0] * 256
    for at, letter in enumerate(b"ab"):
        units[letter] = (200 + at ^ letter) << 10 | 1 << 8 | letter
        units[200 + at] = 1 << 31 | sum(map(len, texts[:at]))
    blob = struct.pack("<I256I", 1024, *units) + b"".join(texts)
    if long < 2:
        with pytest.raises(JllamaError, match="it replaces a character by a whole text"):
            CharsMap(blob)
    else:
        assert CharsMap(blob)("cab") == "cxxxxxxxx"


def test_a_replacement_that_is_no_text_is_damage():
    units = [0] * 256
    units[97], units[200] = (200 ^ 97) << 10 | 1 << 8 | 97, 1 << 31
    trie = struct.pack("<I256I", 1024, *units)
    assert CharsMap(trie + "é\0".encode())("ab") == "éb"
    with pytest.raises(JllamaError, match="its replacements are no UTF-8"):
        CharsMap(trie + "é".encode()[:1] + b"\0")


def test_an_offset_may_count_in_steps_of_256():
    """A bit of the unit says so: what is far away would not fit otherwise."""
    units = [0] * 1024
    units[97] = 3 << 10 | 1 << 9 | 1 << 8 | 97
    units[97 ^ 768] = 1 << 31
    assert CharsMap(struct.pack("<I1024I", 4096, *units) + b"x\0")("ab") == "xb"


def test_where_a_replacement_s_place_stands_no_letter_leads():
    """Its number looks like the unit of the letter `a` that a rule ends with."""
    units = [0] * 256
    units[98], units[97] = (97 ^ 98) << 10 | 1 << 8 | 98, 1 << 31 | 1 << 8 | 97
    texts = b"y" * 200 + b"\0" + b"y" * (353 - 202) + b"\0" + b"z\0"
    assert CharsMap(struct.pack("<I256I", 1024, *units) + texts)("abba") == "azza"


def test_rules_that_change_nothing():
    rules = CharsMap(struct.pack("<II", 4, 0))
    assert rules("aé你😀") == "aé你😀"
    assert rules("") == ""


def test_a_tokenizer_directory_may_be_given_as_text(tmp_path):
    made = Tokenizer.from_dir(str(write_directory(tmp_path / "t", tokenizer__json=byte_level_json())))
    assert made.decode(made.encode("é")) == "é"
