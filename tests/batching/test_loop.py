"""What the engine's thread does in which order, on slots that only take notes: no model."""

import dataclasses
import queue
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.answer import Answer
from jllama.batching.calls import is_several, room_for_all
from jllama.batching.loop import HURRIED, Loop
from jllama.batching.stream import Stream
from jllama.engine.rows import Row
from jllama.engine.scheduler import Scheduler
from jllama.engine.state import Burst
from jllama.engine.step import BURST
from jllama.errors import JllamaError
from jllama.layers.sampling import Scores
from jllama.settings import GenerationSettings
from jllama.text.detokenizer import Detokenizer, StreamDecoder
from tests.support.decoding import CPU

WAIT = 100


class Bytes:
    eos_ids = frozenset({0})

    def special_id(self, text):
        return None

    def stream(self, prompt, shown=()):
        return StreamDecoder(Detokenizer(lambda token: bytes([token]), skipped=[0]))


class Notes:
    """Slots that note what is asked of them: every text goes on with `a`, `b`, `c`, … up to its limit."""

    def __init__(self, chunk=8, gate=None, group=1, packs=False):
        self.asked, self._chunk, self.gate, self._group, self.packs = [], chunk, gate, group, packs
        self.rows, self.bad, self.first = {}, set(), ord("a")

    turn_tokens = property(lambda self: self._chunk)
    target, masked = CPU, SimpleNamespace(most_forced=lambda slot, target: 5, asks=False)

    def next_chunk(self, left, *, scored):
        return self._chunk if left > self._chunk // 2 else self._chunk // 2

    def copy_prefix(self, source, to, count):
        self.asked.append(("copy", source, to, count))

    def settle(self):
        self.asked.append(("settle",))

    def clear(self, slot):
        self.asked.append(("clear", slot))

    def group(self, size):
        return self._group

    def read_together(self, pieces, size):
        # For any other number no program is there.
        assert len(pieces) in (1, self._group) or (self.packs and len(pieces) < self._group)
        for piece in pieces:
            self.asked.append(("read", piece.slot, len(piece.tokens), piece.start, size, piece.context))
        return [piece.slot for piece in pieces]

    def read_scored(self, slot, prompt, done, size):
        self.asked.append(("scored", slot, done, size))
        places = np.arange(done, done + size)
        scores = Scores(chosen=-places / 8, ids=places[:, None], values=np.zeros((size, 1)))
        return [slot], scores

    def begin_together(self, beginnings, logits, masks=None):
        for slot, row, which in beginnings:
            assert logits[which] == slot
            self.asked.append(("begin", slot))
            self.rows[slot] = [row.limit, 0]
        return self._burst([slot for slot, _, _ in beginnings], 1)

    error = JllamaError("not finite")

    def not_finite(self):
        return self.error

    def run(self, slots, steps, masks=None):
        if self.gate:
            assert self.gate.get(timeout=WAIT)
        self.asked.append(("run", tuple(slots), steps))
        return self._burst(slots, min(steps, 3))

    def _burst(self, slots, steps):
        tokens, done = np.full((len(slots), steps), -1, np.int32), []
        for row, slot in enumerate(slots):
            limit, count = self.rows[slot]
            new = min(steps, limit - count)
            tokens[row, :new] = np.arange(self.first + count, self.first + count + new)
            self.rows[slot][1] += new
            done.append(count + new >= limit)
        healthy = np.array([slot not in self.bad for slot in slots])
        return Burst.of(tokens, np.array(done), healthy)


@pytest.fixture
def make():
    loops = []

    def make(slots=2, max_len=64, gate=None, group=1, packs=False, **options):
        notes = Notes(gate=gate, group=group, packs=packs)
        loop = Loop(notes, Scheduler(slots, max_len, **options))
        loops.append(loop)
        return loop, notes

    yield make
    for loop in loops:
        gate = loop._slots.gate
        for _ in range(50 if gate else 0):
            gate.put(True)
        loop.close()
        assert not loop._thread.is_alive()


def stream(loop, prompt, limit=5, scored=False, **settings):
    ids = np.array(prompt, np.int32)
    row = Row(prompt=ids, sampling=None, key=None, limit=limit, stop_ids=())
    answer = Answer(Bytes(), prompt, GenerationSettings(**settings))
    return Stream(answer, row, loop.cancel, prompt_logprobs=1 if scored else None)


