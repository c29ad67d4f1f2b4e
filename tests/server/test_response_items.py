"""The items of a response: whoever follows the events has the items that the whole answer holds."""

import copy
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jllama.server.choice import Delta
from jllama.server.protocol.errors import INTERNAL, ApiError
from jllama.server.response_items import Items
from jllama.server.responses import ResponseTask
from jllama.tools.events import Arguments, Begin, End

PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


class Follower:
    """A client: takes events in, has items. What an event repeats must be what the client has."""

    def __init__(self):
        self.items = []

    def take(self, kind, told):
        told = copy.deepcopy(told)
        if kind == "response.output_item.added":
            assert told["output_index"] == len(self.items)
            assert told["item"]["status"] == "in_progress"
            assert told["item"].get("content", []) == []
            self.items.append(told["item"])
            return
        item = self.items[told["output_index"]]
        assert told["output_index"] == len(self.items) - 1
        assert told.get("item_id", item["id"]) == item["id"]
        if kind == "response.output_item.done":
            item["status"] = told["item"]["status"]
            assert told["item"] == item
        elif kind.startswith("response.function_call_arguments"):
            self._arguments(kind, told, item)
        else:
            self._text(kind, told, item)

    def _arguments(self, kind, told, item):
        if kind.endswith(".delta"):
            item["arguments"] += told["delta"]
        else:
            assert (told["name"], told["arguments"]) == (item["name"], item["arguments"])

    def _text(self, kind, told, item):
        assert told["content_index"] == 0
        if kind == "response.content_part.added":
            assert told["part"]["text"] == ""
            item["content"].append(told["part"])
        elif kind == "response.content_part.done":
            assert told["part"] == item["content"][0]
        else:
            of = {"message": "output_text", "reasoning": "reasoning_text"}[item["type"]]
            assert kind in (f"response.{of}.delta", f"response.{of}.done")
            assert told.get("logprobs") == ([] if of == "output_text" else None)
            if kind.endswith(".delta"):
                item["content"][0]["text"] += told["delta"]
            else:
                assert told["text"] == item["content"][0]["text"]


def called(at, pieces):
    return (
        Begin(at, f"call_{at}", f"tool{at}"),
        *(Arguments(at, piece) for piece in pieces),
        End(at),
    )


def wanted(deltas):
    """Kinds and texts of the items, as one would write them down by hand; whether the last is still open."""
    found, is_open = [], False
    for thoughts, text, calls in deltas:
        for kind, words in (("reasoning", thoughts), ("message", text)):
            if words and is_open and found[-1][0] == kind:
                found[-1] = (kind, found[-1][1] + words)
            elif words:
                found.append((kind, words))
                is_open = True
        for pieces in calls:
            found.append(("function_call", "".join(pieces)))
            is_open = False
    if is_open and found[-1][0] == "message":
        return found
    has_calls = any(kind == "function_call" for kind, _ in found)
    return found if has_calls and not is_open else [*found, ("message", "")]


words = st.sampled_from(["", "", "a", "b\n", "é"])
pieces = st.lists(st.sampled_from(['{"a"', ": 1", "}"]), max_size=3)


@given(
    st.lists(st.tuples(words, words, st.lists(pieces, max_size=2)), max_size=6),
    st.sampled_from(["completed", "incomplete"]),
)
def test_whoever_follows_the_events_has_the_items(deltas, status):
    items, follower, at = Items(), Follower(), 0
    for thoughts, text, calls in deltas:
        events = []
        for each in calls:
            events += called(at, each)
            at += 1
        for event in items.take(Delta(text=text, thoughts=thoughts, calls=tuple(events))):
            follower.take(*event)
    for event in items.end(status):
        follower.take(*event)
    assert follower.items == items.done
    texts = [
        item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        for item in items.done
    ]
    assert list(zip([item["type"] for item in items.done], texts, strict=True)) == wanted(deltas)
    *before, last = items.done
    is_call = last["type"] == "function_call"
    assert last["status"] == ("completed" if is_call else status)  # a call ends before the answer does
    assert {item["status"] for item in before} <= {"completed"}
    assert len({item["id"] for item in items.done}) == len(items.done)
    assert all(item["id"].startswith(PREFIXES[item["type"]]) for item in items.done)


def test_a_call_has_its_own_names_and_a_message_its_role():
    items = Items()
    list(items.take(Delta(thoughts="Hm", text="So.", calls=called(0, ["{", "}"]))))
    list(items.end("completed"))
    thoughts, message, call = ({k: v for k, v in item.items() if k != "id"} for item in items.done)
    done = {"status": "completed"}
    assert thoughts == done | {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm"}],
    }
    part = {"type": "output_text", "text": "So.", "annotations": [], "logprobs": []}
    assert message == done | {"type": "message", "role": "assistant", "content": [part]}
    assert call == done | {"type": "function_call", "call_id": "call_0", "name": "tool0", "arguments": "{}"}


@pytest.mark.parametrize(("pieces", "text"), [([], ""), (['{"a"'], '{"a"')])
def test_a_call_that_was_cut_is_as_incomplete_as_the_answer(pieces, text):
    items = Items()
    list(items.take(Delta(calls=called(0, pieces)[:-1])))
    list(items.end("incomplete"))
    (call,) = items.done
    assert (call["status"], call["arguments"]) == ("incomplete", text)


def response(reason):
    made = ResponseTask.__new__(ResponseTask)
    result = SimpleNamespace(prompt_tokens=9, reused_tokens=4, finish_reason=reason)
    stream = SimpleNamespace(answer=SimpleNamespace(result=result))
    made.choices = [SimpleNamespace(tokens=3, thought_tokens=1, stream=stream)]
    made._head, made._items, made._number = {"id": "resp_1"}, SimpleNamespace(done=["an item"]), 0
    return made


def events(frames):
    for each in frames:
        name, data = each.decode().removesuffix("\n\n").split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [("stop", "completed", None), ("length", "incomplete", {"reason": "max_output_tokens"})],
)
def test_a_response_as_a_whole_and_its_stream_s_ends(reason, status, details):
    made = response(reason)
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3}
    usage |= {"output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 12}
    whole = {"id": "resp_1", "status": status, "error": None, "incomplete_details": details}
    whole |= {"output": ["an item"], "usage": usage}
    assert made._response() == whole
    begun = whole | {"status": "in_progress", "usage": None, "incomplete_details": None}
    told = [*made.opening(), *made.closing(), *made.failing(ValueError("a secret"))]
    kinds, contents = zip(*events(told), strict=True)
    assert kinds == (
        *("response.created", "response.in_progress", f"response.{status}"),
        *("error", "response.failed"),
    )
    assert [each["sequence_number"] for each in contents] == [*range(5)]
    assert [each["type"] for each in contents] == [*kinds]
    assert [each["response"] for each in contents[:3]] == [begun, begun, whole]
    problem = {"code": "server_error", "message": INTERNAL}
    assert problem.items() <= contents[3].items()
    assert contents[3]["param"] is None
    assert contents[4]["response"] == begun | {"status": "failed", "error": problem}
    named = ApiError(400, "no", param="input", code="its_own")
    (_, told), _ = events(made.failing(named))
    assert (told["code"], told["message"], told["param"]) == ("its_own", "no", "input")
