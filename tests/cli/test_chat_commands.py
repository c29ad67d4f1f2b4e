"""The chat's commands for a cut answer, branches, files in messages and the model that is loaded."""

import json
import os
import sys

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from jllama import loading
from jllama.chat.conversation import Conversation
from jllama.cli.terminal import commands, loop
from jllama.cli.terminal.line_editor import ChatCompleter
from jllama.cli.terminal.loaded import quantisation
from jllama.cli.terminal.state import Chat
from jllama.settings import GenerationSettings
from tests.support.screens import PlainScreen
from tests.support.tiny_checkpoint import write_tiny_model

FIVE = GenerationSettings(max_new_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def directory(instruct_dir):
    return instruct_dir


@pytest.fixture(scope="module")
def model(directory):
    return loading.load(str(directory), dtype="float32")


@pytest.fixture
def chat(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Chat(Conversation(model), FIVE, PlainScreen())


def said(chat, text):
    """What the chat says to an input."""
    chat.screen.lines.clear()
    loop.handle(chat, text)
    return "\n".join(chat.screen.lines)


def completed(chat, begun):
    completer = ChatCompleter(
        [*commands.COMMANDS], lambda command: commands.arguments(command, chat.conversation)
    )
    return [found.text for found in completer.get_completions(Document(begun), CompleteEvent())]


# /continue and /redo.


def test_a_cut_answer_goes_on(chat, tmp_path):
    assert said(chat, "Hello").endswith("[max_new_tokens reached: /continue, or /set max_new_tokens=10]")
    first = chat.conversation.messages[-1]
    assert "max_new_tokens reached" in said(chat, "/continue")
    assert chat.screen.begun == ["", first.content]
    assert chat.conversation.turns == 1
    assert chat.conversation.messages[-1].token_ids[:5] == first.token_ids
    assert len(chat.conversation.messages[-1].token_ids) == 10
    assert chat.unsaved_turns() == 1
    said(chat, f"/save {tmp_path}/talk.json")
    said(chat, "/clear")
    said(chat, f"/load {tmp_path}/talk.json")
    said(chat, "/continue")
    assert len(chat.conversation.messages[-1].token_ids) == 15
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1]["cut"] is True


def test_what_ended_by_itself_does_not_go_on(chat):
    assert said(chat, "/continue") == "error: nothing to continue: there is no turn yet"
    said(chat, "Hello")
    said(chat, "/set ignore_eos=off")
    said(chat, f"/set logit_bias={chat.conversation.model.tokenizer.special_id('<|end|>')}=100")
    assert said(chat, "/continue").endswith("[nothing more: complete]")
    assert said(chat, "/continue") == "error: nothing to continue: the last answer ended by itself"


def test_redo_is_also_retry_and_listed_once(chat):
    said(chat, "Hello")
    for name in ("/redo", "/retry"):
        assert "drawn at 0.8" in said(chat, name)
        assert chat.conversation.turns == 1
    helped = said(chat, "/help")
    assert "/retry" not in helped
    for name in ("/continue", "/redo", "/delete NAME", "/model", "/read FILE [TEXT]"):
        assert f"  {name} " in helped


# /set.


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("regex=(", "regex can't be used: "),
        ("grammar=start: (", "grammar can't be used: "),
        ("grammar=root ::= (", "grammar can't be used: "),
        ('json_schema={"type": "no such"}', "json_schema can't be used: "),
        ("json_schema={", "json_schema is no JSON"),
    ],
)
def test_what_no_answer_can_match_is_refused_at_once(chat, typed, words):
    pytest.importorskip("llguidance")
    before = chat.settings = GenerationSettings()
    assert said(chat, f"/set {typed}").startswith(f"error: {words}")
    assert chat.settings is before
    assert said(chat, "/set regex=[ab]{3}") == "regex=[ab]{3}"
    assert said(chat, "/set regex=none") == "regex=none"


