"""The parts of a conversation, each alone: branches, transcripts, sampling, files; no model."""

import json
import os
import stat
from types import SimpleNamespace

import msgspec
import pytest

from jllama.answer import Result
from jllama.chat.archive import archive, document
from jllama.chat.archive.document import check_overwrite, read_document, write_document
from jllama.chat.archive.files import replacing, reported, resolved
from jllama.chat.branches import MAX_BRANCHES, Branches, Message, Round, build_tree, check_name
from jllama.chat.generation_config import conversation_sampling
from jllama.chat.overflow import fit
from jllama.chat.transcript import PLAIN, Transcript, _drawn_id, is_cut, kept_ids
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.text.template.chat_template import ChatTemplate
from jllama.tools.definitions import Call


class NoSession:
    """Stands for a cache."""

    def fork(self):
        return NoSession()


def turn(question, answer="x"):
    return (Message("user", question), Message("assistant", answer))


def test_a_message_for_templates():
    assert Message("user", "a").as_dict() == {"role": "user", "content": "a"}
    with_ids = Message("assistant", "a", (1, 2), cut=True).as_dict()
    assert with_ids == {"role": "assistant", "content": "a", "token_ids": [1, 2]}
    assert Message("assistant", "", ()).as_dict()["token_ids"] == []


@pytest.mark.parametrize("name", ["a", "x" * 40, "ü-1_!", "/"])
def test_a_name_of_a_branch(name):
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 41, "a b", "a\tb", "a\x1b", "\u200b", "a\u3000"])
def test_no_name_of_a_branch(name):
    with pytest.raises(JllamaError, match="give 1 to 40 letters without blanks"):
        check_name(name)


def test_branches_are_born_at_the_current_one_and_know_only_their_own():
    talk = Branches(NoSession())
    talk.branch.messages, talk.branch.system, talk.branch.dropped = turn("a") + turn("b"), "kind", 1
    talk.fork("other")
    assert (talk.current, list(talk.branches), talk.turns) == ("other", ["main", "other"], 2)
    assert (talk.branch.system, talk.branch.dropped) == ("kind", 1)
    assert talk.branch.session is not talk.branches["main"].session
    assert talk.branch.streams is not talk.branches["main"].streams
    talk.branch.messages += turn("c")
    talk.branch.system = None
    talk.switch("main")
    assert (talk.turns, talk.branch.system) == (2, "kind")
    with pytest.raises(JllamaError, match="there is a branch 'other' already"):
        talk.fork("other")
    with pytest.raises(
        JllamaError, match=r"no branch 'othr' \(did you mean 'other'\?\); there are main, other"
    ):
        talk.switch("othr")
    assert talk.current == "main"
    with pytest.raises(JllamaError, match=r"no branch 'othr' \(did you mean 'other'\?\)"):
        talk.delete("othr")
    lost = talk.delete("other")
    assert [question.content for question, _ in lost] == ["c"]
    assert list(talk.branches) == ["main"]


def test_a_branch_is_given_by_its_name_or_by_itself():
    talk = Branches(NoSession())
    main = talk.branch
    talk.fork("other")
    other = talk.branch
    with pytest.raises(JllamaError, match="'other' is the current branch"):
        talk.delete(talk.branch)
    talk.switch(main)
    assert talk.current == "main"
    assert talk.delete(other) == ()
    for call in (talk.switch, talk.delete):
        with pytest.raises(
            JllamaError, match="is none of the conversation's, or was deleted; there are main"
        ):
            call(other)
    assert list(talk.branches) == ["main"]


@pytest.mark.parametrize("given", [5, None, [], b"main", True, {}])
def test_what_gives_no_branch_is_named(given):
    talk, kind = Branches(NoSession()), type(given).__name__
    for call in (talk.switch, talk.delete):
        with pytest.raises(JllamaError, match=f"give a branch by its name, not by a {kind}; there are main"):
            call(given)
    with pytest.raises(JllamaError, match=f"a branch's name must be a text, not {kind}"):
        talk.fork(given)
    assert list(talk.branches) == ["main"]


