"""Words that a program and the host say to each other, emulated; and the host's half of a desk."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from jllama.kernels.gpu import desk
from tests.support import emulation

ROWS, W = 3, 700  # more words than a block has threads


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """`tell` and `hear`, which waits for a short while."""
    source = desk.desk_source(ROWS, W).replace("PATIENCE 60000000000ull", "PATIENCE 50ull")
    how = dict(threads=desk.BLOCK_SIZE, shared=16)
    return emulation.Emulated.several(
        tmp_path_factory.mktemp("desk"),
        source,
        [
            emulation.Kernel("jllama_tell", 5, grid=1, **how),
            emulation.Kernel("jllama_hear", 4, grid=ROWS, **how),
        ],
    )


@pytest.fixture
def at_desk():
    """Its words, its masks, and the array of their addresses."""
    random = np.random.default_rng(0)
    words = np.zeros((desk.TOLD + desk.LINE,), np.uint32)
    masks = random.integers(2**32, size=(ROWS + 2, W), dtype=np.uint32)
    return words, masks, np.zeros((2,), np.int64)


def test_what_came_is_told_with_its_turn(kernels, at_desk):
    words, masks, addresses = at_desk
    told = np.array([[7, 0, 1], [-1, 1, 1], [9, 0, 0]], np.int32)
    token, same = np.array([7, 4, 9], np.int32), np.zeros((ROWS,), np.int32)
    before = words.copy()
    kernels[0]([addresses, np.array([41, 44], np.int32), told, token, same], [(addresses, (words, masks))])
    np.testing.assert_array_equal(same, token)
    before[desk.TOLD : desk.TOLD + 9] = told.reshape(-1).view(np.uint32)
    before[desk.TOLD_TURN] = 41
    np.testing.assert_array_equal(words, before)


@pytest.mark.parametrize(
    ("ready", "turn", "there"),
    [(5, 5, True), (8, 5, True), (4, 5, False), (2, 2**32 - 2, True), (2**32 - 2, 2, False)],
)
def test_masks_are_taken_once_they_are_there(kernels, at_desk, ready, turn, there):
    """Of this turn or a later one, also where the count of turns begins anew."""
    words, masks, addresses = at_desk
    words[desk.READY] = ready
    found, turns = np.zeros((ROWS, W), np.uint32), np.array([turn, turn + 3], np.int64).astype(np.uint32)
    logits = np.zeros((ROWS, 32 * W), np.float32)
    kernels[1]([addresses, turns, logits, found], [(addresses, (words, masks))])
    np.testing.assert_array_equal(found, masks[:ROWS] if there else np.full_like(found, 2**32 - 1))
    places = words[desk.GIVEN_UP :][: desk.LINE].tolist()
    assert places == [0 if there or at != turns[1] // 4 % 32 else turns[1] for at in range(desk.LINE)]


def test_a_burst_waits_in_vain_once(kernels, at_desk):
    """Its later steps take what is there, or go on; the next burst waits again."""
    words, masks, addresses = at_desk
    words[desk.READY], words[desk.GIVEN_UP + 2] = 6, 9
    logits = np.zeros((ROWS, 32 * W), np.float32)
    for turn, last in ((6, 9), (7, 9), (10, 13)):
        found = np.zeros((ROWS, W), np.uint32)
        turns = np.array([turn, last], np.int32)
        kernels[1]([addresses, turns, logits, found], [(addresses, (words, masks))])
        np.testing.assert_array_equal(found, masks[:ROWS] if turn == 6 else np.full_like(found, 2**32 - 1))
        assert words[desk.GIVEN_UP + last // 4] == last
    assert words[desk.GIVEN_UP + 2] == 9, "of the burst before"


@pytest.fixture
def made(monkeypatch):
    """Makes desks in this process's memory."""
    rooms = []

    def mapped(number, size):
        rooms.append(np.full((size // 4,), 7, np.uint32))
        return rooms[-1].ctypes.data, 2**40 + 3

    monkeypatch.setattr(desk, "_mapped", mapped)
    monkeypatch.setattr(desk, "_spare", desk.defaultdict(list))
    monkeypatch.setattr(desk.jax, "device_put", lambda array, device: array)
    device = SimpleNamespace(local_hardware_id=2)
    return lambda rows=ROWS, width=W: (desk.Desk.taken(device, rows, width), rooms)


def test_a_desk_has_its_places_where_the_kernels_look(made):
    found, (room,) = made()
    assert not room.any()
    base, masks = found.addresses.view(np.int64).tolist()
    assert base == 2**40 + 3
    found.masks[:] = np.arange(ROWS * W).reshape(ROWS, W)
    at = (masks - base) // 4
    np.testing.assert_array_equal(room[at:], np.arange(ROWS * W))
    assert at % desk.LINE == 0
    assert at >= desk.TOLD + 3 * ROWS
    room[desk.TOLD : desk.TOLD + 4] = 5, 1, 0, 2**32 - 1
    assert found.told.tolist() == [[5, 1, 0], [-1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("turn", [3, 2**31 - 1, 2**31 + 5, 2**32 - 1, 2**32 + 1])
def test_turns_go_on_for_ever(made, turn):
    found, (room,) = made()
    found.answer(turn)
    assert room[desk.READY] == turn % 2**32
    half = 2**31
    for told, wanted in (
        *((turn - 1, False), (turn, True), (turn + 15, True)),
        *((turn + half - 1, True), (turn + half, False)),
    ):
        room[desk.TOLD_TURN] = told % 2**32
        assert found.has_told(turn) is wanted
    for last in (turn, turn + 4):
        assert not found.given_up(last)
        room[desk.GIVEN_UP + last % 2**32 // 4 % 32] = last % 2**32
        assert found.given_up(turn), "whatever comes after it"
        assert found.given_up(last)


def test_who_comes_later_sits_where_nobody_does(made):
    first, _ = made()
    second, rooms = made()
    assert len(rooms) == 2
    first.turn = 90
    first.leave()
    assert made(rows=4)[0] not in (first, second)
    third, _ = made()
    assert third is first
    assert third.turn == 90
    assert made()[0] is not first


def test_no_burst_ends_with_turn_0(made):
    """Which a desk begins with as the last one that gave up."""
    first = made()[0].turn
    assert all((first + sum(steps) - 1) % 4 == 1 for steps in itertools.product((4, 16), repeat=3))


def test_where_no_program_asks(monkeypatch):
    """Where stores are seen in another order, without our kernels, without memory that both reach."""

    def mapped(number, size):
        if number == 3:
            raise MemoryError(f"{size} bytes")

    def refusal(machine="x86_64", reason=None, number=0):
        monkeypatch.setattr(desk.platform, "machine", lambda: machine)
        monkeypatch.setattr(desk.launch, "refusal", lambda: reason)
        monkeypatch.setattr(desk.launch, "device", lambda: SimpleNamespace(local_hardware_id=number))
        return desk.desk_refusal.__wrapped__()

    monkeypatch.setattr(desk, "_mapped", mapped)
    assert refusal() is refusal("AMD64") is None
    assert "x86" in refusal("aarch64")
    assert refusal(reason="no GPU") == "no GPU"
    assert refusal(number=3) == "4096 bytes"
