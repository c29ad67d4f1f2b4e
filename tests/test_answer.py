"""One answer as it grows: ids in, pieces out, and why it ended; no model."""

import contextlib
import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jllama.answer import (
    Answer,
    OneAtATime,
    Result,
    ending_ids,
    from_first_word,
)
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings
from jllama.text.detokenizer import Detokenizer, StreamDecoder

EOS, EOT = 0, 1


class Bytes:
    """A tokenizer of single bytes; 0 and 1 end a text, 1 is spelt `<eot>`."""

    eos_ids = frozenset({EOS})

    def __init__(self, drop_blanks=0):
        self._detokenizer = Detokenizer(
            lambda token: bytes([token]), skipped=[EOS, EOT], drop_blanks=drop_blanks
        )

    def special_id(self, text):
        return EOT if text == "<eot>" else None

    def stream(self, prompt, shown=()):
        return StreamDecoder(self._detokenizer, prompt)


def run(*bursts, begun=b"", **settings):
    """The pieces of an answer whose ids come in bursts, and its result."""
    answer = Answer(Bytes(), [65, 66], GenerationSettings(seed=3, **settings), list(begun))
    pieces = []
    for burst in bursts:
        pieces += answer.push(list(burst))
        if answer.finished:
            return pieces, answer.result
    pieces += answer.end()
    return pieces, answer.result


@pytest.mark.parametrize(
    ("bursts", "settings", "pieces", "reason", "stop"),
    [
        ((b"ab", b"c"), {}, ["ab", "c"], "length", None),
        ((b"a", b"bcde", b"fgh"), {}, ["a", "bcde", "fgh"], "length", None),
        ((b"ab", b"\0"), {}, ["ab"], "stop", None),
        ((b"ab\1",), {}, ["ab"], "length", None),
        ((b"ab\1",), {"stop": ["<eot>"]}, ["ab"], "stop", "<eot>"),
        ((b"ab\0",), {"ignore_eos": True}, ["ab"], "length", None),
        ((b"ab\1",), {"stop": ["<eot>"], "ignore_eos": True}, ["ab"], "stop", "<eot>"),
        ((b"abcd", b"e"), {"stop": ["bc"]}, ["a"], "stop", "bc"),
        ((b"ab", b"cd"), {"stop": ["bc"]}, ["a"], "stop", "bc"),
        ((b"ab", b"cd"), {"stop": ["zz", "bc", "cd"]}, ["a"], "stop", "bc"),
        ((b"ab", b"\0"), {"stop": ["bc"]}, ["a", "b"], "stop", None),
        ((b"ab",), {"stop": ["bc"]}, ["a", "b"], "length", None),
        ((b"\xc3", b"\xa9"), {}, ["é"], "length", None),
        ((b"a\xc3",), {}, ["a", "\ufffd"], "length", None),
        ((b"a\xc3",), {"stop": ["\ufffd"]}, ["a"], "stop", "\ufffd"),
        ((b"\0",), {}, [], "stop", None),
    ],
)
def test_ids_become_text_up_to_an_end(bursts, settings, pieces, reason, stop):
    shown, result = run(*bursts, **settings)
    assert shown == pieces
    assert (result.text, result.finish_reason, result.stop_string) == ("".join(pieces), reason, stop)
    assert (result.seed, result.prompt_tokens, result.begun_tokens) == (3, 2, 0)


def test_ids_behind_a_stop_string_are_none_of_the_answer():
    _, result = run(b"abcd", stop=["bc"])
    assert bytes(result.token_ids) == b"abc"
    _, result = run(b"ab\0")
    assert bytes(result.token_ids) == b"ab\0"


@pytest.mark.parametrize(
    ("begun", "burst", "stop", "new", "text"),
    [
        (b"ab", b"cd", [], ["cd"], "abcd"),
        (b"ab", b"c", ["bc"], [], "a"),
        (b"abc", b"d", ["bc"], ["d"], "abcd"),
        (b"a\xc3", b"\xa9b", [], ["b"], "aéb"),
        (b"ab", b"", [], [], "ab"),
        (b"ab", b"xc", ["bc"], ["xc"], "abxc"),
    ],
)
def test_an_answer_that_goes_on_yields_what_is_new(begun, burst, stop, new, text):
    shown, result = run(burst, begun=begun, stop=stop)
    assert "".join(shown) == "".join(new)
    assert result.text == text
    assert (result.prompt_tokens, result.begun_tokens) == (2 + len(begun), len(begun))
    assert bytes(result.token_ids) == begun + burst
    assert result.generated_tokens == len(burst)


@pytest.mark.parametrize(
    ("ids", "settings", "token", "reason"),
    [
        (b"a\0", {}, EOS, None),
        (b"ab", {"stop_token_ids": [98]}, 98, 98),
        (b"a\0", {"stop_token_ids": [EOS]}, EOS, EOS),
        (b"a\1", {"stop": ["<eot>"]}, EOT, "<eot>"),
        (b"ab", {"stop": ["b"]}, None, "b"),
        (b"ab", {}, None, None),
    ],
)
def test_what_ended_an_answer_and_whether_it_was_asked_for(ids, settings, token, reason):
    _, result = run(ids, **settings)
    assert (result.stop_token, result.stop_reason) == (token, reason)