def test_what_is_being_said_ends_with_its_branch():
    talk, said = Branches(NoSession()), []

    def answer():
        try:
            yield from "ab"
        finally:
            said.append("ended")

    talk.fork("other")
    stream = talk.branch.streams.run(answer())
    assert next(stream) == "a"
    talk.switch("main")
    assert said == []
    talk.delete("other")
    assert said == ["ended"]
    stream = talk.branch.streams.run(answer())
    assert next(stream) == "a"
    talk.fork("third")  # the cache is shared from here on
    assert said == ["ended"] * 2


def test_turns_are_lost_that_no_other_branch_has():
    """Whichever has them: the current one, or one that sleeps."""
    talk, (a, b, c) = Branches(NoSession()), map(turn, "abc")
    for name, turns in (("one", (a, b)), ("two", (a, b, c)), ("three", (a,))):
        talk.fork(name)
        talk.branch.messages = tuple(message for pair in turns for message in pair)
    talk.switch("main")
    assert talk.delete("one") == ()
    assert talk.delete("two") == (b, c)
    assert talk.delete("three") == (a,)


def test_there_are_a_hundred_branches_at_most():
    talk = Branches(NoSession())
    for number in range(MAX_BRANCHES - 1):
        talk.fork(f"b{number}")
    assert len(talk.branches) == MAX_BRANCHES == 100
    with pytest.raises(JllamaError, match="there are 100 branches"):
        talk.fork("more")
    assert talk.current == f"b{MAX_BRANCHES - 2}"


def test_a_tree_joins_what_is_the_same_and_nothing_else():
    a, b, c = turn("a"), turn("b"), turn("c")
    half = (b[0], Message("assistant", "x"))  # the same question, another answer
    tree = build_tree({"1": (a, b), "2": (a, half), "3": (a, b, c), "4": (a,)})
    assert (tree.turns, tree.ends) == ((a,), ("4",))
    one, two = tree.children
    assert (one.turns, one.ends, two.turns, two.ends) == ((b,), ("1",), (half,), ("2",))
    (three,) = one.children
    assert (three.turns, three.ends, three.children, two.children) == ((c,), ("3",), (), ())
    twins = build_tree({"x": (a,), "y": (a,)})
    assert (twins.turns, twins.ends, twins.children) == ((a,), ("x", "y"), ())


# The context is full.


def lengths(*sizes):
    return lambda count: [0] * sizes[count]


@pytest.mark.parametrize(
    ("sizes", "dropped", "wanted", "gone"),
    [
        ((75, 50, 20), 0, 25, 0),  # exactly full
        ((76, 50, 20), 0, 25, 1),  # 100 less 25 for the answer and 25 for the next turns
        ((76, 51, 20), 0, 25, 2),
        ((76, 51, 51), 0, 25, 2),  # there is no more to leave out
        ((76, 50, 20), 1, 25, 1),
        ((95, 70, 20), 0, 5, 0),
        ((96, 70, 20), 0, 5, 1),
        ((96, 71, 20), 0, 5, 2),
        ((75, 50, 20), 0, 90, 0),  # a quarter is all that an answer is promised
        ((76, 50, 20), 0, 90, 1),
        ((76, 51, 20), 0, 26, 2),
    ],
)
def test_how_many_turns_are_left_out(sizes, dropped, wanted, gone):
    prompt, left_out = fit(
        lengths(*sizes), turns=2, dropped=dropped, wanted=wanted, size=100, policy="drop_oldest"
    )
    assert (len(prompt), left_out) == (sizes[gone], gone)


@pytest.mark.parametrize(("size", "refused"), [(99, False), (100, True)])
def test_where_nothing_may_go_an_answer_has_a_token_at_least(size, refused):
    def ask(dropped):
        return fit(lengths(size, size), turns=1, dropped=dropped, wanted=9, size=100, policy="stop")

    if refused:
        with pytest.raises(JllamaError, match=r"would have 100 tokens of 100; undo turns, clear it, or drop"):
            ask(0)
        with pytest.raises(JllamaError, match=r"^the message is too long: 100 tokens, the context has 100"):
            ask(1)
    else:
        assert (ask(0)[1], ask(1)[1]) == (0, 1)


# How the model reads messages.


