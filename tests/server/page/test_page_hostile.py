"""A model may write anything: it stays text. The page's fixture fails a test in which anything ran."""

import pytest

from tests.support.fake_chat_server import Script, Token, say

ATTACKS = {
    "script": "<script>alert('ran')</script>",
    "image": "<img src=x onerror=alert('ran')>",
    "svg": "<svg onload=alert('ran')><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "frame": "<iframe src=\"javascript:alert('ran')\"></iframe>",
    "style": "<style>body { display: none }</style><p style='position: fixed'>x</p>",
    "handler": "<button onclick=alert('ran') autofocus onfocus=alert('ran')>x</button>",
    "link": "[x](javascript:alert('ran')) [y](JaVaScRiPt:alert(1)) [z](data:text/html,<script>x</script>)",
    "hidden scheme": "[x](java\tscript:alert('ran')) [y]( javascript:alert(1)) <javascript:alert(1)>",
    "picture": "![x](http://127.0.0.1:9/x.png) ![y](data:image/svg+xml,<svg onload=alert(1)>)",
    "quoted": "> <b onmouseover=alert('ran')>x</b>\n\n- <img src=x onerror=alert(1)>",
    "table": "| <script>alert(1)</script> | b |\n|---|---|\n| c | <img src=x onerror=alert(1)> |",
    "fence": "```<img src=x onerror=alert('ran')>\n</code></pre><script>alert('ran')</script>\n```",
    "entity": "&lt;script&gt;alert('ran')&lt;/script&gt; &#x3C;img src=x onerror=alert(1)&#x3E;",
    "attribute": '[x](https://example.org/"onmouseover="alert(1)) <https://example.org/"onclick="alert(1)>',
}
DRAWN = "a,blockquote,br,code,del,div,em,h3,h4,h5,h6,hr,li,ol,p,pre,span,strong,table,tbody,td,th,thead,tr,ul"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("tokens", [False, True], ids=["as Markdown", "as tokens"])
def test_nothing_that_a_model_writes_becomes_part_of_the_page(page, fake, attack, tokens):
    fake.script(say(attack))
    if tokens:
        page.click("#tokens-toggle")
    page.ask("Attack")
    foreign = page.run(
        "return [...document.querySelectorAll('.message.assistant .text *')]"
        f".filter((e) => !e.matches('{DRAWN},button,svg,path')).map((e) => e.outerHTML)"
    )
    assert foreign == []
    handlers = page.run(
        "return [...document.querySelectorAll('.text *')].flatMap((e) => e.getAttributeNames())"
        ".filter((name) => name.startsWith('on') || name === 'style' || name === 'src')"
    )
    assert handlers == []
    schemes = page.run("return [...document.querySelectorAll('.text a')].map((a) => a.protocol)")
    assert set(schemes) <= {"http:", "https:"}
    rules = page.run(
        "return [...document.querySelectorAll('.text a')].every((a) => a.rel.includes('noopener'))"
    )
    assert rules is True


@pytest.mark.parametrize("attack", [ATTACKS["script"], ATTACKS["image"]])
def test_what_a_user_types_stays_text_everywhere(page, fake, attack):
    """In the thread, the title, the list, the tree, a notice and the settings."""
    page.ask(attack)
    page.click("[data-action=tree]")
    page.click("dialog [aria-label=Close]")
    page.click("#menu-button")
    page.click("#menu [data-action=delete]")
    page.until(lambda: "is deleted" in page.notice, "the notice names it")
    assert attack in page.notice


def test_links_lead_out_in_a_tab_that_knows_nothing_of_the_page(page, fake):
    fake.script(say("See [the tide](https://example.org/tide_(sea)) and https://example.org/moon."))
    page.ask("Links?")
    links = page.run(
        "return [...document.querySelectorAll('.text a')]"
        ".map((a) => [a.textContent, a.href, a.target, a.rel])"
    )
    rel = "noopener noreferrer nofollow"
    assert links == [
        ["the tide", "https://example.org/tide_(sea)", "_blank", rel],
        ["https://example.org/moon", "https://example.org/moon", "_blank", rel],
    ]


@pytest.mark.parametrize(
    "text", ["w" * 5000, "`" + "c" * 5000 + "`", "| " + "t" * 3000 + " | b |\n|---|---|\n| 1 | 2 |"]
)
@pytest.mark.parametrize("tokens", [False, True], ids=["as Markdown", "as tokens"])
def test_very_long_words_stay_within_the_window(page, fake, text, tokens):
    fake.script(say(text))
    page.narrow()
    if tokens:
        page.click("#tokens-toggle")
    page.ask("Long")
    width, window = page.run("return [document.getElementById('scroll').scrollWidth, innerWidth]")
    assert width <= window


def test_hidden_letters_in_code_are_named_and_copied_as_they_are(page, fake):
    code = "if admin\u202e // \u2066no\u2069:"
    fake.script(say(f"```c\n{code}\n```"))
    page.ask("Code")
    assert page.texts(".hidden-letter") == ["U+202E", "U+2066", "U+2069"]
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("[aria-label='Copy code']")
    page.until(lambda: page.run("return window.copied") == code, "the code is copied")


def test_letters_that_turn_text_around_turn_their_own_paragraph_alone(page, fake):
    fake.script(say("\u202eevil\n\ngood"))
    page.ask("Turn")
    isolated = page.run(
        "return [...document.querySelectorAll('.text p')].map((p) => getComputedStyle(p).unicodeBidi)"
    )
    assert isolated == ["isolate", "isolate"]


def test_hidden_letters_of_a_token_are_named_on_its_card(page, fake):
    fake.script(Script(tokens=[Token("a"), Token("\u202e"), Token("\n")]))
    page.click("#tokens-toggle")
    page.ask("Turn")
    labels = page.run("return [...document.querySelectorAll('#thread .token')].map((t) => t.ariaLabel)")
    assert [label.split(",")[0] for label in labels] == ["a", "⟨U+202E⟩", "↵"]


DEEP = {
    "quotes": ">" * 3000,
    "lists": "- " * 3000,
    "emphasis": "*a _b " * 5000,
    "brackets": "[" * 20000,
    "backticks": "` `` " * 5000,
    "cells": "|" * 5000 + "\n" + "|-" * 5000,
    "fence": "``` " + " " * 20000 + "`",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_text_that_nests_without_end_is_drawn_all_the_same(page, fake, text):
    fake.script(Script(tokens=[Token(text)]))
    page.ask("Deep")
    depth = page.run(
        "let most = 0; for (const e of document.querySelectorAll('.text *')) {"
        " let depth = 0; for (let at = e; at; at = at.parentElement) depth += 1;"
        " most = Math.max(most, depth); }"
        "return most"
    )
    assert depth < 120
