"""The page without a mouse, on a telephone, in the dark."""

import pytest

from tests.support.fake_chat_server import say

ENTER, ESCAPE, SPACE = "\ue007", "\ue00c", " "


def test_a_whole_conversation_by_keyboard_alone(page, fake):
    """Ask, answer again, see the first answer, edit, change a setting, rename, delete, undo."""
    fake.script(say("First."), say("Second."), say("Third."), say("Fourth."))
    page.press("H", "i", ENTER)  # the focus is on the message from the start
    page.until(lambda: page.answers == ["First."], "the answer comes")
    page.idle()
    page.tab_to("Another answer", back=True)
    page.press(ENTER)
    page.until(lambda: page.answers == ["Second."], "another answer comes")
    page.idle()
    page.tab_to("Version before", back=True)
    page.press(SPACE)
    assert page.answers == ["First."]
    assert page.focused == "Version after"  # the focus stays where it was of use
    page.press(SPACE)
    assert page.answers == ["Second."]
    page.tab_to("Edit and ask again", back=True)
    page.press(ENTER, "!")
    page.tab_to("Ask again")
    page.press(ENTER)
    page.until(lambda: page.answers == ["Third."], "the edited question has an answer")
    assert page.questions == ["Hi!"]


def test_settings_and_the_tree_by_keyboard_alone(page, fake):
    page.ask("Hello")
    page.tab_to("Settings", back=True)
    page.press(ENTER)
    page.tab_to("Temperature")
    page.press("0", ".", "3")
    page.press(ESCAPE)
    assert page.focused == "Settings"
    page.tab_to("Tree", back=True)
    page.press(ENTER)
    page.until(lambda: page.focused == "Hello there.", "the focus is on the branch that is shown")
    page.press("\ue013", ENTER)  # ↑
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "You"
    page.tab_to("Another answer")
    page.press(ENTER)
    page.until(lambda: len(fake.requests) == 2, "another answer is asked for")
    assert fake.requests[1]["temperature"] == 0.3


def test_conversations_by_keyboard_alone(page, fake):
    page.ask("Hello")
    page.tab_to("More", back=True)
    page.press(ENTER)
    page.tab_to("Delete")
    page.press(ENTER)
    assert page.questions == []
    page.tab_to("Undo")
    page.press(ENTER)
    assert page.questions == ["Hello"]
    page.tab_to("New conversation", back=True)
    page.press(ENTER)
    assert page.run("return document.activeElement.id") == "composer-text"


def test_escape_stops_an_answer(page, fake):
    fake.script(say("one two", halt=1))
    page.send("Count")
    page.until(lambda: page.answers == ["one"], "the first word comes")
    page.press(ESCAPE)
    page.idle()
    assert page.answers == ["one"]


def test_shift_enter_begins_a_line_and_an_unfinished_letter_sends_nothing(page, fake):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.type("one")
    ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(ENTER).key_up(Keys.SHIFT).perform()
    page.type("two")
    page.run(
        "document.getElementById('composer-text').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
    )
    assert fake.requests == []
    page.press(ENTER)
    page.idle()
    assert page.questions == ["one\ntwo"]


SHOWS_FOCUS = """
const e = document.activeElement, style = getComputedStyle(e);
if (e === document.body) return ["the page's end", false];
const box = e.closest(".composer, .editor") ?? e;
const plain = getComputedStyle(document.querySelector(".new-button")).borderColor;
const framed = box !== e && getComputedStyle(box).borderColor !== plain;
const outlined = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
return [e.id || e.ariaLabel || e.textContent, outlined || framed];
"""