class Letters:
    """A tokenizer with an id for each character; 1 begins, 2 and 3 end a text."""

    bos_id, eos_ids, chat_template = 1, frozenset({2, 3}), None

    def encode(self, text, add_special=True, begins=True):
        first = [1] if add_special else [*map(ord, "▁")] * begins  # a text's first word has a blank
        return [*first, *map(ord, text)]

    def compile_template(self, source):
        return ChatTemplate(source)

    def encode_chat(self, messages, template):
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        return [*map(ord, template.render(plain))]

    def turn_ends(self, template):
        return ("<end>",) if "<end>" in template.source else ()

    def special_id(self, text):
        return {"<end>": 3}.get(text)

    def stream(self, prompt, shown=()):
        """Two ids of 200 are one character."""
        held = []

        def push(token):
            if token < 200:
                return chr(token)
            held.append(token)
            return "é" if len(held) % 2 == 0 else ""

        return SimpleNamespace(push=push, flush=lambda: "\ufffd" * (len(held) % 2))


TALK = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes"), ("user", "Why?")]
TALK = [{"role": role, "content": content} for role, content in TALK]


def read_as(source, tokenizer=None):
    transcript = Transcript(tokenizer or Letters(), source)
    ids = transcript.encode(TALK)
    return transcript, "".join(map(chr, ids[1:] if ids[0] == 1 else ids)), ids[0] == 1


@pytest.mark.parametrize(
    ("source", "text", "stops"),
    [
        (None, "Be kind.\n\nUser: Hi\nAI: Yes\nUser: Why?\nAI:", ("\nUser:",)),
        ("Q {user}\\nA {ai}\\n\\n", "Be kind.\n\nQ Hi\nA Yes\n\nQ Why?\nA", ("\n\nQ",)),
        ("{user}\\t{ai} ", "Be kind.\n\nHi\tYes Why?\t", ()),
        ("[{user}] {ai}.", "Be kind.\n\n[Hi] Yes.[Why?]", (".[",)),
        ('"{user}"{ai}é', 'Be kind.\n\n"Hi"Yesé"Why?"', ('é"',)),
        (
            "{% for m in messages %}{{ m.content }}<end>{% endfor %}",
            "Be kind.<end>Hi<end>Yes<end>Why?<end>",
            ("<end>",),
        ),
        ("{{ messages[0].content }}", "Be kind.", ()),
    ],
)
def test_a_talk_as_the_model_reads_it(source, text, stops):
    transcript, read, begins = read_as(source)
    assert (read, transcript.stops, transcript.source) == (text, stops, source)
    is_format = source is None or "{user}" in source
    assert begins == is_format
    assert transcript.turn_ends == (() if is_format else stops)


def test_the_models_own_template_is_taken_and_its_ends_count():
    tokenizer = Letters()
    tokenizer.chat_template = ChatTemplate("{{ messages[1].content }}<end>")
    tokenizer.encode_chat = lambda messages, template: [] if template is None else 1 / 0
    transcript = Transcript(tokenizer)
    assert (transcript.source, transcript.stops, transcript.turn_ends) == (None, (), ())
    assert transcript.encode(TALK) == []
    assert Transcript(tokenizer, PLAIN).stops == ("\nUser:",)
    assert Transcript(tokenizer, "{user}\n{ai}\n \n").stops == ("\n \n",)
    assert Transcript(tokenizer, "{user}\n{ai}  ").stops == ()


def test_of_two_variables_of_a_name_the_one_that_tells_of_tools_counts():
    told, tokenizer = [], Letters()
    tokenizer.encode_chat = lambda messages, template, **variables: told.append(variables) or []
    transcript = Transcript(tokenizer, "{{ messages[0].content }}", {"xml_tools": 1, "odd": 2})
    transcript.manner = SimpleNamespace(prepared=lambda messages, tools: (messages, {"xml_tools": tools}))
    transcript.encode(TALK, ["f"])
    transcript.encode(TALK)
    assert told == [{"xml_tools": ["f"], "odd": 2}, {"xml_tools": 1, "odd": 2}]


def test_a_format_without_a_beginning_token():
    tokenizer = Letters()
    tokenizer.bos_id = None
    assert read_as(PLAIN, tokenizer)[2] is False
    tokenizer.bos_id = 0  # is one
    assert read_as(PLAIN, tokenizer)[2] is True


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x",
        "{user}",
        "{ai}",
        "{ai}{user}",
        "{user}{user}{ai}",
        "{user}{ai}{ai}",
        "{ai}{user}{ai}",
        "{user}{ai}{user}",
    ],
)
def test_a_format_has_both_once_and_in_order(source):
    with pytest.raises(JllamaError, match=r"give \{user\} and then \{ai\}, each once"):
        Transcript(Letters(), source)


