"""Token ids in, token ids out: prefill, the decode step and the loop around it. No text, no printing.

`DecodeState` is one pytree and `decode_step` one function of it. `decode_block` runs the step up to
`BLOCK` times inside one compiled loop, so that the device never waits for the host.
"""

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jllama import kernels
from jllama.config import ModelConfig
from jllama.errors import JllamaError
from jllama.layers.cache import KVCache
from jllama.model import Params
from jllama.prefill import platform_of
from jllama.prefill import prefill as prefill
from jllama.sampling import Sampling, TokenCounts, sample

BLOCK = 16
NO_TOKEN = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeState:
    """All that the next step depends on."""

    cache: KVCache
    token: Array  # int32 [B]: sampled last, not yet in the cache
    generated: Array  # int32 [B]: how many tokens were sampled
    limit: Array  # int32 [B]: how many may be
    done: Array  # bool [B]
    healthy: Array  # bool [B]: all logits so far were finite
    keys: Array  # uint32 [B, 2]: the randomness of each row
    stop_ids: Array  # int32 [E]: tokens that end a row
    sampling: Sampling
    counts: TokenCounts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """What a call of the loop hands out, apart from the state."""

    tokens: Array  # int32 [B, up to BLOCK]: in order, then NO_TOKEN
    done: Array  # bool [B]
    healthy: Array  # bool [B]


@partial(jax.jit, donate_argnames=("cache",))
def start_decode(
    cache: KVCache,
    logits: Array,
    sampling: Sampling,
    prompt: Array,
    n_prompt: Array,
    keys: Array,
    limit: Array,
    stop_ids: Array,
) -> tuple[DecodeState, Block]:
    """Samples the first token from the prompt's last logits.

    Args:
      cache: what `prefill` gave; donated.
      logits: float32 `[B, V]`, likewise.
      sampling: the settings of each row.
      prompt: int32 `[B, S]`, right-padded, and its lengths `n_prompt`, int32 `[B]`: for the penalties.
      n_prompt: see `prompt`.
      keys: uint32 `[B, 2]`, the randomness of each row.
      limit: int32 `[B]`, how many tokens a row may generate.
      stop_ids: int32 `[E]`, tokens that end a row; `[NO_TOKEN]` for none.
    """
    B, V = logits.shape
    state = DecodeState(
        cache=cache,
        token=jnp.zeros((B,), jnp.int32),
        generated=jnp.zeros((B,), jnp.int32),
        limit=limit,
        done=jnp.zeros((B,), bool),
        healthy=jnp.ones((B,), bool),
        keys=keys,
        stop_ids=stop_ids,
        sampling=sampling,
        counts=TokenCounts.of_prompt(prompt, n_prompt, V),
    )
    state = _take_token(state, logits)
    return state, Block(tokens=state.token[:, None], done=state.done, healthy=state.healthy)


def decode_step(
    config: ModelConfig, params: Params, state: DecodeState, platform: str, *, plain: bool = False
) -> DecodeState:
    """Feeds each row's last token and samples its next one; rows that are done stay as they are.

    `plain`: every row takes the largest logit as it is (`Sampling.is_plain`).
    """
    active = (~state.done).astype(jnp.int32)
    logits, cache = kernels.forward(
        config, params, state.token[:, None], state.cache, n_valid=active, platform=platform
    )
    return _take_token(dataclasses.replace(state, cache=cache), logits[:, 0], plain)


def _take_token(state: DecodeState, logits: Array, plain: bool = False) -> DecodeState:
    """Samples the next token of each row that is not done."""
    active = ~state.done
    if plain:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        token = sample(logits, state.sampling, state.counts, _uniform(state.keys, state.generated))
    token = jnp.where(active, token, state.token)
    generated = state.generated + active.astype(jnp.int32)
    ended = jnp.any(token[:, None] == state.stop_ids[None, :], axis=-1) | (generated >= state.limit)
    # A sum, not a maximum: XLA on a CPU passes over a NaN when it takes the largest.
    finite = jnp.isfinite(jnp.sum(logits, axis=-1)) | state.done
    return dataclasses.replace(
        state,
        token=token,
        generated=generated,
        done=state.done | (ended & active) | ~finite,
        healthy=state.healthy & finite,
        counts=state.counts if plain else state.counts.add(token, active),
    )


def _uniform(keys: Array, position: Array) -> Array:
    """Counter-based: the draw of a row depends on its key and position alone, never on its neighbours."""

    def draw(key: Array, position: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), position))

    return jax.vmap(draw)(keys, position)


