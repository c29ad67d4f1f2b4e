"""Runs a script; the last line of stderr says how many programs JAX asked for, and how many it compiled."""

import atexit
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import jax

EVENTS: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: EVENTS.update([event]))
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: EVENTS.update([event]))


def tell() -> None:
    programs = EVENTS["/jax/core/compile/backend_compile_duration"]
    found = EVENTS["/jax/compilation_cache/cache_hits"]
    print(json.dumps({"programs": programs, "compiled": programs - found}), file=sys.stderr)


atexit.register(tell)  # a script's end takes nothing down, but hears out what was registered
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
