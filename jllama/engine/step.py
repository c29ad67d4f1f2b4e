"""The decode step and the compiled loop around it.

`DecodeState` is one pytree and `decode_step` one function of it. `decode_steps` takes the step up to
`BURST` times inside one compiled loop, so that the device never waits for the host.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from jllama import kernels
from jllama.config import ModelConfig
from jllama.engine.state import NO_TOKEN, Burst, DecodeState, Way, take_token
from jllama.layers.sampling import Scores
from jllama.model import Params

if TYPE_CHECKING:
    from jllama.kernels.gpu import Line

BURST = 16
HURRIED = 4  # steps of a burst while someone waits


def decode_step(
    config: ModelConfig, params: Params, state: DecodeState, how: Way, line: "Line | None" = None
) -> DecodeState:
    """Feeds each row's last token and samples its next one; rows that are done stay as they are. With a line
    to the host it is asked for masks.
    """
    active = (~state.done).astype(jnp.int32)
    logits, cache = kernels.forward(
        config, params, state.token[:, None], state.cache, n_valid=active, target=how.target
    )
    shards = kernels.shards_of(params, how.target)
    state, logits = dataclasses.replace(state, cache=cache), logits[:, 0]
    mask = None if line is None else kernels.gpu.hear(line, logits)
    return take_token(state, logits, how, mask, shards=shards)


def decode_steps(
    config: ModelConfig,
    params: Params,
    state: DecodeState,
    steps: Array,
    *,
    how: Way,
    line: "Line | None" = None,
) -> tuple[DecodeState, Burst]:
    """Up to `steps` (int32 scalar, at most `BURST`) decode steps, fewer once all rows are done.

    A GPU always takes `BURST` steps, or `HURRIED` ones where `how` says so. With a `line`, of the first step,
    each asks the host for masks and tells it what came, and there are as many as the line says.
    """
    loop = _fixed_loop if how.target.on_gpu else _open_loop
    state, out = loop(config, params, state, steps, how, line)
    return state, Burst.of(out.tokens, state.done, state.healthy, out.scores)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Out:
    """What the steps hand out; each step fills a column."""

    tokens: Array  # int32 [B, BURST]
    scores: Scores | None

    @classmethod
    def empty(cls, state: DecodeState) -> "_Out":
        def columns(leaf: Array) -> Array:
            return jnp.zeros((leaf.shape[0], BURST, *leaf.shape[1:]), leaf.dtype)

        tokens = jnp.full((state.token.shape[0], BURST), NO_TOKEN, jnp.int32)
        return cls(tokens=tokens, scores=jax.tree.map(columns, state.scores))

    def put(self, step: Array, new: "_Out") -> "_Out":
        """With column `step` from leaves that lack that axis."""

        def column(old: Array, leaf: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(old, leaf, step, axis=1)

        return jax.tree.map(column, self, new)


def _one_step(
    config: ModelConfig,
    params: Params,
    step: Array,
    state: DecodeState,
    out: _Out,
    how: Way,
    line: "Line | None",
) -> tuple[DecodeState, _Out]:
    """The state after one more step, and what it hands out in column `step`."""
    active = ~state.done
    # Without the barrier XLA hoists a float32 copy of every bfloat16 weight out of the loop.
    weights, _ = jax.lax.optimization_barrier((params, step))
    line = line and line.after(step)
    state = decode_step(config, weights, state, how, line)
    if line is not None:
        token = kernels.gpu.tell(line, Burst.of_step(state, active).told, state.token)
        state = dataclasses.replace(state, token=token)
    new = jnp.where(active, state.token, NO_TOKEN)
    return state, out.put(step, _Out(tokens=new, scores=state.scores))


def _open_loop(
    config: ModelConfig, params: Params, state: DecodeState, steps: Array, how: Way, line: "Line | None"
) -> tuple[DecodeState, _Out]:
    """Ends after `steps` or with the last row."""
    Carry = tuple[Array, DecodeState, _Out]  # the step, the state, what came

    def unfinished(carry: Carry) -> Array:
        return (carry[0] < steps) & ~jnp.all(carry[1].done)

    def body(carry: Carry) -> Carry:
        step, state, out = carry
        return step + 1, *_one_step(config, params, step, state, out, how, line)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state, _Out.empty(state)))[1:]


def _fixed_loop(
    config: ModelConfig, params: Params, state: DecodeState, steps: Array, how: Way, line: "Line | None"
) -> tuple[DecodeState, _Out]:
    """Always `BURST` steps, `HURRIED` ones, or those of the line: on a GPU a condition that the device
    computes costs a round trip to the host, a third of a step, and one around the loop a copy of the cache.
    """

    def body(step: Array, carry: tuple[DecodeState, _Out]) -> tuple[DecodeState, _Out]:
        return _one_step(config, params, step, *carry, how, line)

    count = line.steps if line else HURRIED if how.short else BURST
    return jax.lax.fori_loop(0, count, body, (state, _Out.empty(state)))