def ask(loop, *prompts, **options):
    streams = [stream(loop, prompt, **options) for prompt in prompts]
    loop.submit(streams)
    return streams


def test_a_prompt_is_read_then_its_row_runs(make):
    loop, notes = make()
    (one,) = ask(loop, [1] * 11)
    result = one.result(WAIT)
    assert (result.text, result.finish_reason, result.reused_tokens) == ("abcde", "length", 0)
    assert list(one) == ["a", "bcd", "e"]
    loop.close()
    assert notes.asked == [
        ("read", 0, 8, 0, 8, 11),
        ("settle",),
        ("read", 0, 3, 8, 4, 11),
        ("begin", 0),
        ("run", (0,), BURST),
        ("run", (0,), BURST),
        ("run", (0,), BURST),  # asked for before the last one's tokens, which end it, were looked at
        ("settle",),
    ]
    assert one.queued_seconds <= result.prefill_seconds


def test_short_prompts_are_read_together_up_to_a_long_chunk(make):
    loop, notes = make(slots=4)
    ask(loop, [1, 1], [2, 2], [3, 3])[-1].result(WAIT)
    kinds = [entry[:2] for entry in notes.asked]
    assert kinds[:5] == [("read", 0), ("begin", 0), ("read", 1), ("begin", 1), ("run", (0, 1))]
    bursts = [entry for entry in notes.asked if entry[0] == "run"]
    assert bursts[-1][2] == BURST


def test_chunks_of_one_size_are_read_by_one_program(make):
    loop, notes = make(slots=5, group=2)
    streams = ask(loop, [1, 1], [2] * 7, [3, 3], [4] * 6, [5], limit=3)
    assert [one.result(WAIT).text for one in streams] == ["abc"] * 5
    assert [entry[:2] for entry in notes.asked[:5]] == [
        *(("read", 0), ("read", 2), ("begin", 0), ("begin", 2)),
        ("run", (0, 2)),  # what both took of the turn, padding too
    ]
    kinds = [entry[:2] for entry in notes.asked if entry[0] in ("read", "begin")]
    assert kinds[4:6] == [("read", 4), ("begin", 4)]  # the shortest, which nothing else is like
    assert kinds[6:] == [("read", 1), ("read", 3), ("begin", 1), ("begin", 3)]


def test_chunks_of_all_sizes_are_packed_until_a_turn_is_full(make):
    loop, notes = make(slots=6, group=4, packs=True)
    streams = ask(loop, [1, 1], [2] * 5, [3] * 4, [4], [5], [6], limit=2)
    assert [one.result(WAIT).text for one in streams] == ["ab"] * 6
    first = [("read", 0, 2), ("read", 1, 5), ("read", 3, 1)]  # of eight tokens: four more are too many
    assert [entry[:3] for entry in notes.asked[:3]] == first
    assert {entry[4] for entry in notes.asked[:3]} == {8}  # the longest one's program
    assert [entry[:2] for entry in notes.asked[3:7]] == [
        *[("begin", slot) for slot in (0, 1, 3)],
        ("run", (0, 1, 3)),
    ]
    then = [entry[1:3] for entry in notes.asked[7:] if entry[0] == "read"]
    assert sorted(then) == [(2, 4), (4, 1), (5, 1)]


@pytest.mark.parametrize("packs", [False, True])
def test_patient_rows_run_when_all_prompts_are_read(make, packs):
    loop, notes = make(slots=3, group=3, packs=packs, patient=True)
    streams = ask(loop, [1] * 20, [2] * 3, [3] * 9, limit=2)
    assert [one.result(WAIT).text for one in streams] == ["ab"] * 3
    kinds = [entry[0] for entry in notes.asked]
    assert "read" not in kinds[kinds.index("run") :]
    assert notes.asked[kinds.index("run")][1:] == ((0, 1, 2), BURST)


def test_fewer_than_a_program_takes_are_read_one_by_one(make):
    loop, notes = make(slots=4, group=3)
    streams = ask(loop, [1, 1], [2, 2], limit=2)
    assert [one.result(WAIT).text for one in streams] == ["ab"] * 2
    assert [entry[:2] for entry in notes.asked[:4]] == [("read", 0), ("begin", 0), ("read", 1), ("begin", 1)]