@pytest.mark.parametrize("source", [5, [], b"{user}{ai}", True])
def test_a_format_is_a_text(source):
    with pytest.raises(JllamaError, match=f"^transcript must be a text .*, not {type(source).__name__}$"):
        Transcript(Letters(), source)


def ended(text, ids, reason="stop", stop=None, token=None):
    return Result(text=text, token_ids=ids, finish_reason=reason, stop_string=stop, stop_token=token)


A, B, C = map(ord, "abc")
KEPT = [
    (ended("ab", [A, B, 2]), (A, B)),
    (ended("ab", [A, B, 3, 2]), (A, B)),
    (ended("ab", [A, B]), (A, B)),
    (ended("ab", [A, B, 2], "length"), (A, B, 2)),
    (ended("ab", [A, B, 9], token=9), (A, B)),  # one that the caller named ended it
    (ended("", [2]), ()),
    (ended("a", [A, B, C], "stop", "b"), (A,)),
    (ended("a", [A, 3], "stop", "<end>"), (A,)),
    (ended("ab", [A, B, 200], "interrupted"), (A, B)),
    (ended("abé", [A, B, 200, 200], "interrupted"), (A, B, 200, 200)),
    (ended("ab\ufffd", [A, B, 200], "interrupted"), (A, B, 200)),
    (ended("ax", [A, B], "interrupted"), (A, ord("x"))),
    (ended("x", [A, B], "interrupted"), (ord("x"),)),
    (ended("", [A], "interrupted"), ()),
    (ended("ab", [A, B, 2], "interrupted"), (A, B)),
]


@pytest.mark.parametrize(("result", "ids"), KEPT)
def test_an_answer_as_history(result, ids):
    assert kept_ids(Letters(), [1], result) == ids


@pytest.mark.parametrize(
    ("reason", "stop", "cut"),
    [
        ("stop", None, False),
        ("length", None, True),
        ("interrupted", None, True),
        ("stop", "<end>", False),
        ("stop", "x", True),
    ],
)
def test_whether_an_answer_was_cut(reason, stop, cut):
    assert is_cut(ended("a", [A], reason, stop), ("<end>", "\nUser:")) == cut


# How a checkpoint would be sampled.

