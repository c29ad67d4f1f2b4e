"""What 900 idle and slow connections cost 100 others: `python -m tests.support.crowded_server MODEL`.

A process of its own serves the model; 100 connections ask it at once, alone and beside the 900, in turn.
Exit code 1: beside them the median rate is less than 0.9 of the one alone. A busy machine blurs both.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ACTIVE, IDLE, WANTED = 100, 900, 0.9


@contextlib.contextmanager
def serving(model: str, flags: list[str]) -> Iterator[str]:
    """The URL of a server."""
    command = [sys.executable, "-m", "jllama", "serve", model, "--port=0", f"--slots={ACTIVE}", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"http://\S+(?= is the chat page)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


def rate(url: str, idle: int, given: Any, seed: int) -> float:
    """Tokens a second that the 100 get."""
    flags = {
        "requests": given.requests,
        "concurrency": ACTIVE,
        "endpoint": "completions",
        "idle_connections": idle,
        "prompt_tokens": given.prompt_tokens,
        "answer_tokens": given.answer_tokens,
        "seed": seed,
    }
    asking = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", "jllama", "bench", "serve", url, "--json", *asking]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    crowd = report["idle_connections"]
    assert report["done"] == given.requests, report["failures"]
    assert crowd["open"] >= 0.9 * idle, crowd  # the server closes the slow ones, which come again
    return report["completion_tokens_per_second"]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    for name, value in dict(requests=400, prompt_tokens=64, answer_tokens=64, rounds=5).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given, flags = parser.parse_known_args()
    rates: dict[int, list[float]] = {0: [], IDLE: []}
    with serving(given.model, flags) as url:
        for seed in range(given.rounds):
            for idle, found in rates.items():
                found.append(rate(url, idle, given, seed + idle))
                print(f"{idle} idle: {found[-1]:,.0f} tok/s", flush=True)
    share = statistics.median(rates[IDLE]) / statistics.median(rates[0])
    print(f"{share:.2f} of the rate (wanted {WANTED})")
    return share < WANTED


if __name__ == "__main__":
    sys.exit(main())
