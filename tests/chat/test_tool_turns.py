"""Conversations whose model calls tools: a scripted session writes what a test wants."""

import json

import pytest

import jllama
from jllama.answer import Result
from jllama.chat.archive import archive
from jllama.chat.conversation import Conversation
from jllama.cli.terminal.state import Chat
from jllama.cli.terminal.tool_calls import ToolRunner
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox
from tests.support.tiny_checkpoint import write_tiny_model
from tests.support.tool_templates import MISTRAL_ARGS, SMOLLM2, XML, sources

SUN = '<tool_call>\n{"name": "sun", "arguments": {"city": "Oslo"}}\n</tool_call>'


def sun(city: str) -> bool:
    """Is it up?"""
    return city == "Oslo"


def fails(times: int = 1) -> str:
    raise ValueError("no " * times)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    found = {"chatml": sources()["chatml"], "smollm2": SMOLLM2, "mistral": MISTRAL_ARGS, "xml": XML}
    keys = dict(max_position_embeddings=4096)
    paths = {name: write_tiny_model(place / name, template=text, **keys) for name, text in found.items()}
    return {name: jllama.load(str(path), dtype="float32") for name, path in paths.items()}


class Scripted:
    """A session that says what it is told, by pieces of three letters, and keeps the prompts."""

    def __init__(self, model, *answers):
        self.tokenizer, self.answers, self.prompts = model.tokenizer, list(answers), []
        self.ids, self.max_seq_len, self.result = [], 4096, Result()

    def stream(self, prompt, settings, *, begun=(), **_):
        self.prompts.append(self.tokenizer.decode([*prompt, *begun], skip_special=False))
        text = self.answers.pop(0)
        before = self.tokenizer.decode(begun)
        self.result = Result(text=before, prompt_tokens=len(prompt))
        for at in range(0, len(text), 3):
            self.result.text += text[at : at + 3]
            yield text[at : at + 3]
        self.result.token_ids = self.tokenizer.encode(self.result.text, add_special=False)
        self.result.finish_reason = "stop"


def talk(model, *answers, tools=(sun, fails), **options):
    conversation = Conversation(model, tools=tools, **options)
    conversation.branch.session = Scripted(model, *answers)
    return conversation


def prompts(conversation):
    return conversation.branch.session.prompts


@pytest.mark.parametrize("name", ["chatml", "smollm2", "mistral"])
def test_a_turn_with_calls(models, name):
    written = {
        "chatml": "I look.\n" + SUN,
        "smollm2": '<tool_call>[{"name": "sun", "arguments": {"city": "Oslo"}}]</tool_call>',
        "mistral": '[TOOL_CALLS]sun[ARGS]{"city": "Oslo"}',
    }[name]
    conversation = talk(models[name], written, "Yes, it is.", "Bye.")
    assert "".join(conversation.ask("Is it day?")) == ("I look." if name == "chatml" else "")
    (call,) = conversation.calls
    assert (call.name, json.loads(call.arguments)) == ("sun", {"city": "Oslo"})
    assert "Is it up?" in prompts(conversation)[0]
    result = conversation.run(call)
    assert result == "true"
    assert "".join(conversation.reply([result])) == "Yes, it is."
    assert conversation.calls == ()
    assert written.strip() in prompts(conversation)[1]
    assert prompts(conversation)[1].index(written.strip()) < prompts(conversation)[1].rindex("true")
    assert conversation.turns == 1
    assert conversation.messages[-1].content == "Yes, it is."
    "".join(conversation.ask("Thanks"))
    assert written.strip() in prompts(conversation)[2]
    assert prompts(conversation)[2].index("Yes, it is.") < prompts(conversation)[2].index("Thanks")
    conversation.undo()
    assert len(conversation.messages[-1].rounds) == 1


def test_calls_that_nobody_runs_are_told_so(models):
    conversation = talk(models["chatml"], SUN, "Well.")
    list(conversation.ask("Is it day?"))
    with pytest.raises(JllamaError, match="1 calls wait for what they give, and 2 results came"):
        list(conversation.reply(["a", "b"]))
    list(conversation.ask("And now?"))
    assert 'tool_response>\n{"error": "it was not run"}' in prompts(conversation)[1]
    with pytest.raises(JllamaError, match="0 calls wait"):
        list(conversation.reply([]))


def test_what_is_no_call_is_the_answer(models):
    text = '<tool_call>\n{"name": "sun", "arguments": {city}}\n</tool_call>'
    conversation = talk(models["chatml"], text)
    assert "".join(conversation.ask("Is it day?")) == text == conversation.messages[-1].content


def test_an_answer_that_was_cut_goes_on_behind_its_calls(models):
    conversation = talk(models["chatml"], SUN, "Yes, it", " is.")
    list(conversation.ask("Is it day?"))
    answer = conversation.reply([conversation.run(conversation.calls[0])])
    next(answer)
    answer.close()
    assert conversation.messages[-1].cut
    before = conversation.messages[-1].content
    assert before == "Yes"
    assert "".join(conversation.resume()) == " is."
    assert prompts(conversation)[2].endswith(before)
    assert len(conversation.messages[-1].rounds) == 1