GREEDY = {"temperature": 0.0}


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {"temperature": 0.7, "top_p": 0.95}),
        ({"eos_token_id": 2}, {"temperature": 0.7, "top_p": 0.95}),
        ({"do_sample": False}, GREEDY),
        (
            {"do_sample": False, "temperature": 0.5, "repetition_penalty": 1.1},
            GREEDY | {"repetition_penalty": 1.1},
        ),
        (
            {"do_sample": False, "top_k": 5, "top_p": 0.5, "min_p": 0.1},
            GREEDY,
        ),  # that says nothing of drawing
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": 5}, {"temperature": 1.0, "top_k": 5}),
        ({"top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"temperature": 0.3, "min_p": 0.1}, {"temperature": 0.3, "min_p": 0.1}),
        ({"repetition_penalty": 1.2}, {"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.2}),
        ({"temperature": None, "do_sample": None}, {"temperature": 0.7, "top_p": 0.95}),
        ({"temperature": 0}, GREEDY),
        ({"top_k": 0}, {"temperature": 1.0, "top_k": 0}),
    ],
)
def test_the_settings_that_a_checkpoint_asks_for(given, settings):
    assert conversation_sampling(given) == (settings, [])


def test_a_setting_that_can_not_be_used_is_a_remark():
    settings, remarks = conversation_sampling({"temperature": -1, "top_k": "x", "top_p": 0.5})
    assert settings == {"temperature": 1.0, "top_p": 0.5}
    assert len(remarks) == 2
    assert remarks[0].startswith("generation_config.json: temperature")
    assert remarks[0].endswith("; it is left out")


# Files.


def test_files_take_their_places_together_and_leave_nothing(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    with replacing(one, two) as files:
        assert all(file.parent == tmp_path and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
        for file, text in zip(files, "12", strict=True):
            file.write_text(text)
        assert (one.read_text(), two.exists()) == ("old", False)
    assert (one.read_text(), two.read_text(), len(os.listdir(tmp_path))) == ("1", "2", 2)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("odd"), KeyboardInterrupt()])
def test_a_write_that_fails_changes_nothing(tmp_path, error):
    one = tmp_path / "one"
    one.write_text("old")
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else JllamaError
    with pytest.raises(kind) as raised, replacing(one, tmp_path / "two") as files:  # noqa: PT012
        files[0].write_text("new")
        raise error
    if kind is JllamaError:
        assert str(raised.value) == f"cannot write {one}: {getattr(error, 'strerror', None) or error}"
    assert (one.read_text(), os.listdir(tmp_path)) == ("old", ["one"])


def test_all_is_on_the_disk_before_anything_is_replaced(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: seen.append("replace") or replace(*paths))
    with replacing(tmp_path / "one", tmp_path / "two"):
        pass
    assert seen == ["sync", "sync", "replace", "replace"]


def test_a_path_is_what_it_leads_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    os.symlink("file", tmp_path / "link")
    assert resolved("~/link") == resolved(tmp_path / "file") == tmp_path / "file"
    assert resolved(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(JllamaError, match=r"^cannot use a.b: "), reported("a.b", "use"):
        raise ValueError("x")


SOUND = {
    "format": "jllama conversation 1",
    "model": "tiny",
    "settings": {"temperature": 0.5, "stop": ["a"], "logit_bias": {"3": 1.5}},
    "transcript": None,
    "on_overflow": "stop",
    "current": "main",
    "branches": {"main": {"system": None, "dropped": 1, "messages": [0, 1]}},
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "token_ids": [1], "cut": True},
    ],
    "cache_sha256": None,
}


ROUND = {"role": "assistant", "content": "b"}
NO_CALLS = {"content": "", "calls": [], "results": []}


def changed(**changes):
    return json.loads(json.dumps(SOUND)) | changes


def branch(**changes):
    return {"main": {"system": None, "dropped": 0, "messages": [0, 1]} | changes}


def test_a_sound_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "a").write_text(json.dumps(SOUND))
    read, settings = read_document(tmp_path / "a")
    assert settings == GenerationSettings(temperature=0.5, stop=("a",), logit_bias={3: 1.5})
    assert (read.branches["main"].dropped, read.messages[1].token_ids, read.messages[1].cut) == (
        1,
        (1,),
        True,
    )
    write_document(read, tmp_path / "b")
    again = json.loads((tmp_path / "b").read_text())
    assert again == SOUND
    assert list(again) == list(SOUND)
    check_overwrite(tmp_path / "b")
    check_overwrite(tmp_path / "absent")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(format="x"), "its format is not 'jllama conversation 1'"),
        ([SOUND], "its format is not"),
        (changed(on_overflow="never"), "on_overflow is 'never'"),
        (changed(current="other"), "there is no branch 'other'"),
        (changed(branches={}, current="main"), "length >= 1"),
        (changed(branches={f"b{n}": branch()["main"] for n in range(101)}), "length <= 100"),
        (changed(branches=branch() | {"a b": branch()["main"]}), "give 1 to 40 letters"),
        (changed(branches=branch(messages=[0, 2])), "there is no message 2"),
        (changed(branches=branch(messages=[0, -1])), ">= 0"),
        (changed(branches=branch(messages=[1, 0])), "questions and answers do not alternate"),
        (changed(branches=branch(messages=[0])), "the last question has no answer"),
        (changed(branches=branch(messages=[0, 1, 0, 1])), "more messages than there are"),
        (changed(branches=branch(dropped=2)), "dropped is 2"),
        (changed(branches=branch(dropped=-1)), ">= 0"),
        (changed(settings={"temperature": -1}), "its settings: temperature"),
        (changed(settings={"tempo": 1}), "its settings: "),
        (changed(settings={"stop": "a"}), "stop should be a JSON list"),
        (changed(settings={"logit_bias": [1]}), "logit_bias should be a JSON dict"),
        (changed(settings={"logit_bias": {"x": 1}}), "logit_bias names 'x', which is no token id"),
        (changed(messages=[{"role": "system", "content": "a"}, SOUND["messages"][1]]), "role"),
        (changed(model="x" * 10, transcript=5), "transcript"),
        (
            changed(messages=[SOUND["messages"][0], ROUND | {"rounds": [NO_CALLS]}]),
            "calls and their results are not",
        ),
    ],
)
def test_what_is_unsound_in_a_file_is_named(tmp_path, data, words):
    (tmp_path / "a").write_text(json.dumps(data))
    with pytest.raises(JllamaError) as error:
        read_document(tmp_path / "a")
    assert str(error.value).startswith(f"{tmp_path / 'a'} is damaged or no saved conversation: ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"format": "jllama conversation 1", "x": NaN}', "NaN is no number"),
        (b'{"a": \n x}', "line 2: "),
        (b"\xff", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "it nests too deeply"),
        (b"9" * 5000, "a number in it has thousands of digits"),
        (b"", "line 1: "),
    ],
)
def test_what_is_no_json_is_told_where(tmp_path, text, words):
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(JllamaError) as error:
        read_document(tmp_path / "a")
    assert words in str(error.value)