def test_a_burst_is_short_while_someone_waits(make):
    gate = queue.SimpleQueue()
    loop, notes = make(slots=1, gate=gate)
    first, second = ask(loop, [1], [2], limit=9)
    for _ in range(20):
        gate.put(True)
    first.result(WAIT), second.result(WAIT)
    steps = {}
    for kind, *rest in notes.asked:
        if kind == "run":
            steps.setdefault(
                len([e for e in notes.asked[: notes.asked.index((kind, *rest))] if e[0] == "begin"]), rest[1]
            )
    assert steps[1] == HURRIED
    assert [entry[2] for entry in notes.asked if entry[0] == "run"][-1] == BURST


def test_a_prefix_is_copied_before_the_rest_is_read(make):
    loop, notes = make(slots=2, gate=(gate := queue.SimpleQueue()))
    (first,) = ask(loop, [1] * 40, limit=20)
    gate.put(True)
    next(iter(first))
    (second,) = ask(loop, [1] * 39 + [2])
    for _ in range(20):
        gate.put(True)
    assert second.result(WAIT).reused_tokens == 39
    at = notes.asked.index(("copy", 0, 1, 39))
    assert notes.asked[at + 1] == ("read", 1, 1, 39, 4, 40)
    assert first.result(WAIT).text == "abcdefghijklmnopqrst"


def test_a_row_that_is_not_finite_fails_alone_and_its_slot_is_wiped(make):
    loop, notes = make(slots=2, gate=(gate := queue.SimpleQueue()))
    good, bad = ask(loop, [1], [2], limit=8)
    gate.put(True)
    next(iter(bad))
    notes.bad = {1}
    for _ in range(20):
        gate.put(True)
    with pytest.raises(JllamaError, match="not finite") as error:
        bad.result(WAIT)
    assert error.value is notes.error
    assert good.result(WAIT).text == "abcdefgh"
    assert ("clear", 1) in notes.asked
    assert ("clear", 0) not in notes.asked


def test_nobody_goes_on_from_a_row_that_was_not_finite(make):
    prompt = list(range(1, 40))
    loop, notes = make(slots=1)
    assert [ask(loop, prompt)[0].result(WAIT).reused_tokens for _ in range(2)] == [0, 38]
    notes.bad = {0}
    with pytest.raises(JllamaError, match="not finite"):
        ask(loop, prompt)[0].result(WAIT)
    notes.bad = set()
    assert ask(loop, prompt)[0].result(WAIT).reused_tokens == 0


def test_what_a_slot_holds_is_gone_on_with_in_its_place(make):
    loop, notes = make(slots=1)
    assert [ask(loop, list(range(1, 40)))[0].result(WAIT).reused_tokens for _ in range(2)] == [0, 38]
    assert not any(entry[0] == "copy" for entry in notes.asked)


def test_a_stop_string_ends_a_row_that_was_not_done(make):
    loop, notes = make()
    (one,) = ask(loop, [1], limit=20, stop="de")
    result = one.result(WAIT)
    assert (result.text, result.finish_reason, result.stop_string) == ("abc", "stop", "de")
    assert sum(entry[0] == "run" for entry in notes.asked) <= 3  # of the seven that its limit would take
    (two,) = ask(loop, [1], limit=4, stop="x")
    assert two.result(WAIT).text == "abcd"
    (three,) = ask(loop, [1], limit=4, stop="dx")  # the `d` is held back until nothing more comes
    assert "".join(three) == three.result(WAIT).text == "abcd"


def test_the_first_token_of_a_vocabulary_is_a_token(make):
    loop, notes = make()
    notes.first = 0
    (one,) = ask(loop, [1], limit=3, ignore_eos=True)
    assert one.result(WAIT).token_ids == [0, 1, 2]


def test_who_waits_longer_says_so(make):
    loop, _ = make(slots=1)
    first, second = ask(loop, [1], [2])
    assert second.result(WAIT)
    assert 0 < first.queued_seconds < second.queued_seconds
    assert second.queued_seconds <= second.result(WAIT).prefill_seconds


def test_who_waited_for_a_beginning_gets_it_in_the_same_turn(make):
    loop, notes = make(slots=2)
    first, second = ask(loop, [*range(1, 35), 50], [*range(1, 35), 60])
    assert (first.result(WAIT).reused_tokens, second.result(WAIT).reused_tokens) == (0, 34)
    at = notes.asked.index(("copy", 0, 1, 34))
    assert notes.asked[at - 1] == ("begin", 0)  # nothing runs between
    assert notes.asked[at + 1 :][:2] == [("read", 1, 1, 34, 4, 35), ("begin", 1)]


