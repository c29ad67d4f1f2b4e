"""jllama's side of `compare_cpu.py`: `compare_cpu_jllama.py FILE THREADS`, requests on standard input.

Everything runs as in `bench.py`: the engine's own prefill and decode loop, sampling included.
"""

import json
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np

from jllama import runtime
from jllama.checkpoint import load_params, read_config
from jllama.config import ModelConfig
from jllama.hub import resolve
from jllama.layers.cache import KVCache
from jllama.model import Params

MAX_LEN = 1024


def run(config: ModelConfig, params: Params, request: dict[str, Any]) -> float:
    """Seconds a step of `decodeB`, or of a whole `prefillT`."""
    name, count = request["test"], request["tokens"]
    decode = name.startswith("decode")
    rows = int(name.removeprefix("decode")) if decode else 1
    test = measure.Test(
        kind="tg" if decode else "pp",
        count=count if decode else int(name.removeprefix("prefill")),
        depth=0,
        batch=rows,
    )
    cache = KVCache.empty(config, batch=rows, max_len=MAX_LEN, dtype=str(params.norm.dtype))
    once = measure._generate_once if decode else measure._prefill_once
    seconds, _ = once(config, params, test, cache, np.random.default_rng(0))
    return seconds / count if decode else seconds


def main() -> None:
    """Answers each request with a line `seconds NUMBER`."""
    path = Path(sys.argv[1])
    runtime.configure("cpu")
    files = resolve(str(path))
    config = read_config(files)
    dtype = "float32" if path.stem.endswith("F32") else "bfloat16"
    params = load_params(files, config, dtype, progress=False, quantize="auto")
    for line in sys.stdin:
        request = json.loads(line)
        seconds = 0.0 if request["test"] == "ready" else run(config, params, request)
        print(f"seconds {seconds}", flush=True)


if __name__ == "__main__":
    main()
