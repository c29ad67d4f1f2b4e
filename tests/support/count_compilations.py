"""Runs a script; the last line of stderr says how many programs JAX asked for, and how many it compiled."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import jax

EVENTS: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: EVENTS.update([event]))
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: EVENTS.update([event]))

del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    programs = EVENTS["/jax/core/compile/backend_compile_duration"]
    found = EVENTS["/jax/compilation_cache/cache_hits"]
    print(json.dumps({"programs": programs, "compiled": programs - found}), file=sys.stderr)
