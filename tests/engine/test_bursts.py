"""The pace of a reader: when bursts are asked for and how long they are, what is handed out."""

from types import SimpleNamespace

import numpy as np
import pytest

from jllama.engine import decoder
from jllama.engine.decoder import bursts
from jllama.engine.state import NO_TOKEN
from jllama.engine.step import BURST
from jllama.errors import JllamaError

ERROR = JllamaError("not finite")


def burst(*rows, done=(), healthy=()):
    tokens = np.array(rows, np.int32)
    flags = np.array([at in done for at in range(len(rows))])
    return SimpleNamespace(tokens=tokens, done=flags, healthy=np.array(healthy or [True]))


class Seen(SimpleNamespace):
    """A burst that notes when its tokens are asked for: then they are waited for."""

    @property
    def tokens(self):
        self.notes.append("waited")
        return self.given.tokens


class Played:
    """Slots that note what is asked for and give the next burst."""

    def __init__(self, given, on_gpu=False):
        self.notes, self._given = [], iter(given)
        self.target = SimpleNamespace(on_gpu=on_gpu)

    def run(self, rows, steps):
        self.notes.append(("run", rows, steps))
        return next(self._given)

    def not_finite(self):
        return ERROR


def read(monkeypatch, given, seconds=(), on_gpu=False, rows=(3, 1)):
    """What is asked for and handed out, where the time between two bursts is as given."""
    times = iter([0.0, *np.cumsum([*seconds, *[1.0] * len(given)]).tolist()])
    monkeypatch.setattr(decoder, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    slots = Played([*given[1:], None], on_gpu)
    first = Seen(given=given[0], notes=slots.notes, done=given[0].done, healthy=given[0].healthy)
    try:
        for block in bursts(slots, first, rows):
            slots.notes.append(block.tolist())
    except JllamaError as error:
        slots.notes.append(error)
    return slots.notes


def test_the_device_is_one_burst_ahead_of_the_reader(monkeypatch):
    first, second, last = burst([5], [6]), burst([7], [8]), burst([9], [9], done=(0, 1))
    notes = read(monkeypatch, [first, second, last], on_gpu=True)
    run = ("run", (3, 1), BURST)
    assert notes == [run, "waited", [[5], [6]], run, [[7], [8]], run, [[9], [9]]]


def test_without_a_gpu_the_first_token_comes_before_steps_are_asked_for(monkeypatch):
    first, second, last = burst([5], [6]), burst([7], [8]), burst([9], [9], done=(0, 1))
    run, more = ("run", (3, 1), 1), ("run", (3, 1), 2)
    notes = read(monkeypatch, [first, second, last], seconds=[FAST, FINE])
    assert notes == ["waited", [[5], [6]], run, more, [[7], [8]], more, [[9], [9]]]
    assert read(monkeypatch, [burst([5], done=(0,))]) == ["waited", [[5]]]  # none, if it is the only one


def test_columns_in_which_no_row_has_a_token_are_not_handed_out(monkeypatch):
    gap = NO_TOKEN
    given = [burst([0, gap, gap], [3, 4, gap], done=(0,)), burst([gap] * 3, [gap] * 3, done=(0, 1))]
    blocks = [note for note in read(monkeypatch, given) if isinstance(note, list)]
    assert blocks == [[[0, gap], [3, 4]], [[gap], [gap]]]


def test_a_row_that_is_not_finite_is_an_error_before_its_tokens(monkeypatch):
    given = [burst([5]), burst([6], healthy=(True, False)), burst([7])]
    notes = read(monkeypatch, given)
    assert [note for note in notes if not isinstance(note, tuple)] == ["waited", [[5]], ERROR]


FAST, FINE, SLOW = (decoder.BURST_SECONDS * factor for factor in (0.4, 1.5, 2.5))


@pytest.mark.parametrize(
    ("on_gpu", "seconds", "steps"),
    [
        (False, [FAST] * 6, [1, 2, 4, 8, 16, 16, 16]),
        (False, [FAST, FAST, FINE, SLOW, SLOW, SLOW], [1, 2, 4, 4, 2, 1, 1]),
        (True, [FAST, SLOW, FAST, SLOW], [BURST] * 5),
    ],
)
def test_bursts_take_about_as_long_as_is_pleasant_to_read(monkeypatch, on_gpu, seconds, steps):
    """Each is measured by itself; on a GPU all have one length."""
    given = [burst([1])] * len(seconds) + [burst([1], done=(0,))]
    notes = read(monkeypatch, given, seconds, on_gpu)
    assert [note[2] for note in notes if note[0] == "run"] == steps


class Held:
    """What must match: nothing fits a 9, and nothing may come once masks were asked for `stuck` times."""

    def __init__(self, stuck=99):
        self.came, self.error, self.left = [], None, stuck

    def follow(self, tokens):
        self.came += tokens
        self.error = ERROR if 9 in tokens else self.error


def masked(monkeypatch, given, constraints):
    """What is handed out of rows that must match, and the error at its end."""

    def masks_for(held):
        for each in held:
            each.left -= 1
            each.error = each.error or (ERROR if each.left == 0 else None)
        return "masks"

    monkeypatch.setattr(decoder, "masks_for", masks_for)
    left, came = iter(given[1:]), []
    how = dict(masked=SimpleNamespace(asks=False), not_finite=lambda: ERROR)
    slots = SimpleNamespace(run=lambda rows, steps, masks: next(left), **how)
    try:
        for block in decoder.masked_bursts(slots, given[0], constraints, (3, 1)):
            came.append(block.tolist())
    except JllamaError as error:
        came.append(error)
    return came


def test_rows_that_must_match_follow_what_comes_and_its_error_comes_behind_the_tokens(monkeypatch):
    gap, one = NO_TOKEN, burst([5], [6])
    over, last = burst([gap], [7], done=(0,)), burst([gap], [8], done=(0, 1))
    both = [Held(), Held()]
    assert masked(monkeypatch, [one, over, last], both) == [[[5], [6]], [[gap], [7]], [[gap], [8]]]
    assert [each.came for each in both] == [[5], [6, 7, 8]]
    # Who is over may have nothing that could come next.
    came = masked(monkeypatch, [one, over, last], [Held(stuck=2), Held()])
    assert came == [[[5], [6]], [[gap], [7]], [[gap], [8]]]
    # What fits nothing is not handed out; nothing may come: the tokens before it are.
    assert masked(monkeypatch, [one, burst([9], [7])], [Held(), Held()]) == [[[5], [6]], ERROR]
    assert masked(monkeypatch, [burst([9], [7], done=(0, 1))], [Held(), Held()]) == [ERROR]
    assert masked(monkeypatch, [one, over], [Held(), Held(stuck=1)]) == [[[5], [6]], ERROR]


@pytest.mark.parametrize(("chunk_steps", "taken"), [(2, True), (3, False), (4, False)])
@pytest.mark.parametrize("asks", [False, True])
def test_a_stretch_is_read_at_once_where_that_is_faster_than_steps(monkeypatch, chunk_steps, taken, asks):
    """Then what must match hears of it; else its tokens come one by one, and it hears of them then."""
    notes, target = [], SimpleNamespace(chunk_steps=chunk_steps)
    held = SimpleNamespace(last=8, follow=lambda tokens: notes.append(("follow", tokens)))
    held.stretch = lambda most: [4, 5, 6][:most]
    masked = SimpleNamespace(asks=asks, most_forced=lambda slot, given: 9 if given is target else 0)
    accept = lambda slot, tokens: notes.append(("accept", slot, tokens.tolist()))  # noqa: E731
    slots = SimpleNamespace(target=target, masked=masked, accept=accept)
    monkeypatch.setattr(decoder, "jump", lambda *given: notes.append(("jump", *given)))
    assert decoder.forced(slots, 7, held) == ([4, 5, 6] if taken else [])
    read = ("jump", slots, 7, 8, [4, 5, 6]) if asks else ("accept", 7, [4, 5, 6])
    assert notes == ([read, ("follow", [4, 5, 6])] if taken else [])
    assert decoder.forced(slots, 7, None) == []


@pytest.mark.parametrize(("start", "told"), [(0, [10, 4, 4, 2]), (3, [7, 4, 3]), (6, []), (7, [])])
def test_a_bar_counts_what_is_left_of_a_prompt_in_several_chunks(start, told):
    notes, read = [], []

    class Bar:
        def __init__(self, total):
            notes.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, count):
            notes.append(count)

    def read_together(pieces, size):
        read.extend((piece.slot, piece.start, piece.tokens.tolist(), piece.context) for piece in pieces)
        return np.zeros((1, 3), np.float32)

    slots = SimpleNamespace(next_chunk=lambda left: min(left, 4), read_together=read_together)
    decoder.read_prompt(slots, np.arange(10, dtype=np.int32), start, slot=2, progress=Bar)
    assert notes == told
    assert [token for _, _, tokens, _ in read for token in tokens] == list(range(start, 10))
    assert {(slot, context) for slot, _, _, context in read} == {(2, 10)}


