"""The token view: tints, alternatives, and the fork at any of them."""

import math

import pytest

from tests.support.fake_chat_server import Script, Token, say

SURE, TORN = (
    Token("The"),
    Token(" cat", math.log(0.4), ((" dog", math.log(0.35)), ("<|im_end|>", math.log(0.05)))),
)
REST = Token(" sat.", math.log(0.02), ((" ran.", math.log(0.9)),))


@pytest.fixture
def talk(page, fake):
    """A conversation in the token view, of three tokens."""
    fake.script(Script(tokens=[SURE, TORN, REST]), say(" barked."))
    page.click("#tokens-toggle")
    page.ask("Who?")
    return page


def tints(page):
    return page.run("return [...document.querySelectorAll('#thread .token')].map((t) => t.classList[1])")


def colour(page, place):
    return page.run(
        "return getComputedStyle(document.querySelectorAll('#thread .token')[arguments[0]]).backgroundColor",
        place,
    )


def test_each_token_is_tinted_by_its_probability(talk):
    assert tints(talk) == ["tint-0", "tint-3", "tint-6"]
    assert len({colour(talk, place) for place in range(3)}) == 3
    assert talk.run("return document.querySelector('#legend').hidden") is False


def test_the_view_is_a_switch_and_the_text_the_same(talk):
    assert talk.answers == ["The cat sat."]
    talk.click("#tokens-toggle")
    assert talk.answers == ["The cat sat."]
    assert talk.tokens == []
    talk.click("#tokens-toggle")
    assert len(talk.tokens) == 3


def test_a_pointer_on_a_token_shows_what_else_could_stand_there(talk):
    talk.hover(talk.tokens[1])
    card = talk.one("#token-card")
    rows = talk.texts("#token-card .share-text")
    assert rows == ["␣cat", "␣dog", "end of the answer"]
    assert talk.texts("#token-card .share-number") == ["40 %", "35 %", "5.0 %"]
    assert "All others: 20 %" in card.text


def test_the_card_goes_when_the_pointer_does(talk):
    talk.hover(talk.tokens[1])
    talk.one("#token-card")
    talk.hover(talk.one("#title"))
    talk.until(lambda: not talk.all("#token-card")[0].is_displayed(), "the card goes")


def test_an_alternative_forks_the_conversation_and_goes_on(talk, fake):
    talk.hover(talk.tokens[1])
    talk.click("#token-card [aria-label^='Go on with ␣dog']")
    talk.until(lambda: talk.answers == ["The dog barked."], "the other answer goes on")
    body = fake.requests[1]
    assert body["messages"] == [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "The dog"},
    ]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    talk.idle()
    assert talk.texts(".switcher span") == ["2 / 2"]
    talk.click("[aria-label='Version before']")
    assert talk.answers == ["The cat sat."]


def test_the_model_gets_its_own_tokens_back(page, fake):
    """In the conversation, before a fork, and before what goes on; unless another model runs since."""
    first, second = Token("One", number=10), Token(" two", number=20)
    fake.script(Script(tokens=[first, second], finish="length"), Script(tokens=[Token(".", number=30)]))
    page.click("#tokens-toggle")
    page.ask("Count")
    page.hover(page.tokens[1])
    page.click("#token-card [aria-label^='Go on with ␣other']")
    page.until(lambda: page.answers == ["One other."] and not page.busy, "the fork goes on")
    page.ask("More")
    sent = [body["messages"][-1 - at] for at, body in ((0, fake.requests[1]), (1, fake.requests[2]))]
    assert [message["token_ids"] for message in sent] == [[10, 21], [10, 21, 30]]
    fake.models[0]["created"] = 1
    page.open()
    page.ask("Again")
    assert all("token_ids" not in message for message in fake.requests[3]["messages"])


def test_a_fork_keeps_the_tokens_before_it_and_marks_its_own(talk):
    talk.hover(talk.tokens[1])
    talk.click("#token-card [aria-label^='Go on with ␣dog']")
    talk.idle()
    talk.until(lambda: len(talk.tokens) == 4, "all tokens show")
    assert tints(talk)[:2] == ["tint-0", "tint-3"]
    assert talk.texts(".token.forked") == [" dog"]
    talk.hover(talk.tokens[1])
    assert talk.texts("#token-card .share-text") == ["␣cat", "␣dog", "end of the answer"]


