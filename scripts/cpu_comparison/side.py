"""What the sides of `compare_cpu.py` share: requests on standard input, answers on standard output.

Only the standard library, since not every side runs in jllama's Python.
"""

import json
import sys
from collections.abc import Callable


def answer(decode: Callable[[int, int], float], prefill: Callable[[int], float]) -> None:
    """Answers each request with a line `seconds NUMBER`; that of `ready` takes none.

    Args:
      decode: seconds a step, of rows and tokens.
      prefill: seconds of a prompt of so many tokens.
    """
    for line in sys.stdin:
        request = json.loads(line)
        test, seconds = request["test"], 0.0
        if test.startswith("decode"):
            seconds = decode(int(test.removeprefix("decode")), request["tokens"])
        elif test.startswith("prefill"):
            seconds = prefill(int(test.removeprefix("prefill")))
        print(f"seconds {seconds}", flush=True)