def test_times_are_told_apart(monkeypatch):
    clock = iter([10.0, 12.0, 15.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    answer = Answer(Bytes(), [65], GenerationSettings())
    for burst in (b"a", b"bc", b"d"):
        list(answer.push(burst))
    result = answer.result
    assert (result.prefill_seconds, result.decode_seconds) == (2.0, 8.0)
    assert result.prefill_tokens_per_second == 0.5
    assert result.decode_tokens_per_second == 3 / 8
    assert result.seed == 0


def test_rates_of_what_took_no_time():
    result = Result(prompt_tokens=5, reused_tokens=5, token_ids=[])
    assert (result.prefill_tokens_per_second, result.decode_tokens_per_second) == (0, 0)
    assert Result(token_ids=[1], decode_seconds=2.0).decode_tokens_per_second == 0
    assert Result(prompt_tokens=8, reused_tokens=3, prefill_seconds=2.0).prefill_tokens_per_second == 2.5


def test_a_result_as_plain_values():
    values = Result(text="a", token_ids=[1, 2], begun_tokens=1).summary()
    assert (values["text"], values["generated_tokens"], values["finish_reason"]) == ("a", 1, "interrupted")
    assert {"prefill_tokens_per_second", "decode_tokens_per_second"} < set(values)
    assert not {"begun_tokens", "logprobs"} & set(values)
    assert Result(logprobs=[]).summary()["logprobs"] == []


def test_which_ids_end_an_answer():
    tokenizer = Bytes()
    assert ending_ids(tokenizer, GenerationSettings()) == {EOS: None}
    both = GenerationSettings(stop=("<eot>", "x"))
    assert ending_ids(tokenizer, both) == {EOT: "<eot>", EOS: None}
    ignoring = GenerationSettings(stop=("<eot>",), ignore_eos=True)
    assert ending_ids(tokenizer, ignoring) == {EOT: "<eot>"}
    tokenizer.special_id = {"<eot>": 0}.get  # the first id is one, too
    assert ending_ids(tokenizer, ignoring) == {0: "<eot>"}


def stream(pieces, log):
    try:
        yield from pieces
    finally:
        log.append("closed")


@pytest.mark.parametrize(
    ("pieces", "begun", "shown"),
    [
        (["  ", "\n a", " b"], "", ["a", " b"]),
        (["  ", "\n a", " b"], "x", ["  ", "\n a", " b"]),
        ([" ", "  "], "", []),
        (["a"], "", ["a"]),
    ],
)
def test_blanks_before_an_answer_go(pieces, begun, shown):
    log = []
    assert list(from_first_word(stream(pieces, log), begun)) == shown
    assert log == ["closed"]


def test_leaving_early_closes_what_is_below():
    """Though somebody else holds it, too."""
    log = []
    below = stream("abc", log)
    words = from_first_word(below)
    next(words)
    words.close()
    assert (log, list(below)) == (["closed"], [])


@pytest.mark.parametrize(("settings", "text"), [({}, "{}"), ({"json_object": True}, " {}")])
def test_a_blank_that_must_match_is_kept(settings, text):
    answer = Answer(Bytes(drop_blanks=1), [], GenerationSettings(**settings))
    assert "".join(answer.push(list(b" {}"))) == text


@pytest.mark.parametrize(
    ("floor", "text", "reason"),
    [(0, "b", "stop"), (2, "b", "stop"), (3, "bab", "stop"), (4, "bab", "stop"), (5, "babab", "length")],
)
def test_a_stop_string_may_stand_in_what_must_come_and_no_further(floor, text, reason):
    for bursts in ((b"babab",), (b"ba", b"b", b"ab"), tuple(bytes([b]) for b in b"babab")):
        _, result = run(*bursts, stop=["ab"], min_new_tokens=floor)
        assert (result.text, result.finish_reason) == (text, reason)


def test_of_streams_the_next_ends_the_last():
    streams, log = OneAtATime(), []
    one = streams.run(stream("abc", log))
    assert next(one) == "a"
    two = streams.run(stream("xyz", log))
    assert log == []
    assert next(two) == "x"
    assert log == ["closed"]
    assert list(one) == []
    one.close()
    assert next(two) == "y"
    streams.end()
    assert log == ["closed", "closed"]
    assert list(two) == []
    streams.end()
    assert len(log) == 2


def test_another_thread_can_not_end_what_runs():
    streams, inside, go = OneAtATime(), threading.Event(), threading.Event()

    def slow():
        inside.set()
        go.wait(500)
        yield "a"

    reader = threading.Thread(target=lambda: list(streams.run(slow())))
    reader.start()
    try:
        assert inside.wait(500)
        with pytest.raises(
            JllamaError, match="another thread is reading an answer: give each thread a session"
        ):
            streams.end()
    finally:
        go.set()
        reader.join(500)
    with contextlib.closing(streams.run(stream("a", []))) as more:
        assert next(more) == "a"


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_bursts_give_what_single_ids_give(data):
    """Whatever the bursts are: characters of several bytes, broken ones, ends, stop strings, a floor."""
    pieces = st.sampled_from(
        [b"a", b"b", "é".encode(), "🙂".encode(), b"\xf0\x9f", b"\xff", b"\0", b"\1", b"ab"]
    )
    ids = b"".join(data.draw(st.lists(pieces, min_size=1, max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(ids)), max_size=5)) | {0, len(ids)})
    stops = data.draw(st.lists(st.sampled_from(["ab", "ba", "éa", "🙂", "aaa", "<eot>"]), max_size=3))
    floor = data.draw(st.integers(0, 6))
    options = dict(stop=tuple(stops), min_new_tokens=floor, max_new_tokens=200)
    bursts = [ids[begin:end] for begin, end in itertools.pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answer, "_push_together", lambda self, ids: None)
        _, wanted = run(*bursts, **options)
    _, ours = run(*bursts, **options)
    for name in ("text", "token_ids", "finish_reason", "stop_string", "stop_token"):
        assert getattr(ours, name) == getattr(wanted, name), name
