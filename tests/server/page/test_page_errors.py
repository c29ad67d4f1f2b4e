"""What goes wrong is told with what to do, and nothing that was typed is lost."""

import pytest

from tests.support.fake_chat_server import refuse, say
from tests.support.page_driver import PageDriver


def draft(page):
    return page.one("#composer-text").get_attribute("value")


@pytest.mark.parametrize(
    ("status", "words", "headers"),
    [
        (400, "top_p is 7: give a number up to 1", {}),
        (413, "the body is too large", {}),
        (429, "Try again in 3 s", {"Retry-After": "3"}),
        (500, "the engine failed", {}),
        (503, "shutting down", {}),
    ],
)
def test_an_error_is_told_and_the_question_is_a_draft_again(page, fake, status, words, headers):
    fake.script(refuse(status, words, **headers))
    page.ask("A long question")
    page.until(lambda: words in page.notice, "the error is told")
    assert draft(page) == "A long question"
    assert (page.questions, page.answers) == ([], [])
    assert page.one(".notice.error").get_attribute("role") == "alert"


def test_to_try_again_sends_the_question_once(page, fake):
    fake.script(refuse(503, "shutting down"), say("Here I am."))
    page.ask("Hello?")
    page.click(".notice .main-button")
    page.until(lambda: page.answers == ["Here I am."], "the answer comes")
    page.idle()
    assert (page.questions, draft(page), page.notice) == (["Hello?"], "", "")


def test_what_was_typed_meanwhile_stays_beside_the_question(page, fake):
    fake.script(slow := refuse(503, "shutting down"))
    slow.status, slow.halt = 200, 0
    page.send("First")
    page.type("Second")
    slow.gate.set()
    page.until(lambda: page.notice, "the error is told")
    assert draft(page) == "Second\nFirst"


def test_a_key_is_asked_for_and_the_question_goes_on(page, fake):
    fake.key = "secret"
    page.ask("Hello")
    page.one("dialog input[type=password]").send_keys("secret")
    page.click("dialog .main-button")
    page.until(lambda: page.answers == ["Hello there."], "the answer comes with the key")
    assert page.questions == ["Hello"]
    assert "secret" not in page.run("return JSON.stringify(localStorage)")  # not asked to remember it


def test_the_message_can_be_typed_once_the_key_is_given(browser, fake):
    """A dialog at the start of the page gives the focus back, and the caret with it."""
    fake.key = "secret"
    page = PageDriver(browser, fake.url)
    browser.get(fake.url)
    page.one("dialog input[type=password]").send_keys("secret")
    page.click("dialog .main-button")
    page.until(lambda: page.one("#model").text == "tiny", "the models are there")
    page.press("H", "i")
    assert draft(page) == "Hi"
    assert page.faults() == []


def test_a_key_can_be_remembered(page, fake):
    fake.key = "secret"
    page.click("#menu-button")
    page.click("[data-action=key]")
    page.one("dialog input[type=password]").send_keys("secret")
    page.click("dialog input[type=checkbox]")
    page.click("dialog .main-button")
    page.open()
    page.ask("Hello")
    assert page.answers == ["Hello there."]


def test_a_broken_connection_keeps_what_came_and_can_go_on(page, fake):
    fake.script(say("one two", broken=True), say(" three"))
    page.ask("Count")
    page.until(lambda: "The connection" in page.notice, "the break is told")
    assert page.answers == ["one two"]
    page.click(".notice .main-button")
    page.until(lambda: page.answers == ["one two three"], "it goes on from there")
    assert fake.requests[1]["continue_final_message"] is True


def test_an_error_inside_the_stream_is_told(page, fake):
    fake.script(say("one two", error={"message": "the engine died", "type": "server_error", "code": 500}))
    page.ask("Count")
    page.until(lambda: "the engine died" in page.notice, "the error is told")
    assert page.answers == ["one two"]
    assert page.texts(".word-button") == ["Continue"]


def test_a_server_that_is_gone_is_named(page, fake):
    page.ask("Hello")
    fake.close()
    page.ask("Still there?")
    page.until(lambda: "jllama serve" in page.notice, "what to look for is told")
    assert draft(page) == "Still there?"
    assert page.answers == ["Hello there."]


def test_a_conversation_that_is_too_long_goes_on_without_its_oldest_turns(page, fake):
    full = refuse(400, "2100 tokens do not fit in 2048", "context_length_exceeded")
    fake.script(say("A1"), say("A2"), full, say("A3"))
    for question in ("Q1", "Q2", "Q3"):
        page.ask(question)
    page.click(".notice .main-button")
    page.until(lambda: page.answers == ["A1", "A2", "A3"], "it goes on")
    sent = [message["content"] for message in fake.requests[-1]["messages"]]
    assert sent == ["Q2", "A2", "Q3"]


def test_a_first_question_that_is_too_long_offers_no_turns_to_leave_out(page, fake):
    fake.script(refuse(400, "2100 tokens do not fit in 2048", "context_length_exceeded"))
    page.ask("Q1")
    page.until(lambda: "2100" in page.notice, "both numbers are told")
    assert page.texts(".notice .main-button") == ["Try again"]


def test_a_draft_outlives_the_page(page):
    page.type("half a thought")
    page.open()
    assert draft(page) == "half a thought"


def test_an_answer_that_was_growing_when_the_page_went_is_kept(page, fake):
    fake.script(say("one two three", halt=2), say(" three"))
    page.send("Count")
    page.until(lambda: page.answers == ["one two"], "two words come")
    page.until(
        lambda: page.run("return Object.values(localStorage).some((text) => text.includes('one two'))"),
        "they are kept",
    )
    page.open()
    assert page.answers == ["one two"]
    page.click(".word-button")
    page.until(lambda: page.answers == ["one two three"], "it goes on")