def test_what_comes_of_no_row_that_is_stuck_is_handed_out(monkeypatch):
    """The columns before the first of them; then why it is."""
    second = burst([5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8])
    served = SimpleNamespace(counts=lambda: np.array([3, decoder.ALL, 1]))
    held = [SimpleNamespace(error=JllamaError(f"row {row}") if row != 1 else None) for row in range(3)]
    left = iter([(second, served), (burst([9] * 4), served)])
    monkeypatch.setattr(decoder, "ask", lambda *_: next(left))
    slots, came = SimpleNamespace(masked=SimpleNamespace(asks=True)), []
    blocks = decoder.masked_bursts(slots, burst([1], [2], [3]), held, (0, 1, 2))
    with pytest.raises(JllamaError, match="row 0"):
        came.extend(block.tolist() for block in blocks)
    assert came == [[[1], [2], [3]], [[5]] * 3]


def test_who_is_over_can_not_be_stuck_any_more(monkeypatch):
    """A row that its limit has ended may have nothing that could come next."""
    first, second = burst([1], [2], done=(0,)), burst([NO_TOKEN] * 2, [5, 6], done=(0,))
    last = burst([NO_TOKEN], [7], done=(0, 1))
    counts = iter([[decoder.ALL, decoder.ALL], [0, decoder.ALL]])
    left = iter([(each, SimpleNamespace(counts=lambda: np.array(next(counts)))) for each in (second, last)])
    waited = []
    beyond = (None, SimpleNamespace(counts=lambda: waited.append("counts")))
    monkeypatch.setattr(decoder, "ask", lambda *_: next(left, beyond))
    held = [SimpleNamespace(error=JllamaError("nothing may come")), SimpleNamespace(error=None)]
    slots = SimpleNamespace(masked=SimpleNamespace(asks=True))
    came = [block.tolist() for block in decoder.masked_bursts(slots, first, held, (0, 1))]
    assert came == [[[1], [2]], [[NO_TOKEN] * 2, [5, 6]], [[NO_TOKEN], [7]]]
    assert waited == ["counts"], "the constraints are the thread's until it has served the last burst"