@partial(jax.jit, static_argnames=("config", "platform"), donate_argnames=("state",))
def decode_block(
    config: ModelConfig, params: Params, state: DecodeState, steps: Array, *, platform: str
) -> tuple[DecodeState, Block]:
    """Up to `steps` (int32 scalar, at most `BLOCK`) decode steps, fewer once all rows are done.

    A GPU always takes `BLOCK` steps. The old state is donated: it must not be used afterwards.
    """
    loop = _fixed_loop if platform == "gpu" else _open_loop
    state, tokens = loop(config, params, state, steps, platform)
    return state, Block(tokens=tokens, done=state.done, healthy=state.healthy)


Carry = tuple[Array, DecodeState, Array]  # the step, the state, tokens [B, BLOCK]


def _one_step(config: ModelConfig, params: Params, carry: Carry, platform: str, plain: bool) -> Carry:
    step, state, tokens = carry
    active = ~state.done
    # Without the barrier XLA hoists a float32 copy of every bfloat16 weight out of the loop.
    weights, _ = jax.lax.optimization_barrier((params, step))
    state = decode_step(config, weights, state, platform, plain=plain)
    new = jnp.where(active, state.token, NO_TOKEN)
    return step + 1, state, jax.lax.dynamic_update_index_in_dim(tokens, new, step, axis=1)


def _open_loop(
    config: ModelConfig, params: Params, state: DecodeState, steps: Array, platform: str
) -> tuple[DecodeState, Array]:
    """Ends after `steps` or with the last row."""

    def unfinished(carry: Carry) -> Array:
        return (carry[0] < steps) & ~jnp.all(carry[1].done)

    def body(carry: Carry) -> Carry:
        return _one_step(config, params, carry, platform, plain=False)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state, _no_tokens(state)))[1:]


def _fixed_loop(
    config: ModelConfig, params: Params, state: DecodeState, steps: Array, platform: str
) -> tuple[DecodeState, Array]:
    """Always `BLOCK` steps, and one branch for all of them.

    On a GPU every condition that the device computes costs a round trip to the host, a third of a step.
    """

    def run(state: DecodeState, plain: bool) -> tuple[DecodeState, Array]:
        def body(_: Array, carry: Carry) -> Carry:
            return _one_step(config, params, carry, platform, plain)

        return jax.lax.fori_loop(0, BLOCK, body, (jnp.int32(0), state, _no_tokens(state)))[1:]

    return jax.lax.cond(state.sampling.is_plain(), partial(run, plain=True), partial(run, plain=False), state)


def _no_tokens(state: DecodeState) -> Array:
    return jnp.full((state.token.shape[0], BLOCK), NO_TOKEN, jnp.int32)


class Decoder:
    """Runs a state to its end, always one block ahead of the reader: the device never waits for the host."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        state: DecodeState,
        first: Block,
        *,
        block_seconds: float = 0.05,
    ) -> None:
        """Takes what `start_decode` gave. Blocks grow until one takes about `block_seconds`."""
        self.config, self.params, self.state = config, params, state
        self._ready, self._block_seconds = first, block_seconds

    def __iter__(self) -> Iterator[np.ndarray]:
        """Blocks of new tokens, int32 `[B, up to BLOCK]`; `NO_TOKEN` fills rows that are done.

        Raises:
          JllamaError: the logits of a row are not finite.
        """
        platform, before = platform_of(self.params), time.perf_counter()
        steps = BLOCK if platform == "gpu" else 1
        while True:
            self.state, ahead = decode_block(
                self.config, self.params, self.state, np.int32(steps), platform=platform
            )
            tokens = np.asarray(self._ready.tokens)
            _check_healthy(self._ready, self.state.cache.keys[0].dtype)
            yield tokens[:, : max(1, int((tokens != NO_TOKEN).any(axis=0).sum()))]
            if np.asarray(self._ready.done).all():
                return
            now = time.perf_counter()
            steps = BLOCK if platform == "gpu" else _next_steps(steps, now - before, self._block_seconds)
            self._ready, before = ahead, now


def _next_steps(steps: int, seconds: float, target: float) -> int:
    """Twice as many while they took less than half of the target time, half when more than twice."""
    return min(2 * steps, BLOCK) if seconds < target / 2 else max(1, steps // (1 + (seconds > 2 * target)))


def _check_healthy(block: Block, dtype: jnp.dtype) -> None:
    if np.asarray(block.healthy).all():
        return
    advice = "use --dtype=bfloat16" if dtype == jnp.float16 else "is the checkpoint damaged?"
    raise JllamaError(f"the model's logits are not finite in {dtype}: {advice}")
