"""LongRoPE: a text that outgrows the length of training is turned by another list of divisors from then on.

What a cache holds was turned by one list, and the values of deeper layers follow from it. So nothing is
reused for a text of the other list, and a row that generates stops at the border until its text is read anew.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jllama.config import ModelConfig
from jllama.engine.beginnings import common_prefix
from jllama.engine.decoder import bursts, masked_bursts, read_prompt
from jllama.engine.rows import Row
from jllama.engine.slots import Slots
from jllama.engine.state import Burst
from jllama.grammar.constraint import masks_for
from jllama.layers.rope_frequencies import longrope_divisors


@dataclasses.dataclass(frozen=True)
class Borders:
    """Lengths of texts; one that is longer is turned otherwise than one that is not."""

    lengths: tuple[int, ...]  # rising; empty but for LongRoPE

    @classmethod
    def of(cls, config: ModelConfig) -> "Borders":
        """Those of all layers."""
        ropes = {config.kind_of(layer).rope for layer in range(config.num_hidden_layers)}
        two = [rope for rope in ropes if rope and rope.rope_type == "longrope"]
        two = [rope for rope in two if len(set(longrope_divisors(rope))) > 1]
        return cls(tuple(sorted({rope.original_max_position_embeddings for rope in two})))

    def side(self, count: int) -> int:
        """How many borders a text of `count` tokens is beyond: texts of one side are turned alike."""
        return bisect.bisect_left(self.lengths, count)

    def reusable(self, held: Sequence[int], prompt: np.ndarray) -> int:
        """How many first tokens of a prompt, int32 `[n]`, need not be read where a cache holds `held`. One
        is always left: its logits are where the answer starts.
        """
        if self.side(len(held)) != self.side(len(prompt)):
            return 0
        return common_prefix(np.asarray(held, np.int32), prompt[:-1])

    def stopping(self, row: Row, came: int = 0) -> Row:
        """A row of which `came` tokens were generated, with the next border as its limit if it comes first:
        the token behind it is still chosen, but not fed.
        """
        ahead = self.lengths[self.side(len(row.prompt) + came) :][:1]
        return dataclasses.replace(row, limit=min([row.limit, *(b + 1 - len(row.prompt) for b in ahead)]))

    def stops(self, row: Row, came: int) -> bool:
        """Whether a row that `stopping` limited has stopped at a border, and not at its own limit."""
        return 0 < came < row.limit and len(row.prompt) + came - 1 in self.lengths

    def cross(self, slots: Slots, row: Row, came: Sequence[int], slot: int = 0) -> None:
        """Reads the text of a row that stopped anew, all but its last token, which is fed next."""
        text = np.concatenate([row.prompt, np.asarray(came, np.int32)])
        read_prompt(slots, text[:-1], slot=slot, context=len(text))
        slots.go_on(slot, self.stopping(row, len(came)).limit)

    def bursts(self, slots: Slots, first: Burst, row: Row) -> Iterator[np.ndarray]:
        """`decoder.bursts` or `masked_bursts` of a text alone, beyond all borders. `first` is of the row as
        `stopping` gave it. Whoever sees the answer end asks for no more.
        """
        came, constraint = list[int](), row.constraint
        while True:
            steps = bursts(slots, first) if constraint is None else masked_bursts(slots, first, [constraint])
            for tokens in steps:
                came += tokens[0][tokens[0] >= 0].tolist()
                yield tokens
            if not self.stops(row, len(came)):
                return
            self.cross(slots, row, came)
            first = slots.run([0], 1, None if constraint is None else masks_for([constraint]))


NONE = Borders(())
