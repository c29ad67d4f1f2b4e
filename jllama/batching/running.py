"""A burst under way, whose rows are which texts, and what they must match."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jllama.batching.stream import Stream
from jllama.engine.mask_server import ALL, Constraints, Served
from jllama.engine.state import NO_TOKEN, Burst
from jllama.errors import JllamaError
from jllama.grammar.constraint import masks_for


@dataclasses.dataclass(frozen=True)
class Running:
    """A burst that the device computes, and whose tokens its rows are."""

    burst: Burst
    streams: tuple[Stream, ...]
    failed: frozenset[int] = frozenset()  # rows that nothing may come of: their tokens mean nothing
    forced: tuple[int, ...] = ()  # of a row that is alone: tokens without a choice, before the burst's
    served: Served | None = None  # it asks for masks, and its rows' constraints hear what comes

    @property
    def constraints(self) -> Constraints:
        """What each row must match."""
        return [stream.row.constraint for stream in self.streams]

    @property
    def single(self) -> bool:
        """Whether some row must match, and nobody answers for it: of all rows it is one token."""
        return self.served is None and any(each is not None for each in self.constraints)

    @classmethod
    def of(cls, burst: Burst, streams: tuple[Stream, ...], forced: Sequence[int] = ()) -> "Running":
        """With the rows whose constraints allowed nothing when their masks were filled."""
        constraints = enumerate(stream.row.constraint for stream in streams)
        failed = (at for at, each in constraints if each is not None and each.error is not None)
        return cls(burst, streams, frozenset(failed), tuple(forced))

    def followed(self) -> "Running":
        """Tells rows that must match which tokens came. Waits for these, while the device goes on."""
        if self.served is not None:
            self.served.counts()
        if not self.single:
            return self
        failed, tokens = set(self.failed), self.burst.tokens.tolist()
        for row, stream in enumerate(self.streams):
            constraint = stream.row.constraint
            if constraint is not None and not stream.ended and row not in failed:
                constraint.follow([token for token in tokens[row] if token != NO_TOKEN])
                failed |= {row} if constraint.error else set()
        return dataclasses.replace(self, failed=frozenset(failed))

    def columns(self) -> list[int]:
        """How many of the burst's columns count of each row, `ALL` but for an `error`; waits for it."""
        if self.served is not None:
            return self.served.counts().tolist()
        return [0 if row in self.failed else ALL for row in range(len(self.streams))]

    def error(self, row: int) -> JllamaError | None:
        """Why the row's answer can't go on as it must, if it can't."""
        constraint = self.constraints[row]
        return None if constraint is None else constraint.error


def masks_of(streams: Sequence[Stream]) -> np.ndarray | None:
    """What may come next in each row, int32 `[b, ceil(V/32)]`; None where all may be anything."""
    constraints = [stream.row.constraint for stream in streams]
    return masks_for(constraints) if any(constraints) else None
