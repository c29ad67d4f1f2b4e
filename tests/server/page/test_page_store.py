"""Conversations in the browser: kept, renamed, deleted, brought back, and a storage that is full."""

import pytest

from tests.support.fake_chat_server import Script, Token, say
from tests.support.page_driver import PageDriver

FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"


def titles(page):
    return page.texts(".conversation")


def open_menu(page, action):
    page.click("#menu-button")
    page.click(f"#menu [data-action={action}]")


def test_conversations_outlive_the_page(page, fake):
    fake.script(say("One."), say("Two."))
    page.ask("First question")
    page.click("[data-action=new]")
    page.ask("Second question")
    page.open()
    assert titles(page) == ["Second question", "First question"]
    assert page.answers == ["Two."]
    page.click(".row:last-child .conversation")
    assert (page.questions, page.answers) == (["First question"], ["One."])


def test_tokens_and_branches_outlive_the_page(page, fake):
    fake.script(Script(tokens=[Token("One", -2.5)]))
    page.ask("Say")
    page.open()
    page.click("#tokens-toggle")
    assert page.run("return document.querySelector('#thread .token').className") == "token tint-5"


def test_a_conversation_has_the_name_that_it_is_given(page):
    page.ask("What is gravity?")
    open_menu(page, "rename")
    field = page.one("dialog input")
    assert field.get_attribute("value") == "What is gravity?"
    field.clear()
    field.send_keys("Physics")
    page.click("dialog .main-button")
    page.open()
    assert titles(page) == ["Physics"]
    assert page.browser.title == "Physics · jllama"


def test_a_deleted_conversation_can_be_brought_back(page):
    page.ask("What is gravity?")
    open_menu(page, "delete")
    assert (titles(page), page.questions) == ([], [])
    page.click(".notice .main-button")
    assert (titles(page), page.questions) == (["What is gravity?"], ["What is gravity?"])


def test_a_conversation_that_is_deleted_while_it_answers_stays_deleted(page, fake):
    fake.script(script := say("one two", halt=1))
    page.send("Count")
    page.until(lambda: page.answers == ["one"], "the first word comes")
    open_menu(page, "delete")
    script.gate.set()
    page.until(lambda: not page.busy, "it ends")
    page.open()
    assert titles(page) == []


def test_a_full_storage_is_told_and_the_conversation_goes_on(page, fake):
    page.run(FULL)
    page.ask("Hello")
    page.until(lambda: "storage is full" in page.notice, "it is told")
    assert page.answers == ["Hello there."]
    page.click("[aria-label=Dismiss]")
    page.ask("More")
    assert page.answers == ["Hello there.", "Hello there."]
    assert page.notice == ""  # told once, not at each word


def test_details_of_old_tokens_make_room_for_new_words(page, fake):
    """A storage with room for a few more words: what goes is no text."""
    page.ask("Old question")
    page.click("[data-action=new]")
    page.run(
        "const set = Storage.prototype.setItem; Storage.prototype.setItem = function (key, text) {"
        " const others = Object.entries(localStorage).filter(([name]) => name !== key);"
        " const size = others.reduce((sum, [, other]) => sum + other.length, text.length);"
        " if (size > arguments.callee.most) throw new DOMException('full', 'QuotaExceededError');"
        " return set.call(this, key, text); };"
        "Storage.prototype.setItem.most = JSON.stringify(localStorage).length + 400;"
    )
    page.ask("New question")
    assert page.notice == ""
    kept = page.run("return Object.values(localStorage).join()")
    assert "Old question" in kept
    assert "New question" in kept
    assert kept.count('"tokens"') < 2


def test_what_another_tab_deletes_or_writes_shows_here(page, fake):
    page.ask("Hello")
    first = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    other = PageDriver.__new__(PageDriver)
    other.browser, other.url = page.browser, page.url
    other.open()
    other.ask("From the other tab")
    page.browser.close()
    page.browser.switch_to.window(first)
    page.until(lambda: page.questions == ["Hello", "From the other tab"], "the words of the other tab show")


def test_a_browser_that_keeps_nothing_is_told_and_the_page_works(browser, fake):
    """Only to look at the storage is an error, where it is blocked."""
    source = (
        "for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name,"
        " { get() { throw new DOMException('denied', 'SecurityError'); } });"
    )
    page = PageDriver(browser, fake.url)
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        page.open()
        assert "keeps nothing" in page.notice
        page.ask("Hello")
        page.click("[data-action=new]")
        page.ask("More")
        page.click(".row:last-child .conversation")
        assert (page.questions, page.answers) == (["Hello"], ["Hello there."])
        assert page.faults() == []
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.parametrize("damage", ["{", "null", '"text"', "{}", '{"id": "x", "nodes": {}}'])
def test_an_entry_that_is_damaged_is_passed_over_and_left_alone(page, damage):
    page.ask("Hello")
    page.run("localStorage.setItem('jllama.conversation.x', arguments[0])", damage)
    page.open()
    assert titles(page) == ["Hello"]
    assert page.run("return localStorage.getItem('jllama.conversation.x')") == damage
