"""The page on the real server, with a tiny model behind it."""

import pytest

from jllama.chat.archive import archive
from jllama.chat.conversation import Conversation
from tests.support.page_driver import PageDriver, export
from tests.support.serving import busy, content, on_a_port

GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def served(browser, live):
    """The page that the server itself sends, set to be greedy and short."""
    driver = opened(browser, live)
    yield driver
    assert driver.faults() == []


def opened(browser, client, **settings):
    driver = PageDriver(browser, str(client.http.base_url).rstrip("/") + "/")
    driver.run("localStorage.setItem('jllama.settings', JSON.stringify(arguments[0]))", GREEDY | settings)
    return driver.open()


def test_an_answer_is_what_the_server_says_without_the_page(served, live):
    served.ask("Hello")
    alone = live.chat()
    assert [node["content"] for node in served.nodes("assistant")][-1:] == [content(alone)]
    (stats,) = served.texts(".stats")
    assert f"{alone['usage']['completion_tokens']} tokens" in stats
    assert f"prompt {alone['usage']['prompt_tokens']}" in stats
    assert served.run("return document.getElementById('model').value") == "tiny"


def test_tokens_spell_the_answer_and_a_fork_goes_on_from_an_alternative(served, live):
    served.click("#tokens-toggle")
    served.ask("Hello")
    answer = served.nodes("assistant")[-1]["content"]
    node = served.nodes("assistant")[-1]["tokens"]
    assert "".join(served.call("data/tokens.js", "m.pieces(a[0])", node)) == answer
    assert all(len(token["a"]) == 5 for token in node)
    place, other = next(
        (place, other)
        for place, token in enumerate(node)
        for other in token["a"]
        if place > 1 and other["t"] != token["t"] and other["t"].isascii() and "s" not in other
    )
    served.hover(served.tokens[place])
    row = [row["t"] for row in node[place]["a"]].index(other["t"])
    served.all("#token-card .alternatives button")[row].click()
    served.until(lambda: len(served.texts(".switcher span")) == 1, "the fork is there")
    served.idle()
    prefix = "".join(served.call("data/tokens.js", "m.pieces(a[0])", node[:place])) + other["t"]
    begun = {
        "role": "assistant",
        "content": prefix,
        "token_ids": [t["i"] for t in node[:place]] + [other["i"]],
    }
    more = dict(continue_final_message=True, add_generation_prompt=False)
    alone = live.chat([{"role": "user", "content": "Hello"}, begun], **more)
    assert [node["content"] for node in served.nodes("assistant")][-1:] == [prefix + content(alone)]


def test_an_exported_answer_has_its_own_tokens_which_a_chat_goes_on_from(served, served_model, tmp_path):
    served.ask("Hello")
    (node,) = served.nodes("assistant")
    conversation = Conversation(served_model, max_seq_len=128)
    _, remarks = archive.load(conversation, export(served, tmp_path))
    answer = conversation.messages[1]
    assert (remarks, answer.content) == ([], node["content"])
    assert answer.token_ids == tuple(token["i"] for token in node["tokens"])


def test_stop_frees_the_slot(browser, live, engine):
    page = opened(browser, live, max_new_tokens=200)
    page.send("Hello")
    page.until(lambda: page.answers and page.answers[0], "words come")
    page.press("\ue00c")
    page.idle()
    page.until(lambda: busy(engine) == 0, "the slot is free")
    assert page.faults() == []


def test_a_conversation_that_outgrows_the_context_goes_on(browser, live):
    page = opened(browser, live, max_new_tokens=100)
    for question in range(6):
        page.ask(f"Question {question}, with some more words")
        if page.notice:
            break
    assert page.texts(".notice .main-button") == ["Leave out the oldest turns"]
    page.click(".notice .main-button")
    page.until(lambda: len(page.questions) == question + 1 and not page.busy, "it goes on")
    assert page.answers[-1]
    assert page.faults() == []


def test_a_key_is_asked_for_by_the_real_server_too(browser, engine):
    with on_a_port(engine, keys=("secret",)) as client:
        page = PageDriver(browser, str(client.http.base_url).rstrip("/") + "/")
        page.browser.get(page.url)
        page.one("dialog input[type=password]").send_keys("secret")
        page.click("dialog .main-button")
        page.until(lambda: page.run("return document.getElementById('model').value") == "tiny", "it is in")
        page.ask("Hello")
        assert len(page.answers) == 1
        assert page.faults() == []
