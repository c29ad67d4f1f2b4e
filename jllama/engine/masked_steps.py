"""Steps in which a mask says what may come: token by token, the next logits under way before it is read."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from jllama import sharding
from jllama.config import ModelConfig
from jllama.engine.mask_server import MaskServer
from jllama.engine.masked_programs import (
    accepter,
    changing_of,
    chooser,
    feeder,
    joined,
    kept_of,
)
from jllama.engine.rows import Piece, Row, packed
from jllama.engine.slot_programs import reader
from jllama.engine.state import Burst, DecodeState, Way
from jllama.grammar.constraint import mask_width
from jllama.kernels.target import Target
from jllama.layers.cache import KVCache
from jllama.model import Params

OF_THE_WHOLE_TEXT = ("dynamic", "longrope")  # a token's angles depend on how long the text was when it came


class MaskedSteps:
    """Which slots hold logits of a token that is still to be chosen, and those logits.

    Attributes:
      asks: bursts ask the host for masks (`asking.py`) instead.
      server: who answers them, once one has asked.
    """

    def __init__(self, config: ModelConfig, params: Params, slots: int, *, asks: bool = False) -> None:
        """Allocates nothing yet."""
        self.asks = asks
        self.server: MaskServer | None = None
        self._config, self._params = config, params  # prompts' programs take them as they are
        self._leaves, self._weights = jax.tree.flatten(params)
        self._fed = np.zeros((slots,), bool)
        self._length = np.zeros((slots,), np.int64)  # of rows that must match: positions that are filled
        self._left = np.zeros((slots,), np.int64)  # likewise: tokens that may come without a choice
        ropes = (config.kind_of(layer).rope for layer in range(config.num_hidden_layers))
        self._exact = all(rope is None or rope.rope_type not in OF_THE_WHOLE_TEXT for rope in ropes)
        self._logits: Array | None = None  # float32 [slots, V]
        self._order: Order | None = None  # of the last call
        self._kept: DecodeState | None = None  # likewise: what choices only read

    def begin(self, slot: int, row: Row) -> None:
        """Another text begins there, whose first token is chosen."""
        self._fed[slot], self._length[slot] = False, len(row.prompt)
        self._left[slot] = row.limit - 2 if self._exact and not row.scores else 0

    def forget(self, slot: int) -> None:
        """The last token there is still to be fed, whatever was said: the row was done."""
        self._fed[slot], self._kept = False, None

    def most_forced(self, slot: int, target: Target) -> int:
        """How many tokens `accept` may take of the text there, whose last one is chosen."""
        return min(target.chunk_sizes[0], int(self._left[slot]))

    def length(self, slot: int) -> int:
        """How many positions of a text that must match are filled, if it goes on."""
        return int(self._length[slot])

    def ran(self, slots: Sequence[int], steps: int) -> None:
        """So many tokens were fed and came without `step`, if the texts go on."""
        self._length[list(slots)] += steps
        self._left[list(slots)] -= steps

    def pending(self, slots: Sequence[int]) -> bool:
        """Whether the last token of one of them was fed already: it can't take part in a burst yet."""
        return bool(self._fed[list(slots)].any())

    def step(
        self, state: DecodeState, rows: np.ndarray, live: int, masks: np.ndarray | None, how: Way
    ) -> tuple[DecodeState, Burst]:
        """`choose`, its token on the way to the host; where masks are given for each, the next logits too."""
        state, burst = self.choose(state, rows, live, masks, how)
        burst = burst.underway()
        if masks is not None and not self.asks:  # else a burst follows, which feeds the tokens itself
            state = self.feed(state, rows, live, how)
        return state, burst

    def choose(
        self, state: DecodeState, rows: np.ndarray, live: int, masks: np.ndarray | None, how: Way
    ) -> tuple[DecodeState, Burst]:
        """One token of each row.

        Args:
          state: of all slots; donated.
          rows: int32 `[b]`, slots; their last tokens are fed where they are not.
          live: how many of them run, the first ones.
          masks: int32 `[live, ceil(V/32)]`; None: any token may come.
          how: not `greedy`.
        """
        if not self._fed[rows[:live]].all():
            waiting = [slot for slot in rows[:live] if not self._fed[slot]]
            others = [slot for slot in rows if slot not in waiting]
            state = self.feed(state, np.array([*waiting, *others], np.int32), len(waiting), how)
        order = self._ordered(rows, live, how)
        words = np.full((len(rows), mask_width(self._config.vocab_size)), -1, np.int32)
        if masks is not None:
            words[order.places] = masks
        mask = sharding.beside(self._leaves[0], words)  # on its way before anything waits for it
        if self._kept is None or self._kept.keys is not state.keys:  # another text has begun
            self._kept = kept_of(state)
        changing, burst = order.choose(changing_of(state), self._kept, self._logits, mask, order.numbers)
        self._fed[rows[:live]] = False
        self._left[rows[:live]] -= 1
        return joined(state, changing), burst

    def feed(self, state: DecodeState, rows: np.ndarray, live: int, how: Way) -> DecodeState:
        """Computes the logits behind the rows' last tokens."""
        order = self._ordered(rows, live, how)
        arguments = (state.cache, self._room(), state.token, state.done, order.numbers)
        cache, self._logits = order.feed(self._leaves, *arguments)
        self._fed[rows[:live]] = True
        self._length[rows[:live]] += 1
        return dataclasses.replace(state, cache=cache)

    def accept(self, state: DecodeState, slot: int, tokens: np.ndarray, how: Way) -> DecodeState:
        """Reads tokens that must come as the shortest chunk; the next choice is of the logits behind them.

        Args:
          state: of all slots; donated.
          slot: whose; its last token is fed if it is not.
          tokens: int32 `[n]`, `most_forced` at most.
          how: the way of all steps.
        """
        if not self._fed[slot]:
            state = self.feed(state, np.array([slot], np.int32), 1, how)
        start, count = int(self._length[slot]), len(tokens)
        piece = Piece(slot, tokens, start, start + count)
        new, cache = read_forced(how.target, self._config, self._params, state.cache, piece)
        numbers = forced_numbers(how.target, slot, tokens)
        changing, self._logits = accepter(how.target)(changing_of(state), self._room(), new, numbers)
        self._length[slot] += count
        self._left[slot] -= count
        return joined(dataclasses.replace(state, cache=cache), changing)

    def _room(self) -> Array:
        if self._logits is None:
            zeros = np.zeros((len(self._fed), self._config.vocab_size), np.float32)
            self._logits = sharding.beside(self._leaves[0], zeros)
        return self._logits

    def _ordered(self, rows: np.ndarray, live: int, how: Way) -> "Order":
        """What runs these rows; what says so to the device stays there until others do."""
        if self._order is None or not self._order.says(rows, live, how):
            feed = feeder(self._config, self._weights, how.target, len(rows) > 1)
            numbers, places = _numbered(rows, live, len(self._fed))
            numbers = sharding.beside(self._leaves[0], numbers)
            self._order = Order(rows, live, how, places, numbers, feed, chooser(how))
        return self._order


