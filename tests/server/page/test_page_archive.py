"""Conversations to and from files: what the page writes `jllama chat --load` reads, and the other way."""

import json

import pytest

import jllama
from jllama.chat.archive import archive
from jllama.chat.archive.document import Document, SavedBranch, SavedMessage, read_document, write_document
from jllama.chat.conversation import Conversation
from jllama.settings import GenerationSettings
from tests.support.fake_chat_server import say
from tests.support.page_driver import export
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model


def bring_in(page, *paths):
    page.all("#import-file")[0].send_keys("\n".join(str(path) for path in paths))


def again(page):
    button = page.all("#thread [aria-label='Another answer']")[-1]
    page.hover(button)
    button.click()
    page.idle()


def written(tmp_path, **changes):
    """A file as `/save` writes it: two branches that share a turn, and one that ends there."""
    messages = [
        SavedMessage(role="user", content="Q1"),
        SavedMessage(role="assistant", content="A1", token_ids=(1, 2)),
        SavedMessage(role="user", content="Q2"),
        SavedMessage(role="assistant", content="A2", cut=True),
        SavedMessage(role="user", content="Q3"),
        SavedMessage(role="assistant", content="A3"),
    ]
    branches = {
        "main": SavedBranch(system="Be brief.", dropped=0, messages=[0, 1, 2, 3]),
        "code": SavedBranch(system="Be brief.", dropped=1, messages=[0, 1, 4, 5]),
        "stump": SavedBranch(system="Be brief.", dropped=0, messages=[0, 1]),
    }
    settings = {
        "temperature": 0.0,
        "seed": 7,
        "stop": ["END"],
        "logit_bias": {"5": -2.0},
        "max_new_tokens": 64,
    }
    fields = dict(
        model="tiny",
        settings=settings,
        transcript=None,
        on_overflow="stop",
        current="code",
        branches=branches,
        messages=messages,
        cache_sha256=None,
    )
    path = tmp_path / "talk.json"
    write_document(Document(**{**fields, **changes}), path)
    return path


def texts(document, name):
    return [document.messages[number].content for number in document.branches[name].messages]


def test_a_conversation_that_the_page_exports_is_read_by_the_chat(page, fake, tmp_path):
    fake.script(say("First."), say("Second."), say("Third.", finish="length"))
    page.ask("Say „hello“ 🦙")
    again(page)
    page.until(lambda: page.answers == ["Second."], "the second answer shows")
    page.ask("More")
    document, settings = read_document(export(page, tmp_path))
    assert list(document.branches) == ["main", "branch-2"]
    assert document.current == "main"
    assert texts(document, "main") == ["Say „hello“ 🦙", "Second.", "More", "Third."]
    assert texts(document, "branch-2") == ["Say „hello“ 🦙", "First."]
    assert len(document.messages) == 5  # what branches share stands there once
    assert document.messages[document.branches["main"].messages[-1]].cut
    assert (settings.temperature, settings.top_p) == (0.7, 0.95)  # as drawn, not greedy


def test_the_exported_file_goes_on_in_a_chat(page, fake, tmp_path):
    page.ask("Hello")
    path = export(page, tmp_path)
    place = write_tiny_model(tmp_path / "tiny", template=TEMPLATE)
    conversation = Conversation(jllama.load(place, dtype="float32"), max_seq_len=128)
    settings, remarks = archive.load(conversation, path)
    assert remarks == []
    assert [message.content for message in conversation.messages] == ["Hello", "Hello there."]
    short = GenerationSettings(max_new_tokens=4, seed=1, temperature=settings.temperature)
    list(conversation.ask("More", short))
    assert conversation.turns == 2


def test_a_question_without_an_answer_is_left_out(page, fake, tmp_path):
    fake.script(say("First."), say("never", halt=0))
    page.ask("Say")
    page.send("Well?")
    page.until(lambda: len(fake.requests) == 2, "the request is there")
    page.click("#stop")
    page.idle()
    document, _ = read_document(export(page, tmp_path))
    assert texts(document, document.current) == ["Say", "First."]
    assert len(document.branches) == 1


def test_an_empty_conversation_is_a_file_too(page, tmp_path):
    document, _ = read_document(export(page, tmp_path))
    assert document.branches == {"main": SavedBranch(system=None, dropped=0, messages=[])}


def test_what_save_writes_is_imported_with_all_its_branches(page, fake, tmp_path):
    bring_in(page, written(tmp_path))
    page.until(lambda: page.answers == ["A1", "A3"], "the current branch shows")
    assert page.questions == ["Q1", "Q3"]
    assert page.texts(".system") == ["Be brief."]
    page.click("[data-action=tree]")
    assert page.texts("[role=treeitem]") == ["Q1", "A1", "Q2", "A2", "Q3", "A3"]
    page.click("dialog [aria-label=Close]")
    page.ask("Q4")
    (body,) = fake.requests
    sent = [message["content"] for message in body["messages"]]
    assert sent == ["Be brief.", "Q3", "A3", "Q4"]  # the oldest turn was dropped in the chat
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.0, 7, 64)
    assert (body["stop"], body["logit_bias"]) == (["END"], {"5": -2.0})


