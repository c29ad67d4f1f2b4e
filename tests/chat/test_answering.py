"""A turn of a conversation on a session that does as it is told: what is asked, what is kept; no model."""

import dataclasses
from types import SimpleNamespace

import pytest

from jllama.answer import OneAtATime, Result
from jllama.chat import answering
from jllama.chat.asking import NOT_RUN
from jllama.chat.branches import Branch, Message, Round
from jllama.chat.conversation import Conversation
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox

TURN = (Message("user", "Hello"), Message("assistant", "Hi", cut=True))
SETTINGS = GenerationSettings(max_new_tokens=8)


class Told:
    """A session that says these pieces; an exception among them is raised."""

    max_seq_len, ids = 64, ()

    def __init__(self, *pieces, fork=None):
        self.pieces, self.asked, self.result = pieces, [], Result(text="earlier", finish_reason="stop")

    def stream(self, prompt, settings, **given):
        self.asked.append((prompt, settings, given))
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            if self.result.text == "earlier":
                self.result = Result(text="", finish_reason="interrupted")
            self.result.text += piece
            yield piece
        self.result.finish_reason = "stop"


class Ends:
    """Notes when a stream is ended, and runs the next one."""

    def __init__(self):
        self.ended = 0

    def end(self):
        self.ended += 1

    def run(self, pieces):
        yield from pieces


def conversation(*pieces, messages=TURN):
    made = Conversation.__new__(Conversation)
    branch = Branch(session=Told(*pieces), messages=messages, streams=Ends())
    made.branches, made.current = {"main": branch}, "main"
    tokenizer = SimpleNamespace(encode=lambda text, **_: [*text.encode()])
    config = SimpleNamespace(context_length=64)
    made.model = SimpleNamespace(need_tokenizer=lambda: tokenizer, config=config)
    made.transcript = SimpleNamespace(
        stops=("User:",),
        shown=lambda tools: (7,),
        reader=lambda tools: None,
        encode=lambda told, tools: [1] * 3,
    )
    made.on_overflow, made.progress, made.toolbox = "stop", None, Toolbox([])
    return made


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    def kept(transcript, tokenizer, prompt, result, tools, rounds):
        return Message("assistant", result.text, rounds=rounds)

    monkeypatch.setattr(answering, "kept", kept)