@pytest.mark.parametrize("scored", [(True, False), (False, True), (True, True)])
def test_a_scored_prompt_is_read_by_itself(make, scored):
    loop, notes = make(slots=2, group=2)
    streams = [stream(loop, [8 + at, 2, 3], scored=each) for at, each in enumerate(scored)]
    loop.submit(streams)
    assert [one.result(WAIT).text for one in streams] == ["abcde"] * 2
    read = [entry for entry in notes.asked if entry[0] in ("read", "scored")]
    assert read == [
        ("scored", at, 0, 4) if each else ("read", at, 3, 0, 4, 3) for at, each in enumerate(scored)
    ]


def test_the_scores_of_a_prompt_in_chunks(make):
    loop, _ = make()
    prompt = [*range(50, 61)]
    loop.submit([one := stream(loop, prompt, scored=True)])
    none, *scores = one.result(WAIT).prompt_logprobs
    assert none is None
    assert [score.token for score in scores] == prompt[1:]
    assert [score.logprob for score in scores] == [-place / 8 for place in range(10)]
    assert [score.likeliest for score in scores] == [{place: 0.0} for place in range(10)]


def test_who_has_ended_is_not_ended_again(make):
    """A cancellation that comes too late must not take the slot from who has it now."""
    loop, _ = make(slots=1, gate=(gate := queue.SimpleQueue()))
    (first,) = ask(loop, [1], limit=1)
    gate.put(True)
    first.result(WAIT)
    (second,) = ask(loop, [2], limit=12)
    gate.put(True)
    next(iter(second))
    loop.cancel(first)
    for _ in range(20):
        gate.put(True)
    assert second.result(WAIT).text == "abcdefghijkl"
    assert first.result(WAIT).text == "a"
    assert not loop._cancelled


def test_what_was_cancelled_keeps_what_came_and_others_get_its_slot(make):
    loop, _ = make(slots=1, gate=(gate := queue.SimpleQueue()))
    running, waiting, last = ask(loop, [1], [2], [3], limit=30)
    gate.put(True)
    came = next(iter(running))
    waiting.cancel()
    running.cancel()
    for _ in range(50):
        gate.put(True)
    for one in (running, waiting):
        assert one.result(WAIT).finish_reason == "interrupted"
        assert one.ended
    assert waiting.result(WAIT).text == ""
    assert last.result(WAIT).text.startswith("abcdefgh")
    running.cancel()
    assert running.result(0).finish_reason == "interrupted"
    loop.close()
    # The burst that was on its way when it ended adds nothing.
    assert running.result(0).text == came + "".join(running)
    assert list(running) == []
    assert len(running.result(0).token_ids) == len(running.result(0).text)


def test_all_are_taken_or_none(make):
    loop, _ = make(slots=1, max_len=8, max_queue=2)
    with pytest.raises(JllamaError, match="the prompt has 8 tokens and max_seq_len is 8"):
        ask(loop, [1], [1] * 8)
    with pytest.raises(JllamaError, match="the queue holds 2"):
        ask(loop, [1], [2], [3], [4])
    assert not loop._streams
    assert [one.result(WAIT).text for one in ask(loop, [1], [2], [3], limit=2)] == ["ab"] * 3


def test_closing_ends_what_waits_and_what_runs(make):
    loop, _ = make(slots=1, gate=(gate := queue.SimpleQueue()))
    running, waiting = ask(loop, [1], [2], limit=30)
    gate.put(True)
    next(iter(running))
    closing = threading.Thread(target=loop.close)
    closing.start()
    for _ in range(10):
        gate.put(True)
    closing.join(WAIT)
    for one in (running, waiting):
        assert one.result(WAIT).finish_reason == "interrupted"
        assert list(one)[-1:] != [None]
    assert not loop._streams
    with pytest.raises(JllamaError, match="the engine is closed: make another one"):
        ask(loop, [1])


