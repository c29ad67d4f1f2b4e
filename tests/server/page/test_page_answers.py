"""Answers as they come: streaming, stop, another one, editing, branches, thoughts."""

import pytest

from tests.support.fake_chat_server import MODEL, Script, Token, refuse, say


def step(page, name):
    page.click(f"#thread [aria-label='{name}']")


def last_action(page, name):
    """A button of the last message that has it."""
    button = page.all(f"#thread [aria-label='{name}']")[-1]
    page.run("arguments[0].scrollIntoView()", button)
    page.hover(button)
    button.click()


def test_an_answer_streams_and_is_whole_at_the_end(page, fake):
    fake.script(script := say("one two three four", halt=2))
    page.send("Count")
    page.until(lambda: page.answers == ["one two"], "the first words show before the end")
    assert page.busy
    assert page.run("return document.querySelector('.message.assistant').classList.contains('busy')")
    script.gate.set()
    page.idle()
    assert (page.questions, page.answers) == (["Count"], ["one two three four"])


def test_a_request_asks_for_all_that_the_page_shows(page, fake):
    page.ask("Hello")
    (body,) = fake.requests
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert body["model"] == MODEL
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    assert "continue_final_message" not in body


def test_the_next_question_stands_behind_the_whole_conversation(page, fake):
    page.ask("Hello")
    page.ask("And now?")
    roles = [message["role"] for message in fake.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert fake.requests[1]["messages"][1]["content"] == "Hello there."


def test_tokens_are_counted_and_the_prompt_too(page, fake):
    fake.script(say("one two three four five six"))
    page.ask("Count")
    (stats,) = page.texts(".stats")
    assert "6 tokens" in stats
    assert "prompt 11" in stats
    page.until(lambda: page.texts("#context") == ["17 of 2,048 tokens"], "the context's use shows")


def test_the_rate_shows_where_tokens_came_one_after_another(page):
    """Eleven tokens, a tenth of a second from the first to the last: the ten after the first, by that."""
    expression = "m.rateOf({ first: 1000, last: 1100, seen: 11, begun: 1 })"
    assert page.call("data/answer.js", expression) == 100
    assert page.call("data/answer.js", "m.rateOf({ first: 1, last: 1, seen: 4, begun: 4 })") is None


def test_stop_keeps_what_came_and_the_answer_can_go_on(page, fake):
    fake.script(say("one two three", halt=2), say(" three four"))
    page.send("Count")
    page.until(lambda: page.answers == ["one two"], "two words come")
    page.click("#stop")
    page.idle()
    assert page.answers == ["one two"]
    page.click(".word-button")
    page.until(lambda: page.answers == ["one two three four"], "the rest stands behind it")
    body = fake.requests[1]
    assert body["messages"][-1] == {"role": "assistant", "content": "one two"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_stop_before_the_first_word_leaves_the_question(page, fake):
    fake.script(say("never", halt=0), say("At last."))
    page.send("Well?")
    page.until(lambda: fake.requests, "the request is there")
    page.click("#stop")
    page.idle()
    assert (page.questions, page.answers) == (["Well?"], [])
    page.click(".word-button")
    page.until(lambda: page.answers == ["At last."], "the same question gets its answer")


def test_an_answer_cut_at_the_most_tokens_says_so(page, fake):
    fake.script(say("and so", finish="length"))
    page.ask("Tell")
    assert "cut at the most tokens" in page.texts(".stats")[0]
    assert page.texts(".word-button") == ["Continue"]


def test_another_answer_stands_beside_the_first_and_both_can_be_seen(page, fake):
    fake.script(say("First."), say("Second."))
    page.ask("Say")
    last_action(page, "Another answer")
    page.until(lambda: page.answers == ["Second."], "the second answer shows")
    page.idle()
    assert fake.requests[0]["messages"] == fake.requests[1]["messages"]
    step(page, "Version before")
    assert page.answers == ["First."]
    step(page, "Version after")
    assert page.answers == ["Second."]


def test_a_switch_of_branches_asks_the_server_nothing(page, fake):
    fake.script(say("First."), say("Second."))
    page.ask("Say")
    last_action(page, "Another answer")
    page.until(lambda: page.answers == ["Second."], "the second answer shows")
    page.idle()
    step(page, "Version before")
    assert len(fake.requests) == 2


def test_an_edited_question_is_asked_and_the_old_branch_stays_whole(page, fake):
    fake.script(say("A1"), say("A2"), say("B1"))
    page.ask("Q1")
    page.ask("Q2")
    page.hover(page.all(".message.user")[0])
    page.click("[aria-label='Edit and ask again']")
    page.one(".editor-text").send_keys(" anew")
    page.click(".editor .main-button")
    page.until(lambda: page.answers == ["B1"], "the edited question has its answer")
    assert page.questions == ["Q1 anew"]
    assert fake.requests[2]["messages"] == [{"role": "user", "content": "Q1 anew"}]
    page.idle()
    step(page, "Version before")
    assert (page.questions, page.answers) == (["Q1", "Q2"], ["A1", "A2"])


def test_an_edited_answer_is_what_the_next_question_stands_behind(page, fake):
    page.ask("Hello")
    last_action(page, "Edit the answer")
    editor = page.one(".editor-text")
    editor.clear()
    editor.send_keys("Good day.")
    page.click(".editor .main-button")
    assert page.answers == ["Good day."]
    assert len(fake.requests) == 1
    page.ask("More")
    assert fake.requests[1]["messages"][1]["content"] == "Good day."


def test_escape_leaves_the_editor_and_changes_nothing(page, fake):
    page.ask("Hello")
    last_action(page, "Edit and ask again")
    page.one(".editor-text").send_keys(" nonsense")
    page.press("\ue00c")
    assert page.questions == ["Hello"]
    assert page.all(".editor") == []
    assert len(fake.requests) == 1


def test_the_tree_shows_all_branches_and_leads_to_each(page, fake):
    fake.script(say("First."), say("Second."), say("Third."))
    page.ask("Say")
    last_action(page, "Another answer")
    page.until(lambda: page.answers == ["Second."], "the second answer shows")
    page.ask("More")
    page.click("[data-action=tree]")
    assert page.texts("[role=treeitem]") == ["Say", "First.", "Second.", "More", "Third."]
    chosen = page.run(
        "return [...document.querySelectorAll('[role=treeitem][aria-selected=true]')].map(e => e.textContent)"
    )
    assert chosen == ["Say", "Second.", "More", "Third."]
    page.all("[role=treeitem]")[1].click()
    page.until(lambda: page.answers == ["First."], "the first branch shows")


def test_thoughts_fold_away_once_the_answer_begins(page, fake):
    fake.script(say("Four.", reasoning="Two and two make four."))
    page.ask("2+2?")
    assert page.answers == ["Four."]
    assert page.texts(".reasoning-text") == ["Two and two make four."]
    assert page.run("return document.querySelector('details.reasoning').open") is False
    page.ask("Sure?")
    assert fake.requests[1]["messages"][1] == {"role": "assistant", "content": "Four."}


def test_thoughts_that_were_cut_go_on_and_stand_before_what_goes_on(page, fake):
    """As models with thoughts write them: between tags, which are open while no answer has begun."""
    fake.script(
        say("never", halt=0, reasoning="Two and"), say("Four", reasoning=" two.", finish="length"), say(".")
    )
    page.send("2+2?")
    page.until(lambda: page.texts(".reasoning-text") == ["Two and"], "thoughts come")
    page.click("#stop")
    page.idle()
    page.click(".word-button")
    page.until(lambda: page.answers == ["Four"] and not page.busy, "the answer comes behind them")
    assert page.texts(".reasoning-text") == ["Two and two."]
    page.click(".word-button")
    page.until(lambda: page.answers == ["Four."], "it goes on")
    begun = [body["messages"][-1]["content"] for body in fake.requests[1:]]
    assert begun == ["<think>\nTwo and", "<think>\nTwo and two.\n</think>\n\nFour"]


def test_an_edit_while_an_answer_comes_stops_that_first(page, fake):
    fake.script(say("one two", halt=1), say("Anew."))
    page.send("Count")
    page.until(lambda: page.answers == ["one"], "the first word comes")
    page.hover(page.all(".message.user")[0])
    page.click("[aria-label='Edit and ask again']")
    page.one(".editor-text").send_keys("!")
    page.click(".editor .main-button")
    page.until(lambda: page.answers == ["Anew."] and not page.busy, "the edited question has its answer")
    page.click("[aria-label='Version before']")
    assert page.answers == ["one"]


def test_an_answer_of_nothing_says_so(page, fake):
    fake.script(Script())
    page.ask("Hello")
    assert page.answers == ["(an empty answer)"]


def test_a_screen_reader_hears_blocks_not_letters(page, fake):
    words = ["First", " block.", "\n\n", "Second", " block."]
    fake.script(script := Script(tokens=[Token(word) for word in words], halt=4))
    page.send("Say")
    page.until(lambda: page.live() == ["The answer begins.", "First block."], "a whole block is told")
    script.gate.set()
    page.idle()
    told = ["The answer begins.", "First block.", "Second block.", "The answer is complete."]
    page.until(lambda: page.live() == told, "the end is told")
    assert page.run("return document.getElementById('live').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize(("given", "sent"), [({"temperature": "0.5", "seed": "7"}, (0.5, 7))])
def test_settings_and_the_system_prompt_are_sent(page, fake, given, sent):
    page.click("[data-action=settings]")
    page.one("#system-prompt").send_keys("Be brief.")
    for name, value in given.items():
        page.one(f"#setting-{name}").send_keys(value)
    page.one("#setting-max_new_tokens").send_keys("12")
    page.click("dialog [aria-label=Close]")
    page.ask("Hello")
    (body,) = fake.requests
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (*sent, 12)
    assert "top_p" not in body
    assert page.texts(".system") == ["Be brief."]
    last_action(page, "Another answer")
    page.until(lambda: len(fake.requests) == 2, "another answer is asked for")
    assert fake.requests[1]["seed"] == 8  # the same seed would give the same answer


def test_a_setting_out_of_range_is_told_and_not_sent(page, fake):
    page.click("[data-action=settings]")
    field = page.one("#setting-top_p")
    field.send_keys("7")
    page.one("#setting-top_k").click()
    page.until(lambda: field.get_attribute("aria-invalid") == "true", "the field is marked")
    assert "from 0.01 to 1" in page.one("#setting-top_p-hint").text
    page.click("dialog [aria-label=Close]")
    page.ask("Hello")
    assert "top_p" not in fake.requests[0]


def test_two_conversations_answer_at_once(page, fake):
    fake.script(slow := say("slow answer", halt=1), say("quick answer"))
    page.send("Slow?")
    page.until(lambda: page.answers == ["slow"], "the first one begins")
    page.click("[data-action=new]")
    page.ask("Quick?")
    assert page.answers == ["quick answer"]
    slow.gate.set()
    page.until(lambda: page.all(".row.busy") == [], "both are at their ends")
    page.click(".row:last-child .conversation")
    assert page.answers == ["slow answer"]


def test_errors_do_not_take_the_old_answer(page, fake):
    fake.script(say("First."), refuse(500, "the engine failed"))
    page.ask("Say")
    last_action(page, "Another answer")
    page.until(lambda: "the engine failed" in page.notice, "the error is told")
    assert page.answers == ["First."]
