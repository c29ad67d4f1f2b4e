"""What the host answers to a burst that asks, and how that ends; the burst is played."""

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.engine import mask_server
from jllama.engine.mask_server import ALL, MaskServer, Served
from jllama.errors import JllamaError
from tests.support.played_desk import PlayedDesk

WAIT = 60


class Held:
    """A constraint that notes what came; token 9 fits nothing, and nothing may come behind a 5."""

    live = property(lambda self: self.error is None)

    def __init__(self):
        self.came, self.error = [], None

    def follow(self, tokens):
        self.came += tokens
        self.error = JllamaError("unfit") if 9 in tokens else self.error


def masks_for(constraints, masks):
    """Of each row how many tokens came."""
    for each in constraints:
        if each is not None and each.came[-1:] == [5]:
            each.error = JllamaError("stuck")
    masks[:, 0] = [-1 if each is None else len(each.came) for each in constraints]


@pytest.fixture
def desk(monkeypatch):
    monkeypatch.setattr(mask_server, "masks_for", masks_for)
    return PlayedDesk(4, 1)


class Program:
    """A burst that tells `columns` of tokens, and notes the masks that it heard before each."""

    def __init__(self, desk, served, columns, done=()):
        self.desk, self.served, self.columns, self.done = desk, served, columns, done
        self.heard = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        served.launched(self)

    @property
    def arrived(self):
        return not self.thread.is_alive()

    def run(self):
        last = self.served.turn + self.served.steps - 1
        for step, column in enumerate(self.columns):
            turn = self.served.turn + step
            self.heard.append(self.desk.wait(turn, last)[: len(column), 0].tolist())
            told = [[token, (row, step) in self.done, 1] for row, token in enumerate(column)]
            self.desk.put(turn, np.array(told, np.int32))


def asked(server, rows, before=(), steps=4):
    served = Served(steps)
    server.serve(served, rows, before)
    return served


def results(served, program):
    program.thread.join(WAIT)
    return served.answered(WAIT).tolist()


def test_each_mask_is_made_behind_the_tokens_before_it(desk):
    server, rows = MaskServer(desk), [Held(), None, Held()]
    first = SimpleNamespace(tokens=np.array([[1], [2], [3], [99]], np.int32))
    bursts = []
    for before in ([(first, rows)], []):  # the second one is asked for before the first one runs
        bursts.append(asked(server, rows, before))
    assert [served.turn for served in bursts] == [2, 6]
    for served in bursts:
        program = Program(desk, served, [[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]])
        assert results(served, program) == [ALL, ALL, ALL]
        begun = 4 * (served.turn // 4) + 1
        assert program.heard == [[begun + step, -1, begun + step] for step in range(4)]
    assert rows[0].came == [1, *[10, 20, 30, 40] * 2]
    assert rows[2].came == [3, *[12, 22, 32, 42] * 2]


def test_turns_count_the_steps_of_each_burst(desk):
    server, rows = MaskServer(desk), [Held()]
    for steps, turn in ((8, 2), (4, 10), (4, 14)):
        served = asked(server, rows, steps=steps)
        assert served.turn == turn
        assert results(served, Program(desk, served, [[1]] * steps)) == [ALL]
    assert rows[0].came == [1] * 16


def test_tokens_count_up_to_where_a_row_can_go_no_further(desk):
    server, rows = MaskServer(desk), [Held(), Held(), Held()]
    served = asked(server, rows)
    program = Program(desk, served, [[1, 5, 1], [1, 1, 9], [1, 1, 1], [1, 1, 1]])
    assert results(served, program) == [ALL, 1, 1]
    assert [str(each.error) for each in rows] == ["None", "stuck", "unfit"]
    assert rows[0].came == [1, 1, 1, 1]
    again = asked(server, rows)
    assert results(again, Program(desk, again, [[1, 1, 1]] * 4)) == [ALL, 0, 0]


def test_who_is_done_is_asked_nothing_more(desk):
    """Where that is all of them the burst runs to its end by itself, and the next one is served."""
    server, rows = MaskServer(desk), [Held(), None]
    served = asked(server, rows)
    program = Program(desk, served, [[5, 1], [-1, 1], [-1, 1], [-1, 1]], done={(0, 0)})
    assert results(served, program) == [ALL, ALL]
    assert rows[0].error is None
    assert program.heard == [[0, -1]] + [[-1, -1]] * 3
    rows[0] = Held()
    served = asked(server, rows)
    assert results(served, Program(desk, served, [[1, 1]] * 4)) == [ALL, ALL]


def test_an_error_of_the_host_lets_the_burst_go(desk, monkeypatch):
    monkeypatch.setattr(mask_server, "masks_for", lambda *_: 1 / 0)
    served = asked(MaskServer(desk), [Held()])
    program = Program(desk, served, [[1]] * 4)
    with pytest.raises(ZeroDivisionError):
        results(served, program)
    assert not desk.given_up(served.turn + 3)


def test_a_burst_that_waited_too_long_ends_its_rows(desk):
    """And only theirs: a row that may be anything goes on. So did the burst behind it, meanwhile."""
    go, rows = threading.Event(), [Held(), None]

    class First:
        @property
        def tokens(self):
            go.wait(WAIT)
            return np.array([[1], [2]], np.int32)

    desk._looks = 1
    server = MaskServer(desk)
    bursts = [asked(server, rows, [(First(), rows)]), asked(server, rows)]
    programs = []
    for served in bursts:
        programs.append(Program(desk, served, [[1, 2]] * 4))
        programs[-1].thread.join(WAIT)
    go.set()
    for served, program in zip(bursts, programs, strict=True):
        assert results(served, program) == [0, ALL]
        assert program.heard == [[-1, -1]] * 4
    assert "stood still" in str(rows[0].error)
    assert rows[0].came == [1]


@pytest.mark.parametrize("begun", [True, False])
def test_nobody_waits_for_a_burst_that_never_comes_or_died(desk, begun):
    server, rows = MaskServer(desk), [Held()]
    served = asked(server, rows)
    if begun:
        Program(desk, served, [[1]])
    else:
        served.launched(None)
    assert served.answered(WAIT).tolist() == [ALL]
    again = asked(server, rows)
    assert again.turn == 6
    assert results(again, Program(desk, again, [[1]] * 4)) == [ALL]


def test_what_a_burst_told_last_counts_though_it_has_ended_meanwhile(desk):
    """Between two looks a program may tell its token and end."""
    told = iter([False, True])
    desk.has_told = lambda turn: next(told, True)
    rows, served = [Held()], Served(4)
    served.over = lambda: True
    task = mask_server._Task(desk, served, 2, rows)
    assert task._wait(2)
    assert not mask_server._Task(SimpleNamespace(has_told=lambda turn: False), served, 2, rows)._wait(2)


def test_a_desk_is_left_behind_the_last_burst(desk):
    server, rows = MaskServer(desk), [Held()]
    served = asked(server, rows)
    left = server._thread.submit(threading.current_thread)
    del server
    gc.collect()
    assert not desk.left
    results(served, Program(desk, served, [[1]] * 4))
    left.result(WAIT).join(WAIT)
    assert desk.left
