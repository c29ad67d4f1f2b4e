"""Feeds damaged input to jllama: `python -m tests.support.fuzz --count=1000 --seed=1 --kind='files/*'`.

Each module below has `KINDS`: name -> a function of a `random.Random` and an empty directory. It makes one
damaged input, feeds it to jllama, and returns: None, or the `JllamaError` that it got (which it may raise as
well). Whatever else it raises is a finding. So are a crash, a hang and a memory blow-up, which is why cases
run in child processes. The same seed makes the same cases. Exit code 1: there were findings.
"""

import argparse
import collections
import fnmatch
import importlib
import importlib.util
import os
import random
import select
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .fuzz_child import Child, Limits

MODULES = ("text", "files", "hub", "chat")
Kind = Callable[[random.Random, Path], Exception | None]


def collect(pattern: str = "*") -> dict[str, Kind]:
    """The kinds of every module that is there, as `module/kind`."""
    kinds = {}
    for module in MODULES:
        name = f"{__package__}.fuzz_{module}"
        if importlib.util.find_spec(name):
            found = importlib.import_module(name).KINDS
            kinds |= {f"{module}/{kind}": function for kind, function in found.items()}
    return {name: kind for name, kind in kinds.items() if fnmatch.fnmatch(name, pattern)}


def run(kinds: dict[str, Kind], numbers: range, seed: int, jobs: int, limits: Limits) -> list[str]:
    """Runs cases `numbers` of each kind; prints what came of them and returns the findings."""
    cases = iter([(name, number) for number in numbers for name in kinds])
    outcomes: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in kinds}
    findings = []
    with tempfile.TemporaryDirectory(prefix="jllama-fuzz-") as scratch:
        for name, number, outcome, detail in _results(kinds, cases, seed, jobs, limits, Path(scratch)):
            outcomes[name][outcome] += 1
            if outcome not in ("read", "refused"):
                findings.append(
                    f"{outcome}: --kind={name!r} --seed={seed} --first={number} --count=1\n{detail}"
                )
                print(findings[-1], flush=True)
    for name, counter in outcomes.items():
        print(f"{name:<40} " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counter.items())))
    total = sum(counter.total() for counter in outcomes.values())
    print(f"{total} inputs of {len(kinds)} kinds, {len(findings)} findings")
    return findings


def _results(
    kinds: dict[str, Kind], cases: Iterator, seed: int, jobs: int, limits: Limits, scratch: Path
) -> Iterator[tuple[str, int, str, str]]:
    """Kind, number, outcome and detail of each case, as they come."""
    children: list[Child] = []
    try:
        while True:
            while len(children) < jobs and (case := next(cases, None)):
                children.append(Child(kinds, seed, limits, scratch))
                children[-1].give(*case)
            if not children:
                return
            select.select([child.answers for child in children], [], [], 0.1)
            for child in list(children):
                if (answer := child.outcome()) is None:
                    continue
                yield (*child.case, *answer)
                if child.alive and child.count < 200 and (case := next(cases, None)):
                    child.give(*case)
                else:
                    child.close()
                    children.remove(child)
    finally:
        for child in children:
            child.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="*", help="a pattern of kinds: 'files/*'")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="CPU time of a case; 20 times that in all")
    parser.add_argument("--megabytes", type=int, default=1024, help="memory that one case may add")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count)
    limits, begin = Limits(options.seconds, options.megabytes), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jllama-xla-") as cache:  # children share what they compile
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        findings = run(collect(options.kind), numbers, options.seed, options.jobs, limits)
    print(f"{time.monotonic() - begin:.1f} s")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