def test_calls_are_saved(models, tmp_path):
    conversation = talk(models["chatml"], SUN, "Yes.", SUN)
    list(conversation.ask("Is it day?"))
    list(conversation.reply(["true"]))
    list(conversation.ask("And now?"))
    archive.save(conversation, GenerationSettings(), tmp_path / "talk.json")
    other = Conversation(models["chatml"])
    archive.load(other, tmp_path / "talk.json")
    assert other.messages == conversation.messages
    assert other.encode(other.messages[:2])
    data = json.loads((tmp_path / "talk.json").read_text())
    data["messages"][1]["rounds"][0]["results"] = []
    (tmp_path / "talk.json").write_text(json.dumps(data))
    with pytest.raises(JllamaError, match="not as many"):
        archive.load(other, tmp_path / "talk.json")


def test_calls_of_earlier_turns_are_read_where_no_tools_are_offered(models):
    before = talk(models["smollm2"], '<tool_call>[{"name": "sun", "arguments": {}}]</tool_call>', "Yes.")
    list(before.ask("Is it day?"))
    list(before.reply(["true"]))
    bare = Conversation(models["smollm2"])
    read = bare.model.tokenizer.decode(bare.encode(before.messages), skip_special=False)
    assert '<tool_call>[{"name": "sun", "arguments": {}}]</tool_call>' in read
    assert "<tool_response>\ntrue\n</tool_response>" in read
    assert bare.transcript.reader(()) is None
    assert bare.transcript.shown(()) == ()


def test_a_model_whose_calls_are_not_known_is_refused_at_once(models):
    with pytest.raises(JllamaError, match="not known here"):
        Conversation(models["xml"], tools=[sun])


class Screen:
    markdown = True

    def __init__(self):
        self.lines = []

    def say(self, text, style="dim"):
        self.lines.append(("error: " if style == "error" else "") + text)

    def stream(self, pieces, begun=""):
        self.lines.append("".join(pieces))


def chat_with(conversation, *typed, **options):
    screen, typed = Screen(), list(typed)

    def ask(question):
        answer = typed.pop(0)
        if isinstance(answer, type):
            raise answer
        return answer

    chat = Chat(conversation, GenerationSettings(), screen)
    chat.tools = ToolRunner(conversation.toolbox, screen, ask=ask, **options)
    return chat, screen.lines, typed


CALL, GAVE = 'call: sun({"city": "Oslo"})', "gave: true"
DECLINED = 'error: gave: {"error": "the user declined"}'


@pytest.mark.parametrize(
    ("answers", "typed", "said"),
    [
        (1, ["y"], [CALL, GAVE]),
        (1, ["what", "", " YES "], [CALL, GAVE]),
        (2, ["a"], [CALL, GAVE, CALL, GAVE]),
        (2, ["n", "y"], [CALL, DECLINED, CALL, GAVE]),
        (1, [KeyboardInterrupt], [CALL, DECLINED]),
        (1, [EOFError], [CALL, DECLINED]),
    ],
)
def test_the_chat_asks_before_it_runs_one(models, answers, typed, said):
    conversation = talk(models["chatml"], *[SUN] * answers, "Done.")
    chat, lines, left = chat_with(conversation, *typed)
    chat.ask("Is it day?")
    assert [line for line in lines if line and not line.startswith("[")] == [*said, "Done."]
    assert left == []


def test_a_call_that_can_not_be_made_is_not_asked_for_and_one_that_fails_is_told(models):
    bad = SUN.replace("Oslo", "Rome").replace("city", "town")
    fail = SUN.replace("sun", "fails").replace('{"city": "Oslo"}', "{}")
    conversation = talk(models["chatml"], f"{bad}\n{fail}", "Done.")
    chat, lines, _ = chat_with(conversation, unasked=True)
    chat.ask("Is it day?")
    told = [line for line in lines if line.startswith("error")]
    assert "there is no parameter 'town'" in told[0]
    assert "ValueError: no" in told[1]
    assert all(error in prompts(conversation)[1] for error in ("no parameter 'town'", "ValueError: no"))


def test_rounds_have_an_end(models):
    conversation = talk(models["chatml"], *[SUN] * 20)
    chat, lines, _ = chat_with(conversation, unasked=True)
    chat.ask("Is it day?")
    assert lines.count(CALL) == 10
    assert lines[-1].startswith("[10 rounds of calls")


def test_always_is_said_of_one_tool():
    def sun() -> bool:
        return True

    def rain() -> bool:
        return False

    screen, asked = Screen(), []
    answers = iter(["a", "y", "n"])

    def ask(question):
        asked.append(screen.lines[-1])
        return next(answers)

    runner = ToolRunner(Toolbox([sun, rain]), screen, ask=ask)
    names = ("sun", "rain", "sun", "rain")
    gave = runner.results([Call(str(at), name, "{}") for at, name in enumerate(names)])
    assert [text if len(text) < 6 else "declined" for text in gave] == ["true", "false", "true", "declined"]
    assert asked == ["call: sun({})", "call: rain({})", "call: rain({})"]