def test_a_quotation_of_a_file_is_short(tmp_path):
    (tmp_path / "a").write_text(json.dumps(changed(on_overflow="x" * 500)))
    with pytest.raises(JllamaError) as error:
        read_document(tmp_path / "a")
    said = str(error.value).partition("conversation: ")[2]
    assert len(said) == 200
    assert said.endswith("…")
    for length, ending in ((200, "xx"), (201, "x…")):
        assert str(document.damaged(tmp_path, "x" * length)).endswith(": " + "x" * 198 + ending)


@pytest.mark.parametrize("over", [0, 1])
def test_a_file_has_a_size_at_most(tmp_path, monkeypatch, over):
    """In bytes, of which a letter may be several."""
    (tmp_path / "a").write_text(json.dumps(SOUND | {"model": "ü你"}))
    read, _ = read_document(tmp_path / "a")
    write_document(read, tmp_path / "b")
    size = (tmp_path / "b").stat().st_size
    monkeypatch.setattr(document, "MAX_BYTES", size - over)
    if over:
        with pytest.raises(JllamaError, match="larger than any conversation"):
            read_document(tmp_path / "b")
        with pytest.raises(JllamaError, match="undo turns or clear branches"):
            write_document(read, tmp_path / "c")
        assert not (tmp_path / "c").exists()
        with pytest.raises(JllamaError, match="exists and is no conversation"):
            check_overwrite(tmp_path / "b")
    else:
        read_document(tmp_path / "b")
        write_document(read, tmp_path / "b")
        check_overwrite(tmp_path / "b")