def test_a_failure_of_the_thread_is_everyones(make):
    loop, notes = make(slots=1)
    notes.run = lambda *_: 1 / 0
    one, two = ask(loop, [1], [2])
    for each in (one, two):
        with pytest.raises(JllamaError, match="the engine has failed: division by zero"):
            each.result(WAIT)
    with pytest.raises(JllamaError, match="the engine has failed: division by zero"):
        list(two)
    with pytest.raises(JllamaError, match="the engine has failed") as error:
        ask(loop, [1])
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_listener_hears_everything_in_order_and_may_go_away(make):
    loop, _ = make()
    heard, over = [], threading.Event()

    def listener(who, item):
        heard.append((who, item))
        if item is None:
            over.set()
        elif len(heard) == 2:
            raise RuntimeError("its loop is closed")

    one = stream(loop, [1])
    one.listener = listener
    loop.submit([one])
    assert over.wait(WAIT)
    assert heard == [(one, "a"), (one, "bcd"), (one, "e"), (one, None)]
    assert one.result(WAIT).text == "abcde"


def test_a_listener_may_close_the_engine(make):
    loop, _ = make()
    one, closed = stream(loop, [1], limit=30), []
    one.listener = lambda who, item: closed.append((item, loop.close()))
    loop.submit([one])
    assert one.result(WAIT).finish_reason == "interrupted"
    loop.close()
    assert closed[0] == ("a", None)


@pytest.mark.parametrize("bad", [False, True])
def test_who_hears_of_the_end_finds_the_result(make, bad):
    loop, notes = make()
    ends = queue.SimpleQueue()
    notes.bad = {0} if bad else set()
    one = stream(loop, [1])

    def listener(who, item):
        if not isinstance(item, str):
            ends.put((item, who.ended, who._error, loop.stats.running))

    one.listener = listener
    loop.submit([one])
    error = notes.error if bad else None
    assert ends.get(timeout=WAIT) == (error, True, error, 0)  # its slot is free by then


def test_who_reads_again_or_beside_another_ends_with_the_stream(make):
    loop, _ = make(gate=(gate := queue.SimpleQueue()))
    (one,) = ask(loop, [1], limit=12)
    read = ["", ""]

    def reader(at):
        read[at] = "".join(one)

    readers = [threading.Thread(target=reader, args=(at,)) for at in range(2)]
    for each in readers:
        each.start()
    for _ in range(20):
        gate.put(True)
    for each in readers:
        each.join(WAIT)
    assert not any(each.is_alive() for each in readers)
    assert sorted("".join(read)) == [*"abcdefghijkl"]
    assert ("".join(one), "".join(one)) == ("", "")


def test_each_reader_hears_what_went_wrong(make):
    loop, notes = make()
    notes.bad = {0}
    (one,) = ask(loop, [1])
    for _ in range(3):
        with pytest.raises(JllamaError, match="not finite"):
            list(one)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_runs_or_waits_behind_the_end(make, fails):
    loop, notes = make(slots=1, gate=(gate := queue.SimpleQueue()))
    running, _ = ask(loop, [1], [2], limit=30)
    gate.put(True)
    next(iter(running))
    assert (loop.stats.running, loop.stats.waiting) == (1, 1)
    if fails:
        notes.run = lambda *_: 1 / 0
    closing = threading.Thread(target=loop.close)
    closing.start()
    for _ in range(10):
        gate.put(True)
    closing.join(WAIT)
    assert (loop.stats.running, loop.stats.waiting, loop.stats.used) == (0, 0, 0.0)


def test_what_went_wrong_is_known_when_the_end_is():
    answer = Answer(Bytes(), [1], GenerationSettings())
    row = Row(prompt=np.array([1], np.int32), sampling=None, key=None, limit=5, stop_ids=())
    one, error = Stream(answer, row, print), JllamaError("no")
    seen = []
    one._done = SimpleNamespace(is_set=lambda: False, set=lambda: seen.append(one._error))
    one.end(error)
    assert seen == [error]


def test_a_stream_that_has_not_ended_is_waited_for():
    asked = []
    answer = Answer(Bytes(), [1], GenerationSettings())
    row = Row(prompt=np.array([1], np.int32), sampling=None, key=None, limit=5, stop_ids=())
    one = Stream(answer, row, asked.append, logprobs=1)
    with pytest.raises(TimeoutError, match=r"no answer in 0\.01 seconds"):
        one.result(0.01)
    one.cancel()
    assert asked == [one]
    answer.result.token_ids += [5, 6]
    scores = Scores(chosen=np.array([[0], [-1.5]]), ids=np.zeros((2, 1, 2), int), values=np.zeros((2, 1, 2)))
    answer.result.token_ids = [5]
    one.score(
        Scores(
            chosen=scores.chosen,
            ids=np.array([[[0, 0]], [[7, 8]]]),
            values=np.array([[[0, 0]], [[-1.0, -2.0]]]),
        ),
        1,
    )
    (score,) = answer.result.logprobs
    assert (score.token, score.logprob, score.likeliest) == (5, -1.5, {7: -1.0})
    one.put("a")
    one.end(JllamaError("no"))
    one.end()
    one.cancel()
    assert asked == [one]
    pieces = iter(one)
    assert next(pieces) == "a"
    for wait in (lambda: next(pieces), one.result):
        with pytest.raises(JllamaError, match=r"^no$"):
            wait()