def test_a_fork_of_a_fork(talk, fake):
    for name in ("␣dog", "␣cat"):
        talk.hover(talk.tokens[1])
        talk.click(f"#token-card [aria-label^='Go on with {name}']")
        talk.idle()
    assert [body["messages"][-1]["content"] for body in fake.requests[1:]] == ["The dog", "The cat"]
    assert talk.texts(".switcher span") == ["3 / 3"]


def test_the_end_as_an_alternative_ends_the_answer_and_asks_nothing(talk, fake):
    talk.hover(talk.tokens[1])
    talk.click("#token-card [aria-label^='Go on with end of the answer']")
    talk.until(lambda: talk.answers == ["The"], "the answer ends before the token")
    assert len(fake.requests) == 1
    assert talk.texts(".word-button") == []


def test_arrows_enter_and_escape_are_enough(talk, fake):
    talk.run("document.querySelector('.message.user').focus()")
    talk.tab_to("The, 95 %")
    talk.press("\ue014")  # →
    assert talk.focused == "␣cat, 40 %"
    talk.one("#token-card")
    talk.press("\ue015")  # ↓ into the card
    assert talk.focused.startswith("Go on with ␣dog")
    talk.press("\ue00c")  # Escape: back
    assert talk.focused == "␣cat, 40 %"
    assert not talk.all("#token-card")[0].is_displayed()
    talk.press("\ue007", "\ue007")  # Enter opens, Enter chooses
    talk.until(lambda: len(fake.requests) == 2, "the fork is asked for")
    assert fake.requests[1]["messages"][-1]["content"] == "The dog"


def test_a_token_that_ends_within_a_character_is_no_place_to_go_on_from(page, fake):
    """An emoji of four bytes in two tokens: the first alone is no text."""
    whole = "🦙".encode()
    first = Token("\ufffd", -0.5, ((" llama", -1.0),), whole[:2])
    tokens = [Token("A "), Token("🦙", -0.1, ((" x", -4.0),))]
    fake.script(Script(tokens=tokens))
    parts = page.call(
        "data/tokens.js",
        "m.pieces(a[0])",
        [_short(Token("A ")), _short(first), _short(Token("", data=whole[2:]))],
    )
    assert parts == ["A ", "", "🦙"]
    assert page.call("data/tokens.js", "m.spelled(a[0])", [_short(Token("A ")), _short(first)]) is None


def _short(token):
    return {"t": token.text, "p": token.logprob} | ({"b": list(token.data)} if token.data else {})


@pytest.mark.parametrize(
    ("content", "kept"),
    [("cat sat", ["cat", " sat"]), ("sat", ["sat"]), ("<t> cat", ["<t>", " cat"]), ("dog", None), ("", None)],
)
def test_only_tokens_that_spell_the_answer_are_shown(page, content, kept):
    """Marks of thoughts stand before it, parts of a stop string behind."""
    tokens = [{"t": text, "p": -1} for text in ("<t>", " cat", " sat", "###")]
    found = page.call("data/tokens.js", "m.aligned(a[0], a[1])", tokens, content)
    assert (found and [token["t"] for token in found]) == kept


def test_an_answer_without_tokens_is_shown_as_text(page, fake):
    page.ask("Hello")
    page.hover(page.all(".message.assistant")[0])
    page.click("[aria-label='Edit the answer']")
    page.one(".editor-text").send_keys(" Good day.")
    page.click(".editor .main-button")
    page.click("#tokens-toggle")
    assert page.tokens == []
    assert page.answers == ["Hello there. Good day."]


def test_tokens_grow_while_they_come(page, fake):
    fake.script(script := say("one two three", halt=2))
    page.click("#tokens-toggle")
    page.send("Count")
    page.until(lambda: len(page.tokens) == 2, "two tokens show")
    first = page.tokens[0]
    script.gate.set()
    page.until(lambda: len(page.tokens) == 3, "the third one shows")
    assert page.tokens[0] == first  # the very element: nothing is drawn twice
