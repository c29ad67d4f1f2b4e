"""Tokens as they come: runs a `DecodeState` to its end. No text, no printing."""

import time
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jllama.config import ModelConfig
from jllama.engine.state import NO_TOKEN, Burst, DecodeState, Way
from jllama.engine.step import BURST, decode_burst
from jllama.errors import JllamaError
from jllama.model import Params

BURST_SECONDS = 0.05


class Decoder:
    """Runs a state to its end, always one burst ahead of the reader: the device never waits for the host."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        state: DecodeState,
        first: Burst,
        how: Way,
    ) -> None:
        """Takes what `start_decode` gave. Bursts grow until one takes about `BURST_SECONDS`."""
        self.config, self.params, self.state, self.how = config, params, state, how
        self._ready = first

    def __iter__(self) -> Iterator[np.ndarray]:
        """Bursts of new tokens, int32 `[B, up to BURST]`; `NO_TOKEN` fills rows that are done.

        Raises:
          JllamaError: the logits of a row are not finite.
        """
        fixed, before = self.how.target.on_gpu, time.perf_counter()
        steps = BURST if fixed else 1
        while True:
            self.state, ahead = decode_burst(self.config, self.params, self.state, np.int32(steps), self.how)
            tokens = np.asarray(self._ready.tokens)
            _check_healthy(self._ready, self.state.cache.keys[0].dtype)
            yield tokens[:, : max(1, int((tokens != NO_TOKEN).any(axis=0).sum()))]
            if np.asarray(self._ready.done).all():
                return
            now = time.perf_counter()
            steps = BURST if fixed else _next_steps(steps, now - before, BURST_SECONDS)
            self._ready, before = ahead, now


def _next_steps(steps: int, seconds: float, target: float) -> int:
    """Twice as many while they took less than half of the target time, half when more than twice."""
    return min(2 * steps, BURST) if seconds < target / 2 else max(1, steps // (1 + (seconds > 2 * target)))


def _check_healthy(burst: Burst, dtype: jnp.dtype) -> None:
    if np.asarray(burst.healthy).all():
        return
    advice = "use --dtype=bfloat16" if dtype == jnp.float16 else "is the checkpoint damaged?"
    raise JllamaError(f"the model's logits are not finite in {dtype}: {advice}")
