"""Texts in slots, and which of them begins as another one does."""

from collections.abc import Sequence

import numpy as np

HEAD = 64  # tokens that are compared in all slots at once; most texts differ within them
NOBODY = -1  # no token


class Beginnings:
    """A text for each slot, as int32 `[n]`."""

    def __init__(self, slots: int) -> None:
        """All are empty."""
        self._texts = [np.zeros((0,), np.int32)] * slots
        self._heads = np.full((slots, HEAD), NOBODY, np.int32)

    def __getitem__(self, slot: int) -> np.ndarray:
        """A slot's text."""
        return self._texts[slot]

    def __setitem__(self, slot: int, text: np.ndarray) -> None:
        """Another text for a slot."""
        self._texts[slot] = text
        self._heads[slot, : len(text)] = text[:HEAD]
        self._heads[slot, len(text) :] = NOBODY

    def shared(self, wanted: np.ndarray, slots: Sequence[int]) -> list[int]:
        """How many first tokens of `wanted`, int32 `[n]`, are those of each of these slots' texts."""
        differs = self._heads[list(slots), : len(wanted)] != wanted[:HEAD]
        ends = np.ones((len(slots), 1), bool)
        counts = np.concatenate([differs, ends], axis=1).argmax(axis=1).tolist()
        return [
            common_prefix(self._texts[slot], wanted) if count == HEAD else count
            for slot, count in zip(slots, counts, strict=True)
        ]


def common_prefix(held: np.ndarray, wanted: np.ndarray) -> int:
    """How many first tokens are the same."""
    count = min(len(held), len(wanted))
    differs = held[:count] != wanted[:count]
    return int(differs.argmax()) if differs.any() else count