@pytest.mark.parametrize(
    ("prompt", "several"),
    [
        ("a", False),
        ([], True),
        ([1, 2], False),
        ([{"role": "user"}], False),
        (["a"], True),
        (("a", "b"), True),
        ([[1, 2]], True),
        ([[{"role": "user"}]], True),
        ([(1, 2)], True),
        ([None, "a"], True),
        (5, False),
        (iter("a"), False),
    ],
)
def test_a_list_of_prompts_is_told_from_a_prompt(prompt, several):
    assert is_several(prompt) is several


@pytest.mark.parametrize(
    ("requests", "room"),
    [
        ([(10, 246)], 256),
        ([(10, 247)], 512),
        ([(1, 1), (300, 212)], 512),
        ([(1, 5000)], 1000),
        ([(1, 700)], 768),
    ],
)
def test_slots_have_room_for_the_longest_request(requests, room):
    model = SimpleNamespace(config=SimpleNamespace(context_length=1000))
    given = [([0] * count, GenerationSettings(max_new_tokens=wanted)) for count, wanted in requests]
    assert room_for_all(model, given) == room


class Held:
    """A constraint that notes what it is told; all may come."""

    live, error, width, origin = True, None, 1, None

    def __init__(self, notes):
        self.notes, self.matcher = notes, self

    def follow(self, tokens):
        self.notes.asked.append(("follow", *map(chr, tokens)))

    def forced(self):
        return None

    def stretch(self, most):
        assert most == 5
        return []

    def unsafe_compute_mask_ptr(self, pointer, size):
        self.notes.asked.append(("mask", size))

    def settle(self, mask):
        assert mask.tolist() == [-1]


def test_a_row_that_must_match_is_told_its_token_before_the_next_step(make):
    """A mask before each choice, and behind it the tokens that came, one turn after the other."""
    loop, notes = make(slots=1)
    notes._burst = lambda slots, steps, one=notes._burst: one(slots, 1)
    held = stream(loop, [1] * 4, limit=3)
    held.row = dataclasses.replace(held.row, constraint=Held(notes))
    loop.submit([held])
    assert held.result(WAIT).text == "abc"
    order = [asked[0] if asked[0] != "follow" else asked for asked in notes.asked]
    begun = order.index("mask")
    assert order[begun : begun + 8] == [
        *("mask", "begin", ("follow", "a"), "mask", "run", ("follow", "b"), "mask", "run")
    ]


def test_prompts_wait_for_a_few_tokens_of_rows_that_take_one_a_turn(make):
    gate = queue.SimpleQueue()
    loop, notes = make(slots=2, gate=gate)
    notes._burst = lambda slots, steps, one=notes._burst: one(slots, 1)
    held = stream(loop, [1] * 4, limit=14)
    held.row = dataclasses.replace(held.row, constraint=Held(notes))
    loop.submit([held])
    gate.put(True)
    loop.submit([other := stream(loop, [2] * 30, limit=2)])
    for _ in range(40):
        gate.put(True)
    assert other.result(WAIT).text == "ab"
    assert held.result(WAIT).text == "abcdefghijklmn"
    kinds = [asked[0] for asked in notes.asked if asked[0] in ("read", "run")]
    reads = [at for at, kind in enumerate(kinds) if kind == "read"][2:]
    assert len(reads) >= 2
    assert all(kinds[at - HURRIED : at] == ["run"] * HURRIED for at in reads)


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 6])
def test_prompts_are_read_again_once_no_row_takes_one_token_a_turn(make, limit):
    """However many such turns there were."""
    loop, notes = make(slots=1)
    notes._burst = lambda slots, steps, one=notes._burst: one(slots, 1)
    held = stream(loop, [1] * 4, limit=limit)
    held.row = dataclasses.replace(held.row, constraint=Held(notes))
    loop.submit([held])
    held.result(WAIT)
    (other,) = ask(loop, [2], limit=2)
    assert other.result(WAIT).text == "ab"