def read_forced(
    target: Target, config: ModelConfig, params: Params, cache: KVCache, piece: Piece
) -> tuple[Array, KVCache]:
    """Reads a row's tokens as the shortest chunk: float32 logits `[1, V]` behind them, and the cache."""
    size = target.chunk_sizes[0]
    return reader(target, size)(config, params, cache, packed([piece], size, size))


def forced_numbers(target: Target, slot: int, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """`numbers` of `masked_programs.accepter`."""
    numbers = np.zeros((2 + target.chunk_sizes[0],), np.int32)
    numbers[0], numbers[1], numbers[2 : 2 + len(tokens)] = slot, len(tokens), tokens
    return numbers


@dataclasses.dataclass(frozen=True)
class Order:
    """Which rows run, and what runs them."""

    rows: np.ndarray  # int32 [b], as they were given
    live: int  # how many of them run, the first ones
    how: Way
    places: np.ndarray  # int32 [live]: where the programs have these
    numbers: Array  # as in `masked_programs`
    feed: Callable[..., Any]
    choose: Callable[..., Any]

    def says(self, rows: np.ndarray, live: int, how: Way) -> bool:
        """Whether it is of these rows."""
        return self.live == live and self.rows.tobytes() == rows.tobytes() and self.how == how


def _numbered(rows: np.ndarray, live: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """`numbers` of `masked_programs`, all slots in their own order; where in it the rows stand that run."""
    b = len(rows)
    order = rows if b == slots else np.arange(b, dtype=np.int32)
    numbers = np.zeros((3, b), np.int32)
    numbers[0, order], numbers[1, order[:live]], numbers[2] = rows, 1, order
    return numbers, order[:live]