CHANGES = {
    "ask": lambda made: [*made.ask("Why?", SETTINGS)],
    "retry": lambda made: [*made.retry(SETTINGS)],
    "resume": lambda made: [*made.resume(SETTINGS)],
    "edit": lambda made: [*made.edit(1, "What?", SETTINGS)],
    "undo": lambda made: made.undo(),
    "clear": lambda made: made.clear(),
    "set_system": lambda made: made.set_system("Be kind."),
    "fork": lambda made: made.branch.fork(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_a_branch_ends_the_answer_that_is_being_read(name):
    made = conversation("a")
    made.branch.session.fork = lambda: Told()
    streams = made.branch.streams
    CHANGES[name](made)
    assert streams.ended == 1


OF_ANOTHER_KIND = {
    "edit None": (lambda made: [*made.edit(None, "x")], "a turn is given by its number, not by a NoneType"),
    "edit 1.0": (lambda made: [*made.edit(1.0, "x")], "a turn is given by its number, not by a float"),
    "undo": (lambda made: made.undo("1"), "undo takes back 1 turn here, not '1'"),
    "undo 1.0": (lambda made: made.undo(1.0), "undo takes back 1 turn here, not 1.0"),
    "reply": (lambda made: [*made.reply("1")], "results must be a list of texts, not str"),
    "reply None": (lambda made: [*made.reply(None)], "results must be a list of texts, not NoneType"),
    "run": (lambda made: made.run("f"), "call must be one of `conversation.calls`, not str"),
    "tools": (lambda made: Toolbox(5), "tools must be a list of functions, not int"),
    "tools None": (lambda made: Toolbox("f"), "tools must be a list of functions, not str"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_what_is_of_another_kind_is_named(name):
    made, (call, words) = conversation("a"), OF_ANOTHER_KIND[name]
    with pytest.raises(JllamaError) as error:
        call(made)
    assert (str(error.value), made.messages) == (words, TURN)


REFUSED = {
    "ask": lambda made: [*made.ask(" ", SETTINGS)],
    "ask so": lambda made: [*made.ask("Why?", top_p=7)],
    "retry so": lambda made: [*made.retry(top_p=7)],
    "resume so": lambda made: [*made.resume(top_p=7)],
    "reply so": lambda made: [*made.reply(["1"], top_p=7)],
    "edit": lambda made: [*made.edit(1, "", SETTINGS)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_asked_does_not_end_the_answer_that_is_being_read(name):
    made = conversation("a")
    with pytest.raises(JllamaError):
        REFUSED[name](made)
    assert (made.branch.streams.ended, made.messages) == (0, TURN)


NEXT = {"retry": 1, "resume": 1, "edit": 1, "undo": 0, "clear": 0, "set_system": 1}


@pytest.mark.parametrize("name", NEXT)
def test_a_first_answer_that_is_being_read_is_a_turn_for_what_comes_next(name, monkeypatch):
    monkeypatch.setattr(answering, "kept", lambda *given: Message("assistant", given[3].text, cut=True))
    made = conversation("a", "b", messages=())
    made.branch.streams = OneAtATime()
    pieces = made.ask("Why?", SETTINGS)
    assert (next(pieces), made.turns) == ("a", 0)
    CHANGES[name](made)
    assert made.turns == NEXT[name]
    assert [*pieces] == []


def test_turns_that_were_left_out_stay_so_until_they_are_taken_back():
    made = conversation(messages=TURN * 3)
    made.branch.dropped, left = 2, []
    for _ in range(3):
        made.undo()
        left.append(made.branch.dropped)
    assert left == [2, 1, 0]


def test_how_many_turns_an_answer_left_out_is_kept_with_it(monkeypatch):
    monkeypatch.setattr(answering, "fit", lambda encode, **_: (encode(1), 1))
    made = conversation("a")
    [*made.ask("Why?", SETTINGS)]
    assert (made.branch.dropped, made.turns) == (1, 2)


@pytest.mark.parametrize(("size", "grows"), [(63, True), (64, False)])
def test_a_context_may_grow_up_to_the_model_s(size, grows):
    made = conversation()
    made.branch.session.max_seq_len = size
    assert made.may_grow is grows


def test_a_system_message_that_is_refused_leaves_the_one_before():
    made = conversation()
    made.set_system("Be kind.")

    def refuses(told, tools):
        raise JllamaError("no system message")

    made.transcript.encode = refuses
    with pytest.raises(JllamaError):
        made.set_system("Be rude.")
    assert made.branch.system == "Be kind."


def test_a_branch_that_is_forgotten_ends_its_answer():
    made = conversation("a")
    streams = Ends()
    made.branches["other"] = Branch(session=Told(), streams=streams)
    made.delete("other")
    assert (streams.ended, [*made.branches]) == (1, ["main"])


@pytest.mark.parametrize(
    ("changes", "stops", "shown"),
    [
        ({}, ("x", "User:"), ["a ", "b"]),
        ({"regex": " *ab"}, ("x",), ["  ", " a ", "b"]),  # its end is the text's, and each blank counts
    ],
)
def test_what_must_match_is_shown_as_it_is_and_ends_by_itself(changes, stops, shown):
    made = conversation("  ", " a ", "b")
    settings = GenerationSettings(max_new_tokens=8, stop=("x",), **changes)
    assert [*made.ask("Why?", settings)] == shown
    ((prompt, asked, given),) = made.branch.session.asked
    assert (prompt, asked.stop) == ([1, 1, 1], stops)
    assert given == dict(begun=[], shown=(7,), progress=None)


@pytest.mark.parametrize("pieces", [(JllamaError("no"),), (KeyboardInterrupt(),), (ValueError("bug"),)])
def test_an_answer_that_did_not_begin_leaves_the_conversation_as_it_was(pieces):
    """The session still has the result of the turn before."""
    made = conversation(*pieces)
    with pytest.raises(type(pieces[0])):
        [*made.ask("Why?", SETTINGS)]
    assert made.messages is TURN
    assert made.branch.dropped == 0


@pytest.mark.parametrize("error", [JllamaError("no"), ValueError("bug")])
def test_an_answer_that_failed_is_not_kept(error):
    made = conversation("a", error)
    with pytest.raises(type(error)):
        [*made.ask("Why?", SETTINGS)]
    assert made.messages is TURN


@pytest.mark.parametrize("way", ["closed", "pressed"])
def test_an_answer_that_was_stopped_is_kept_as_far_as_it_came(way):
    made = conversation("a", KeyboardInterrupt() if way == "pressed" else "b")
    pieces = made.ask("Why?", SETTINGS)
    assert next(pieces) == "a"
    if way == "pressed":
        with pytest.raises(KeyboardInterrupt):
            next(pieces)
    pieces.close()
    assert made.messages == (*TURN, Message("user", "Why?"), Message("assistant", "a"))


def test_a_cut_answer_goes_on_from_its_own_tokens():
    made = conversation("b", messages=(TURN[0], Message("assistant", "Hi", (5, 6), cut=True)))
    assert [*made.resume(SETTINGS)] == ["b"]
    ((prompt, _, given),) = made.branch.session.asked
    assert (prompt, given["begun"]) == ([1, 1, 1], (5, 6))
    made = conversation("b")
    [*made.resume(SETTINGS)]
    assert made.branch.session.asked[0][2]["begun"] == [*b"Hi"]


def test_what_an_answer_began_with_is_encoded_as_its_middle():
    """Neither a beginning token nor a first word's blank stands before it."""
    made, given = conversation("b"), []
    made.model.need_tokenizer().encode = lambda text, **how: given.append((text, how)) or [5]
    [*made.resume(SETTINGS)]
    assert given == [("Hi", {"add_special": False, "begins": False})]


def test_where_nothing_was_asked_there_is_nothing_to_go_on_with():
    made = conversation(messages=())
    for what, act in {"reply to": made.reply, "redo": made.retry, "continue": made.resume}.items():
        with pytest.raises(JllamaError, match=f"nothing to {what}: there is no turn yet"):
            list(act([]) if act == made.reply else act())


@pytest.mark.parametrize("system", [None, "", "Be kind."])
def test_what_a_template_is_given_of_a_branch(system):
    """The system message first, and the calls behind the question."""
    made, given = conversation(), []
    made.branch.system = system
    made.transcript.encode = lambda told, tools: given.append((told, tools)) or [5]
    call = Call("1", "f", "{}")
    assert made.encode((*TURN, Message("user", "Why?")), (Round("I look.", (call,), ("7",)),)) == [5]
    ((told, tools),) = given
    assert tools is made.toolbox.tools
    said = [(one["role"], one["content"]) for one in told]
    asked = [
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Why?"),
        ("assistant", "I look."),
        ("tool", "7"),
    ]
    assert said == [("system", system)] * bool(system) + asked


@pytest.mark.parametrize(
    ("before", "changes", "seed"), [(5, {}, None), (None, {"seed": 7}, 7), (5, {"seed": 7}, 7)]
)
def test_another_answer_is_drawn_anew_unless_a_seed_is_given(before, changes, seed):
    made = conversation("a")
    list(made.retry(dataclasses.replace(SETTINGS, seed=before), **changes))
    ((_, asked, _),) = made.branch.session.asked
    assert asked.seed == seed


def test_calls_that_nobody_ran_end_their_turn_with_all_that_was_before():
    """The text beside them is their round's: the turn itself has none."""
    first, second = (
        Round("So.", (Call("1", "f", "{}"),), ("4",)),
        (Call("2", "f", "{}"), Call("3", "g", "{}")),
    )
    waits = Message("assistant", "Hm.", rounds=(first,), calls=second)
    made = conversation("a", messages=(*TURN, Message("user", "And?"), waits))
    list(made.ask("Well?", SETTINGS))
    unrun = Round("Hm.", second, (NOT_RUN, NOT_RUN))
    settled = (*TURN, Message("user", "And?"), Message("assistant", "", rounds=(first, unrun)))
    assert made.messages == (*settled, Message("user", "Well?"), Message("assistant", "a"))
