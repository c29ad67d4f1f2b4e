"""jllama's side of `compare_cpu.py`: `python -m cpu_comparison.jllama_side FILE THREADS`.

Requests come on standard input. Everything runs as in `bench.py`:
the engine's own prefill and decode loop, sampling included.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpu_comparison.side import answer
from jllama.checkpoint import load_params, read_config
from jllama.cli import measure
from jllama.config import ModelConfig
from jllama.hub.references import resolve
from jllama.machine import devices
from jllama.model import Params

MAX_LEN = 1024


def decode(config: ModelConfig, params: Params, rows: int, count: int) -> float:
    """Seconds a step of so many rows."""
    return _seconds(measure.generation_seconds, config, params, kind="tg", count=count, batch=rows) / count


def prefill(config: ModelConfig, params: Params, count: int) -> float:
    """Seconds of a whole prompt."""
    return _seconds(measure.prompt_seconds, config, params, kind="pp", count=count, batch=1)


def _seconds(once: Callable[..., float], config: ModelConfig, params: Params, **test: Any) -> float:
    slots = measure.empty_slots(config, params, test["batch"], MAX_LEN)
    return once(slots, measure.Test(depth=0, **test), np.random.default_rng(0))


def main() -> None:
    """Loads the model and answers."""
    path = Path(sys.argv[1])
    devices.configure("cpu")
    files = resolve(str(path))
    config = read_config(files)
    dtype = "float32" if path.stem.endswith("F32") else "bfloat16"
    params = load_params(files, config, dtype, progress=False, quantize="auto")
    answer(partial(decode, config, params), partial(prefill, config, params))


if __name__ == "__main__":
    main()
