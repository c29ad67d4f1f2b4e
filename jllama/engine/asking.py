"""Bursts of rows of which some must match: at each step the program asks the host for masks, and goes on.

Where no program can ask, `masked_steps` take one token after the other.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import kernels
from jllama.config import ModelConfig
from jllama.engine.mask_server import Constraints, MaskServer, Served
from jllama.engine.masked_programs import changing_of, joined, taken
from jllama.engine.masked_steps import forced_numbers, read_forced
from jllama.engine.rows import Piece, bucketed
from jllama.engine.slot_programs import STATE, compiled, on_rows
from jllama.engine.slots import Slots
from jllama.engine.state import Burst, DecodeState, Way
from jllama.engine.step import HURRIED, decode_steps
from jllama.grammar.constraint import mask_width
from jllama.model import Params
from jllama.sharding import WHOLE


def ask(
    slots: Slots,
    rows: Sequence[int],
    constraints: Constraints,
    before: Sequence[tuple[Burst, Constraints]] = (),
) -> tuple[Burst, Served]:
    """`Slots.run` of rows of which some must match, where `Slots.masked.asks`.

    Args:
      slots: where they are.
      rows: which.
      constraints: of each row. A thread has them until it has served this burst and all before.
      before: earlier bursts whose tokens nobody has told the constraints beside them.
    """
    _, scores, floors = slots.needs(rows)
    how = slots.way(scores=scores, floors=floors)
    placed, server = bucketed(rows, slots.buckets), _server_of(slots)
    served, burst = Served(_steps(len(placed))), None
    try:
        server.serve(served, constraints, before)
        numbers = np.array([*placed, len(rows), served.turn], np.int64).astype(np.int32)
        program = asker(how, len(placed))
        slots.state, burst = program(slots.config, slots.params, slots.state, numbers, server.addresses)
    finally:
        served.launched(burst)
    slots.masked.ran(rows, served.steps)
    return burst.underway(), served


def jump(slots: Slots, slot: int, last: int, tokens: Sequence[int]) -> None:
    """Takes tokens of a row that must come next, after its `last` one, as the shortest chunk."""
    start, count = slots.masked.length(slot), len(tokens)
    piece = Piece(slot, np.array([last, *tokens[:-1]], np.int32), start, start + count)
    _, cache = read_forced(slots.target, slots.config, slots.params, slots.state.cache, piece)
    changing = take(changing_of(slots.state), forced_numbers(slots.target, slot, tokens))
    slots.state = joined(dataclasses.replace(slots.state, cache=cache), changing)
    slots.masked.ran([slot], count)


take = jax.jit(taken, donate_argnums=0)


@functools.cache
def asker(how: Way, b: int) -> Callable[..., tuple[DecodeState, Burst]]:
    """A burst of b rows that asks: `numbers` is int32 `[b + 2]`, slots, how many of them run, the turn of the
    first step; `addresses` are those of a desk.
    """
    steps = _steps(b)

    def run(
        config: ModelConfig, params: Params, state: DecodeState, numbers: Array, addresses: Array
    ) -> tuple[DecodeState, Burst]:
        rows, live, turn = numbers[:-2], *numbers[-2:]
        line = kernels.gpu.Line(addresses=addresses, turn=turn, last=turn + np.int32(steps - 1), steps=steps)
        burst = functools.partial(decode_steps, config, params, steps=jnp.int32(steps), how=how, line=line)
        return on_rows(state, rows, live, how, burst)

    return compiled(run, how.target, (STATE, WHOLE), options=how.target.step_options(b))


def _steps(b: int) -> int:
    """Of a burst. A row that is alone looks for a jump soon; the others have programs of one length, since
    each is compiled anew, short enough for whoever waits.
    """
    return HURRIED if b == 1 else 2 * HURRIED


def _server_of(slots: Slots) -> MaskServer:
    if slots.masked.server is None:
        (device,) = slots.state.token.devices()
        width = mask_width(slots.config.vocab_size)
        slots.masked.server = MaskServer(kernels.gpu.Desk.taken(device, slots.buckets[-1], width))
    return slots.masked.server
