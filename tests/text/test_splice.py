"""Answers in the history: the model's own tokens where the template writes the same, else its text."""

import pytest

from jllama.errors import JllamaError
from jllama.text.tokenizer import Tokenizer
from tests.support.tokenizer_helpers import byte_level_json, write_directory

HEAD = "{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}"
PLAIN = "<|a|>{{ m.content }}<|end|>"
DROPS = "<|a|>{{ m.content.split('</think>')[-1] }}<|end|>"
TRIMS = "<|a|>{{ m.content | trim }}<|end|>"
WRAPS = "<|a|>{% if '</think>' in m.content %}old: {% endif %}{{ m.content.split('</think>')[-1] }}<|end|>"
ASK = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|a|>"
LLAMA2 = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
LLAMA2 += "{% else %} {{ m.content }} <|end|>{% endif %}{% endfor %}"
A, B, C = "<|u|>Hi", "<|u|>More", "<|a|>"


@pytest.fixture
def make(tmp_path):
    def make(template):
        names = [(name, True) for name in ("<|u|>", "<|a|>", "<|end|>")]
        files = {"tokenizer__json": byte_level_json(added=names), "chat_template__jinja": template}
        return Tokenizer.from_dir(write_directory(tmp_path, **files))

    return make


def history(tokenizer, *answers):
    messages = [{"role": "user", "content": "Hi"}]
    for answer in answers:
        # An end of text amid the ids shows that they were kept: no text makes one.
        ids = [*tokenizer.encode(answer), 258]
        messages.append({"role": "assistant", "content": answer.strip(), "token_ids": ids})
        messages.append({"role": "user", "content": "More"})
    return tokenizer.decode(tokenizer.encode_chat(messages), skip_special=False)


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (HEAD + PLAIN + ASK, "Yes", A + C + "Yes<|end|><|end|>" + B + C),
        (HEAD + TRIMS + ASK, " Yes\n", A + C + " Yes\n<|end|><|end|>" + B + C),
        (HEAD + DROPS + ASK, "Yes", A + C + "Yes<|end|><|end|>" + B + C),
        (HEAD + DROPS + ASK, "<think>\nhm</think>Yes", A + C + "Yes<|end|>" + B + C),
        (HEAD + WRAPS + ASK, "<think>\nhm</think>Yes", A + C + "old: Yes<|end|>" + B + C),
        (HEAD + DROPS + ASK + "<think>\n", "hm</think>Yes", A + C + "Yes<|end|>" + B + C + "<think>\n"),
        (HEAD + DROPS + ASK + "<think>\n", "Yes", A + C + "Yes<|end|>" + B + C + "<think>\n"),
        (HEAD + "<|a|>\n{{ m.content }}<|end|>" + ASK, "Yes", A + C + "Yes<|end|><|end|>" + B + C),
        (HEAD + DROPS + ASK + "<think>\n", "", A + C + "<|end|>" + B + C + "<think>\n"),
        ("{{ add_generation_prompt }}" + HEAD + PLAIN + ASK, "Yes", f"True{A}{C}Yes<|end|><|end|>{B}{C}"),
        (HEAD + ASK, "Yes", A + B + C),
    ],
)
def test_an_answer_is_kept_where_the_template_writes_it_so(make, template, answer, expected):
    assert history(make(template + "{% endif %}"), answer) == expected


def test_each_answer_is_judged_by_itself(make):
    said = history(make(HEAD + DROPS + ASK + "{% endif %}"), "One", "<think></think>Two", "Three")
    kept = "{}<|end|><|end|>" + B + C
    assert said == A + C + kept.format("One") + "Two<|end|>" + B + C + kept.format("Three")


def test_blanks_before_an_answer_are_those_that_the_model_saw(make):
    assert history(make(LLAMA2), "Yes") == "[INST] Hi [/INST]Yes<|end|> <|end|>[INST] More [/INST]"


def test_without_a_question_behind_them_answers_are_kept_as_well(make):
    tokenizer = make(HEAD + PLAIN + ASK + "{% endif %}")
    messages = [{"role": "assistant", "content": "x", "token_ids": [258]}]
    assert tokenizer.encode_chat(messages, add_generation_prompt=False) == [257, 258, 258]
    messages = [{"role": "assistant", "content": None, "token_ids": [258]}]
    assert tokenizer.encode_chat(messages) == [257, 258, 258, 257]


@pytest.mark.parametrize(("asks", "blank"), [(False, " "), (True, "")])
def test_where_nothing_is_asked_what_stands_before_an_answer_is_as_it_is_written(make, asks, blank):
    """Though the text ends with the word before it, as one that asks would."""
    tokenizer = make("{% for m in messages %}[A] {{ m.content }} {% endfor %}[A]")
    messages = [{"role": "assistant", "content": "x", "token_ids": [258]}]
    ids = tokenizer.encode_chat(messages, add_generation_prompt=asks)
    assert tokenizer.decode(ids, skip_special=False) == f"[A]{blank}<|end|> [A]"


@pytest.mark.parametrize("ids", [5, "<|end|>", [1.5], [True], [-1], [[1]], {"a": 1}])
def test_token_ids_are_whole_numbers(make, ids):
    with pytest.raises(JllamaError, match="token_ids of a message must be"):
        make(HEAD + PLAIN + ASK + "{% endif %}").encode_chat(
            [{"role": "assistant", "content": "x", "token_ids": ids}]
        )