def test_everything_that_has_the_focus_shows_it(page):
    page.ask("Hello")
    page.run("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        page.press("\ue004")
        name, shown = page.run(SHOWS_FOCUS)
        assert shown or name == "the page's end", name
        seen.add(name)
    assert {"composer-text", "tokens-toggle", "menu-button", "Another answer"} <= seen


def test_every_control_has_a_name_and_every_picture_is_hidden_from_readers(page, fake):
    fake.script(
        say("A [link](https://example.org), `code`\n\n```py\nx\n```\n\n- [x] done\n\n| a |\n|---|\n| b |")
    )
    page.ask("Hello")
    nameless = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea, a, [role=button]')]"
        ".filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.hidden))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert page.run("return [...document.querySelectorAll('svg')].every((e) => e.ariaHidden === 'true')")
    assert page.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("tokens", [False, True], ids=["text", "tokens"])
def test_words_stand_out_from_what_is_behind_them(page, fake, dark, tokens):
    """WCAG's 4.5 to 1, for the words of the page and of each tint."""
    from tests.support.fake_chat_server import Script, Token

    if dark:
        page.dark()
    if tokens:
        page.click("#tokens-toggle")
    fake.script(Script(tokens=[Token(f" word{place}", -0.02 * 3**place) for place in range(7)]))
    page.ask("Hello")
    low = page.run(CONTRAST)
    assert low == []
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark


CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (e) => {
  for (let at = e; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const hasWords = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
const words = [...document.querySelectorAll("body *")]
  .filter((e) => e.offsetParent && !e.closest(".hidden, .skip, .wordmark") && !e.disabled && hasWords(e));
return words.map((e) => {
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
  return [e.className + " " + e.textContent.slice(0, 20), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
}).filter(([, contrast]) => contrast < 4.5);
"""


def test_a_look_that_is_chosen_wins_over_the_systems(page):
    page.click("[data-action=settings]")
    page.one("#theme").send_keys("Dark")
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.until(lambda: page.run(paper) == "rgb(25, 26, 27)", "the page is dark")
    page.open()
    assert page.run(paper) == "rgb(25, 26, 27)"


def test_a_telephone_shows_everything_within_its_width(page, fake):
    fake.script(
        say(
            "# Title\n\n```python\n"
            + "x = 1; " * 40
            + "\n```\n\n| a | b |\n|---|---|\n| "
            + "c " * 60
            + "| d |"
        )
    )
    page.narrow()
    page.open()
    page.ask("Show")
    for _ in range(2):
        page.click("#tokens-toggle")
        width, window = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= window == 390
        outside = page.run(
            "return [...document.querySelectorAll('header button, .composer *, .foot button')]"
            ".filter((e) => e.offsetParent && e.getBoundingClientRect().right > innerWidth)"
            ".map((e) => e.outerHTML)"
        )
        assert outside == []


def test_on_a_telephone_the_list_comes_and_goes(page):
    page.narrow()
    page.open()
    page.ask("Hello")
    sidebar = page.all("#sidebar")[0]
    assert not sidebar.is_displayed()
    page.click("[data-action=toggle-sidebar]")
    page.until(sidebar.is_displayed, "the list comes")
    page.click("#sidebar [data-action=new]")
    page.until(lambda: not sidebar.is_displayed(), "it goes with a choice")
    page.click("[data-action=toggle-sidebar]")
    page.until(sidebar.is_displayed, "the list comes again")
    page.press(ESCAPE)
    page.until(lambda: not sidebar.is_displayed(), "Escape closes it")
    assert page.focused == "Conversations"


def test_on_a_telephone_buttons_are_large_enough_for_a_finger(page):
    page.narrow()
    page.open()
    page.ask("Hello")
    small = page.run(
        "return [...document.querySelectorAll('button')].filter((e) => e.offsetParent)"
        ".filter((e) => Math.min(e.offsetWidth, e.offsetHeight) < 32).map((e) => e.outerHTML)"
    )
    assert small == []


def test_a_reader_who_scrolled_up_is_not_pulled_down(page, fake):
    lines = "\n\n".join(f"line{number}" for number in range(80))
    fake.script(say(lines), script := say("one two", halt=1))
    page.ask("Long")
    page.send("More")
    page.until(lambda: page.answers[-1] == "one", "the answer begins")
    page.run("document.getElementById('scroll').scrollTop = 0")
    page.one("#to-end")
    script.gate.set()
    page.until(lambda: page.answers[-1] == "one two", "it grows")
    page.idle()
    assert page.run("return document.getElementById('scroll').scrollTop") == 0
    page.click("#to-end")
    page.until(lambda: not page.all("#to-end")[0].is_displayed(), "the button leads to the end")