def test_how_large_a_conversation_may_be_is_said_in_mebibytes(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MAX_BYTES", 3 << 20)
    (tmp_path / "a").write_text(json.dumps(SOUND))
    read, _ = read_document(tmp_path / "a")
    large = msgspec.structs.replace(read, model="x" * document.MAX_BYTES)
    with pytest.raises(JllamaError, match=r"^the conversation has more than 3 MiB: undo"):
        write_document(large, tmp_path / "c")


def test_what_can_not_be_read_is_told(tmp_path):
    with pytest.raises(JllamaError, match=r"cannot read .*: No such file"):
        read_document(tmp_path / "absent")
    with pytest.raises(JllamaError, match="is not a file"):
        read_document(tmp_path)


def test_ids_of_calls_are_such_as_all_templates_take():
    ids = {_drawn_id() for _ in range(20)}
    assert len(ids) == 20
    assert all(len(each) == 9 and each.isalnum() for each in ids)


def test_an_answer_behind_its_calls_for_templates():
    one = Round("I look.", (Call("1", "sun", "{}"),), ("true",))
    called = {"id": "1", "type": "function", "function": {"name": "sun", "arguments": "{}"}}
    before = [
        {"role": "assistant", "content": "I look.", "tool_calls": [called]},
        {"role": "tool", "name": "sun", "content": "true", "tool_call_id": "1"},
    ]
    said = {"role": "assistant", "content": "Yes."}
    assert Message("assistant", "Yes.", rounds=(one,)).as_dicts() == [*before, said]
    assert Message("assistant", "", rounds=(one,)).as_dicts() == before  # nothing was said yet
    assert Message("assistant", "").as_dicts() == [{"role": "assistant", "content": ""}]
    waits = Message("assistant", "I look.", rounds=(one,), calls=one.calls)
    assert waits.as_dicts() == [*before, before[0]]


def test_each_result_is_told_with_its_own_call():
    calls = tuple(Call(f"id{name}", name, "{}") for name in ("sun", "rain", "wind"))
    asked, *told = Round("", calls, ("1", "2", "3")).as_dicts()
    assert [call["id"] for call in asked["tool_calls"]] == ["idsun", "idrain", "idwind"]
    assert [(each["tool_call_id"], each["name"], each["content"]) for each in told] == [
        (f"id{name}", name, given) for name, given in (("sun", "1"), ("rain", "2"), ("wind", "3"))
    ]


def test_a_question_is_read_as_its_text():
    assert archive._without_foreign_ids(Message("user", "a", (1,)), None).token_ids is None


@pytest.mark.parametrize(
    ("ids", "content", "kept"),
    [
        ((0, 1), "ab", True),
        ((0, 2), "aZ", True),  # the last token of three
        ((0, 3), "aZ", False),
        ((-1, 0), "Za", False),
        ((0, 1), "a", False),
        ((), "", True),
        ((3, 0), "a", True),  # the blanks before an answer are no part of its text
        ((0, 3), "a", False),
    ],
)
def test_ids_are_an_answer_s_where_they_spell_it(ids, content, kept):
    """Of three letters, or of four tokens of which the last is a blank."""
    letters = "abZ " if content == "a" else "abZ"
    spell = lambda tokens: "".join(letters[min(token, len(letters) - 1)] for token in tokens)  # noqa: E731
    tokenizer = SimpleNamespace(vocab_size=len(letters), decode=spell)
    (found,), foreign = archive._own_messages(
        [document.SavedMessage(role="assistant", content=content, token_ids=ids)], tokenizer
    )
    assert (found.content, found.token_ids, foreign) == (content, ids if kept else None, not kept)


def test_what_branches_share_is_saved_once():
    (a, b), c = map(turn, "ab"), turn("c")
    made = SimpleNamespace(model=SimpleNamespace(name="m"), transcript=SimpleNamespace(source=None))
    made.on_overflow, made.current = "stop", "two"
    branches = {"one": (*a, *b), "two": (*a, *c), "three": (*a, *b)}
    made.branches = {
        name: SimpleNamespace(system=name, dropped=at, messages=messages)
        for at, (name, messages) in enumerate(branches.items())
    }
    saved = archive._document(made, GenerationSettings(top_k=7))
    assert [message.content for message in saved.messages] == [one.content for one in (*a, *b, *c)]
    told = {name: (one.system, one.dropped, one.messages) for name, one in saved.branches.items()}
    assert told == {
        "one": ("one", 0, [0, 1, 2, 3]),
        "two": ("two", 1, [0, 1, 4, 5]),
        "three": ("three", 2, [0, 1, 2, 3]),
    }
    assert (saved.model, saved.current, saved.on_overflow, saved.settings["top_k"]) == ("m", "two", "stop", 7)


def test_all_rounds_and_calls_of_an_answer_are_saved():
    def call(name):
        return Call(f"id {name}", name, f'{{"{name}": 1}}')

    first = Round("I look.", (call("a"), call("b")), ("1", "2"))
    second = Round("And again.", (call("c"),), ("3",))
    answer = Message("assistant", "So.", (7, 8), True, (first, second), (call("d"), call("e")))
    for message in (answer, Message("assistant", "So.")):
        written = msgspec.to_builtins(archive._saved(message))
        assert archive._message(msgspec.convert(written, document.SavedMessage)) == message


def test_a_reader_knows_all_tools_by_their_names(monkeypatch):
    made = []
    monkeypatch.setattr("jllama.chat.transcript.CallParser", lambda *given: made.append(given) or "a reader")
    transcript = Transcript(Letters(), PLAIN)
    shows = SimpleNamespace(special_ids=lambda special_id: (special_id("<end>"), 9))
    transcript.manner = SimpleNamespace(format=shows)
    tools = [SimpleNamespace(name=name) for name in "abc"]
    assert (transcript.reader(tools), transcript.shown(tools)) == ("a reader", (3, 9))
    assert made == [(shows, ["a", "b", "c"], _drawn_id)]
    assert (transcript.reader([]), transcript.shown([])) == (None, ())
