"""Steps in which a mask says what may come: token by token, the next logits under way before it is read."""

from collections.abc import Sequence

import numpy as np
from jax import Array

from jllama import sharding
from jllama.config import ModelConfig
from jllama.engine.masked_programs import choose, feeder
from jllama.engine.rows import filled
from jllama.engine.state import Burst, DecodeState, Way
from jllama.grammar.constraint import mask_width
from jllama.model import Params


class MaskedSteps:
    """Which slots hold logits of a token that is still to be chosen, and those logits."""

    def __init__(self, config: ModelConfig, params: Params, slots: int) -> None:
        """Allocates nothing yet."""
        self._config, self._params = config, params
        self._fed = np.zeros((slots,), bool)
        self._logits: Array | None = None  # float32 [slots, V]

    def forget(self, slot: int) -> None:
        """Another text begins there."""
        self._fed[slot] = False

    def pending(self, slots: Sequence[int]) -> bool:
        """Whether the last token of one of them was fed already: it can't take part in a burst yet."""
        return bool(self._fed[list(slots)].any())

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
        waiting = [slot for slot in rows[:live] if not self._fed[slot]]
        if waiting:
            others = [slot for slot in rows if slot not in waiting]
            state = self.feed(state, np.array([*waiting, *others], np.int32), len(waiting), how)
        if masks is None:
            masks = np.full((live, mask_width(self._config.vocab_size)), -1, np.int32)
        assert self._logits is not None
        words = filled(masks, len(rows))
        state, burst = choose(state, self._logits, words, _numbers(rows, live), how=how)
        self._fed[rows[:live]] = False
        return state, burst

    def feed(self, state: DecodeState, rows: np.ndarray, live: int, how: Way) -> DecodeState:
        """Computes the logits behind the rows' last tokens."""
        program = feeder(how.target, len(rows) > 1)
        arguments = (self._config, self._params, state, self._room(), _numbers(rows, live))
        state, self._logits = program(*arguments)
        self._fed[rows[:live]] = True
        return state

    def _room(self) -> Array:
        if self._logits is None:
            zeros = np.zeros((len(self._fed), self._config.vocab_size), np.float32)
            self._logits = sharding.beside(self._params, zeros)
        return self._logits


def _numbers(rows: np.ndarray, live: int) -> np.ndarray:
    return np.concatenate([rows, np.array([live], np.int32)])
