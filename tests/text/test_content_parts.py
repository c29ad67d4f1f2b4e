"""Contents given as lists of parts: joined where a template takes text, kept where it goes through them."""

import shutil

import pytest

import jllama
from jllama.chat.conversation import Conversation
from jllama.errors import JllamaError
from jllama.text.content_parts import as_text
from jllama.text.tokenizer import Tokenizer
from tests.support.tokenizer_helpers import byte_level_json, write_directory

PARTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
LOOP = "{% for m in messages %}[{% for p in m.content %}{{ p['text'] }}|{% endfor %}]{% endfor %}"
EITHER = "{% for m in messages %}[{% if m.content is string %}{{ m.content }}{% else %}"
EITHER += "{% for p in m.content %}{{ p.text }}|{% endfor %}{% endif %}]{% endfor %}"
BY_ROLE = "{% for m in messages %}{% if m.role == 'system' %}{{ 'S: ' + m.content }}{% else %}"
BY_ROLE += "[{% for p in m.content %}{{ p.text }}|{% endfor %}]{% endif %}{% endfor %}"


def rendered(tmp_path, template, *messages):
    files = {"tokenizer__json": byte_level_json(), "chat_template__jinja": template}
    tokenizer = Tokenizer.from_dir(write_directory(tmp_path, **files))
    return tokenizer.decode(tokenizer.encode_chat(messages))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "[one two]"),
        ("{% for m in messages %}{{ '[' + m.content | trim + ']' }}{% endfor %}", "[one two]"),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", '"one two"'),
        ("{{ messages[0]['content'].split(' ') }}", "['one', 'two']"),
        (LOOP, "[one |two|]"),
        (EITHER, "[one |two|]"),
        ("nothing of it", "nothing of it"),
    ],
)
@pytest.mark.parametrize("parts", [PARTS, ["one ", {"text": "two"}]])
def test_lists_go_to_templates_as_they_take_them(tmp_path, template, expected, parts):
    assert rendered(tmp_path, template, {"role": "user", "content": parts}) == expected


def test_a_template_may_take_a_list_of_the_user_and_a_text_of_the_system(tmp_path):
    messages = [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}]
    assert rendered(tmp_path, BY_ROLE, *messages) == "S: one two[one |two|]"


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video", "file", "\x1b[2J", None, 5])
def test_parts_that_are_no_text_are_refused_by_name(tmp_path, kind):
    for template in (LOOP, "{{ messages[0].content }}"):
        message = {"role": "user", "content": [*PARTS, {"type": kind, kind: {"url": "data:,"}}]}
        with pytest.raises(JllamaError, match=r"messages\[0\]: a part of type") as error:
            rendered(tmp_path, template, message)
        assert repr(str(kind)) in str(error.value)
    with pytest.raises(JllamaError, match="without its text"):
        rendered(tmp_path, LOOP, {"role": "user", "content": [{"type": "text"}]})


def test_what_a_tool_returns_is_the_templates_own(tmp_path):
    for result in ([{"type": "place", "name": "Rome"}], []):
        message = {"role": "tool", "content": result}
        said = rendered(tmp_path, "{{ messages[0].content | tojson }}", message)
        assert said == str(result).replace("'", '"')


def test_a_message_of_a_conversation_may_be_a_list_of_parts():
    assert as_text("x") == "x"
    assert as_text(PARTS) == "one two"
    for content in (5, None, [5], {"text": "x"}):
        with pytest.raises(JllamaError, match="a text or a list of text parts"):
            as_text(content)


@pytest.mark.parametrize("messages", ["x", [["role", "user"]], [None]])
def test_what_is_no_message_is_refused(tmp_path, messages):
    with pytest.raises(JllamaError, match="a message must be a dictionary"):
        rendered(tmp_path, LOOP, *messages)


def test_everywhere_that_messages_go_parts_go_too(tmp_path, plain_dir):
    shutil.copytree(plain_dir, tmp_path / "model")
    template = "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}"
    write_directory(tmp_path / "model", chat_template__jinja=template)
    model = jllama.load(str(tmp_path / "model"), dtype="float32")
    asked = [[{"role": "user", "content": content}] for content in ("one two", PARTS)]
    settings = jllama.GenerationSettings(max_new_tokens=4, temperature=0.0)
    assert len({jllama.generate(model, messages, max_new_tokens=4) for messages in asked}) == 1
    assert len({"".join(jllama.stream(model, messages, max_new_tokens=4)) for messages in asked}) == 1
    conversation = Conversation(model, system=PARTS)
    said = "".join(conversation.ask(PARTS, settings))
    assert conversation.branch.system == conversation.messages[0].content == "one two"
    assert (
        "".join(conversation.edit(1, "one two", settings))
        == said
        == "".join(conversation.edit(1, PARTS, settings))
    )
    with pytest.raises(JllamaError, match="image_url"):
        next(iter(conversation.ask([{"type": "image_url"}], settings)))
    with pytest.raises(JllamaError, match="empty"):
        next(iter(conversation.ask([{"type": "text", "text": " "}], settings)))