def test_without_the_library_nothing_is_set_that_must_match(chat, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    before = chat.settings = GenerationSettings()
    for typed in ("regex=a{7}", 'json_schema={"const": 7}', 'grammar=start: "a" "b"', "json_object=on"):
        assert "pip install jllama[grammar]" in said(chat, f"/set {typed}")
    assert chat.settings is before


# /delete.


def test_a_branch_is_deleted_but_not_the_current_one(chat):
    said(chat, "Hello")
    said(chat, "/fork other")
    said(chat, "Left")
    assert said(chat, "/delete other").startswith("error: 'other' is the current branch: switch")
    assert said(chat, "/delete") == "error: which branch? /delete NAME; of main"
    assert "did you mean 'main'" in said(chat, "/delete mian")
    assert completed(chat, "/delete ") == ["main"]
    said(chat, "/fork third")
    assert said(chat, "/delete other") == "deleted other"  # third has its turns
    said(chat, "/switch main")
    lost = "1 turn is not saved (/save FILE): /delete third again drops it"
    assert said(chat, "/delete third") == lost
    assert said(chat, "/delete third") == "deleted third, with 1 turn that no other branch has"
    assert list(chat.conversation.branches) == ["main"]
    assert said(chat, "/delete") == "error: which branch? /delete NAME; there is no other one"
    assert said(chat, "/delete main") == "error: 'main' is the only branch: /clear begins anew"
    assert said(chat, "Go on")
    assert chat.conversation.turns == 2
    said(chat, "/fork other")
    assert chat.conversation.turns == 2


def test_a_deleted_branch_leaves_the_cache_to_the_others(chat):
    said(chat, "Hello")
    session = chat.conversation.branch.session
    said(chat, "/fork other")
    said(chat, "/delete main")
    before = session.snapshot().keys[0]
    del session
    said(chat, "More")
    assert before.is_deleted()  # it was not copied: nobody else had it


# /model.


def test_words_behind_a_command_that_takes_none_are_refused(chat):
    said(chat, "Hello")
    for command in ("/redo", "/clear", "/continue", "/tree", "/exit", "/tokens"):
        assert said(chat, f"{command} now") == f"error: {command} takes nothing behind it: 'now'"
    assert said(chat, "/model llama3").endswith("for another model start another chat")
    assert len(chat.conversation.messages) == 2
    assert "taken back" in said(chat, "/undo 1")


def test_the_model_is_described(chat, directory):
    said(chat, "Hello")
    lines = dict(line.split(maxsplit=1) for line in said(chat, "/model").splitlines())
    used = chat.conversation.context_used
    assert list(lines) == [
        *("model", "family", "parameters", "dtype", "quantised", "context", "memory", "device")
    ]
    assert lines["model"] == str(directory)
    assert lines["family"].startswith("llama, ")
    assert lines["context"] == f"256 tokens, {used} in use (the model: 256)"
    assert (lines["dtype"], lines["quantised"]) == ("float32", "no")
    assert lines["memory"].startswith("weights 0 MiB, cache 0 MiB")


@pytest.mark.parametrize(("mode", "wanted"), [("int8", {"8 bit"}), ("int4", {"4 bit", "8 bit"})])
def test_the_stored_bits_are_named(tmp_path, mode, wanted):
    directory = write_tiny_model(tmp_path / "tiny", intermediate_size=64)  # whole groups of 32
    quantised = loading.load(str(directory), dtype="float32", quantize=mode)
    shares = dict(share.rsplit(" ", 1) for share in quantisation(quantised).split(", "))
    assert wanted <= set(shares)
    assert 98 <= sum(int(share[:-1]) for share in shares.values()) <= 101


# /read.


def test_a_file_goes_before_the_next_message(chat, tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert said(chat, "/read notes.txt") == "notes.txt: 8 tokens\nbefore the next message: notes.txt"
    assert chat.conversation.turns == 0
    said(chat, "What is it?")
    assert chat.conversation.messages[0].content == "one\ntwo\n\nWhat is it?"
    said(chat, "And now?")
    assert chat.conversation.messages[2].content == "And now?"


def test_a_file_goes_with_the_words_behind_its_name(chat, tmp_path):
    (tmp_path / "my notes.txt").write_text("one")
    (tmp_path / "b").write_text("two\n")
    shown = said(chat, "/read my notes.txt What  is it?")
    assert shown.startswith("my notes.txt: 3 tokens\n")
    assert "before the next message" not in shown
    assert chat.conversation.messages[-2].content == "one\n\nWhat  is it?"
    said(chat, "/read b")
    said(chat, "/read 'my notes.txt' Both?\nYes")
    assert chat.conversation.messages[-2].content == "two\n\none\n\nBoth?\nYes"
    assert chat.attached == []
    said(chat, f'/read "{tmp_path}/b" x')
    assert chat.conversation.messages[-2].content == "two\n\nx"
    assert completed(chat, "/read my") == [" notes.txt"]


def test_what_waits_is_shown_and_dropped(chat, tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    said(chat, "/read a")
    assert said(chat, "/read b").endswith("before the next message: a, b")
    assert said(chat, "/read") == "before the next message: a, b"
    assert said(chat, "/read -") == "before the next message: (no file)"
    said(chat, "/read a")
    said(chat, "/clear")
    said(chat, "Hello")
    assert chat.conversation.messages[0].content == "Hello"


def test_files_wait_on_if_the_message_could_not_be_sent(chat, tmp_path):
    (tmp_path / "a").write_text("one " * 50)
    said(chat, "/read a")
    assert said(chat, "word " * 20).startswith("error: the message is too long")
    assert [file.name for file in chat.attached] == ["a"]
    said(chat, "Hello")
    assert chat.conversation.messages[0].content.endswith("one \n\nHello")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x7fELF\x02\x01\0\0", "is no text: it holds null bytes"),
        ("Grüße".encode("latin-1"), "is no text in UTF-8 (byte 2): convert it"),
        (b"x" * 20_000 + bytes(1) + b"x", "has more than 8,192 bytes"),  # no more of it is read than that
        (b"x" * 99 + bytes(20_000), "is no text: it holds null bytes"),
        (b"x" * 300, "has 300 tokens: too long for the context of 256; give a part of it"),
        (b"x" * 10_000, "has more than 8,192 bytes: too long for the context"),
    ],
)
def test_what_is_no_text_for_the_model_is_refused(chat, tmp_path, content, wanted):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    answer = said(chat, f"/read {path} What is it?")
    assert answer.startswith("error: ")
    assert wanted.format(path=path) in answer
    assert chat.attached == []
    assert chat.conversation.turns == 0


def test_what_is_no_file_is_refused(chat, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a FIFO where a file is due" in said(chat, "/read pipe")
    assert "is a directory where a file is due" in said(chat, f"/read {tmp_path}")
    assert "is a device where a file is due" in said(chat, "/read /dev/zero")
    assert "there is no such home directory" in said(chat, "/read ~nobody-of-that-name/x")
    for text in ("/read a\0b", f"/read {'n' * 5000}"):
        assert said(chat, text).startswith("error: ")


def test_two_files_that_do_not_fit_together(chat, tmp_path):
    (tmp_path / "a").write_text("x" * 150)
    said(chat, "/read a")
    assert "too long behind the other files for the context of 256" in said(chat, "/read a")
    assert said(chat, "Hello").endswith("/set max_new_tokens=10]")