def test_what_is_imported_is_exported_as_it_was(page, tmp_path):
    source = written(tmp_path)
    bring_in(page, source)
    page.until(lambda: page.answers, "it shows")
    place = tmp_path / "out"
    place.mkdir()
    (before, settings_before), (after, settings_after) = (
        read_document(source),
        read_document(export(page, place)),
    )
    assert after.branches.keys() == before.branches.keys()
    for name in before.branches:
        assert texts(after, name) == texts(before, name)
        assert after.branches[name].system == "Be brief."
    assert after.branches["code"].dropped == 1
    assert (after.current, after.on_overflow, after.model) == ("code", "stop", "tiny")
    assert settings_after.stop == settings_before.stop == ("END",)
    assert settings_after.logit_bias == {5: -2.0}
    assert (settings_after.temperature, settings_after.seed) == (0.0, 7)
    assert after.messages[after.branches["main"].messages[1]].token_ids == (1, 2)
    assert after.messages[after.branches["main"].messages[3]].cut


def test_branches_with_other_system_prompts_stay_apart(page, fake, tmp_path):
    branches = {
        "main": SavedBranch(system="Be brief.", dropped=0, messages=[0, 1]),
        "long": SavedBranch(system=None, dropped=0, messages=[0, 1]),
    }
    messages = [SavedMessage(role="user", content="Q"), SavedMessage(role="assistant", content="A")]
    bring_in(page, written(tmp_path, branches=branches, messages=messages, current="long"))
    page.until(lambda: page.answers == ["A"], "it shows")
    assert page.texts(".system") == []
    place = tmp_path / "out"
    place.mkdir()
    document, _ = read_document(export(page, place))
    assert {name: branch.system for name, branch in document.branches.items()} == {
        "main": "Be brief.",
        "long": None,
    }


def test_more_branches_than_a_file_takes(page, tmp_path):
    """The hundred that fit, the shown one among them, and how many are left."""
    found = page.call(
        "data/tree.js",
        "import('/js/data/archive.js').then((archive) => { const c = m.newConversation();"
        " const q = m.add(c, 'root', { role: 'user', content: 'Q' });"
        " for (let n = 0; n < 103; n += 1) m.add(c, q.id, { role: 'assistant', content: `A${n}` });"
        " return archive.toArchive(c); })",
    )
    path = tmp_path / "many.json"
    path.write_text(json.dumps(found["document"]))
    document, _ = read_document(path)
    assert (len(document.branches), found["left"]) == (100, 3)
    assert texts(document, document.current) == ["Q", "A102"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is no JSON"),
        ("[]", "no conversation of jllama"),
        ('{"format": "jllama conversation 2"}', "no conversation of jllama"),
        ('{"format": "jllama conversation 1"}', "parts of it are missing"),
        (
            '{"format": "jllama conversation 1", "settings": {}, "branches": {}, "messages": []}',
            "it has no branch",
        ),
        (
            '{"format": "jllama conversation 1", "settings": {}, "branches": {"main": {"messages": [0]}},'
            ' "messages": [{"role": "assistant", "content": "A"}]}',
            "do not alternate",
        ),
        (
            '{"format": "jllama conversation 1", "settings": {}, "branches": {"main": {"messages": [3]}},'
            ' "messages": []}',
            "do not alternate",
        ),
        (
            '{"format": "jllama conversation 1", "settings": {}, "branches": {"main": {"messages": []}},'
            ' "messages": [{"role": "tool", "content": "A"}]}',
            "neither a question nor an answer",
        ),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_with_the_reason(page, tmp_path, text, reason):
    path = tmp_path / "bad.json"
    path.write_text(text)
    page.ask("Hello")
    bring_in(page, path)
    page.until(lambda: reason in page.notice, "the reason is told")
    assert "bad.json" in page.notice
    assert page.answers == ["Hello there."]


def test_a_name_in_a_file_is_only_a_name(page, tmp_path):
    """`__proto__` is a key like any other, in branches as in settings."""
    text = written(tmp_path).read_text().replace('"code"', '"__proto__"').replace('"seed"', '"__proto__"')
    path = tmp_path / "odd.json"
    path.write_text(text)
    bring_in(page, path)
    page.until(lambda: page.answers, "it shows")
    assert page.run("return ({}).messages === undefined && ({}).system === undefined")
