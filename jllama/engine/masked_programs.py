"""The programs of a step in two halves: the model's logits, and the choice among those that a mask leaves.

Between them the host learns which token came and fills the masks, while the device computes what follows it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jllama import kernels, sharding
from jllama.config import ModelConfig
from jllama.engine.slot_programs import STATE, compiled, on_rows, some_rows
from jllama.engine.state import Burst, DecodeState, Way, take_token
from jllama.kernels.target import Target
from jllama.model import Params
from jllama.sharding import WHOLE


@functools.cache
def feeder(target: Target, batched: bool) -> Callable[..., tuple[DecodeState, Array]]:
    """Feeds the last tokens of some rows: `numbers` is int32 `[b + 1]`, slots and how many of them run.
    Their logits are put into float32 `[slots, V]`.
    """

    def feed(
        config: ModelConfig, params: Params, state: DecodeState, logits: Array, numbers: Array
    ) -> tuple[DecodeState, Array]:
        rows, live = numbers[:-1], numbers[-1]
        some = some_rows(state, rows)
        active = ~some.done & (jnp.arange(rows.shape[0], dtype=jnp.int32) < live)
        n_valid, tokens = active.astype(jnp.int32), some.token[:, None]
        new, cache = kernels.forward(config, params, tokens, some.cache, n_valid=n_valid, target=target)
        new = target.whole(new, config.vocab_size)
        if state.cache.batch == 1:
            return dataclasses.replace(state, cache=cache), new[:, 0]
        kept = jnp.where(active[:, None], new[:, 0], logits[rows])
        whole = dataclasses.replace(state, cache=state.cache.with_rows_of(cache))
        return whole, logits.at[rows].set(kept, unique_indices=True)

    options = target.step_options(1 + batched)
    return compiled(feed, target, (STATE, WHOLE), options=options, donated=(2, 3))


@functools.partial(jax.jit, donate_argnames="state", static_argnames="how")
def choose(
    state: DecodeState, logits: Array, mask: Array, numbers: Array, *, how: Way
) -> tuple[DecodeState, Burst]:
    """One more token of each row that runs, from `feeder`'s logits; `numbers` as there, `mask` int32
    `[b, ceil(V/32)]` as in `take_token`.
    """
    run = sharding.everywhere(functools.partial(_choose, how), how.target.mesh, (STATE, WHOLE))
    return run(state, logits, mask, numbers)


def _choose(
    how: Way, state: DecodeState, logits: Array, mask: Array, numbers: Array
) -> tuple[DecodeState, Burst]:
    rows, live = numbers[:-1], numbers[-1]
    own = logits if state.cache.batch == 1 else logits[rows]

    def step(some: DecodeState) -> tuple[DecodeState, Burst]:
        new = take_token(some, own, how, mask)
        return new, Burst.of_step(new, ~some.done)

    return on_rows(state, rows, live, how, step)
