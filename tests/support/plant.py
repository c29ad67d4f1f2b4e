"""Plants single faults, one at a time, and runs the tests that cover them until one notices.

    python -m tests.support.coverage_map /tmp/map.json                 # once, and after tests changed
    python -m tests.support.plant /tmp/faults.toml --map=/tmp/map.json --results=/tmp/results.jsonl --jobs=2

A list of faults is TOML (or JSON: a list of the same tables). `line` decides where `old` is not unique:

    [[fault]]
    id = "stop-1"
    file = "jllama/text/stop.py"
    line = 31
    old = "if length > 0:"
    new = "if length >= 0:"
    note = "equivalent: …"      # optional: the tests cannot notice it; it is not run

Faults are planted in copies of the working tree. Results are appended, and what is in them is not run again
(`--again` runs it again). A test that fails without the fault too does not count.
"""

import argparse
import collections
import json
import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .coverage_map import ROOT, CoverageMap
from .faults import Fault, read_faults
from .planted_tree import Tree

# How a run of tests ended -> what that says of the fault.
FAILED = {"failed": "noticed", "crashed": "noticed", "timed out": "timed out"}
STATUS = FAILED | {"passed": "unnoticed"}
UNKNOWN = 20.0  # seconds for a test, or a whole file, that the map does not know
GRACE, SLOWER = 30, 5  # the limit of a test: so many seconds, and so many times what it took
FIRST_FILES, FIRST_SECONDS = 4, 15.0  # what is tried before everything is collected
NOTICED = set(FAILED.values())


class Planter:
    """Runs faults in several trees at once."""

    def __init__(self, table: CoverageMap, directory: Path, cache: Path, jobs: int, budget: float) -> None:
        self._table, self._budget = table, budget
        self._trees: queue.Queue[Tree] = queue.Queue()
        self._clean: dict[str, bool] = {}  # what tests do without a fault
        for job in range(jobs):
            (directory / str(job)).mkdir()
            self._trees.put(Tree(directory / str(job), cache))

    def try_fault(self, fault: Fault) -> dict[str, Any]:
        """Plants one fault; its result."""
        tree, begin = self._trees.get(), time.monotonic()
        try:
            text = (tree.root / fault.file).read_text("utf-8")
            planted, lines = fault.planted(text)
            limits = self._tests(fault.file, text, lines)
            how, test, count = "uncovered", "", 0
            while any(limits.values()):
                with tree.planted(fault.file, planted):
                    how, test, count = self._run(tree, limits)
                if how not in FAILED or self._passes(tree, test, limits):
                    break
                limits[test] = 0  # it fails without the fault too
        finally:
            self._trees.put(tree)
        return dict(
            key=fault.key, id=fault.id, file=fault.file, line=lines.start, status=STATUS.get(how, how),
            test=test, tests=count, of=len(limits), seconds=round(time.monotonic() - begin, 1),
        )  # fmt: skip

    def _run(self, tree: Tree, limits: dict[str, float]) -> tuple[str, str, int]:
        """As `Tree.run`, the first tests by themselves: to collect all takes longer than most faults live."""
        how, test, ran = "uncovered", "", 0
        for stage in stages(limits):
            files = sorted({test.partition("::")[0] for test in stage})
            how, test, count = tree.run(files, stage, self._budget)
            ran += count
            if how != "passed":
                break
        return how, test, ran

    def _tests(self, file: str, text: str, lines: range) -> dict[str, float]:
        """Tests with their limits: those that run the lines first, cheap files first."""
        covering = self._table.covering(file, text, lines)
        took = {test: seconds for name in covering for test, seconds in self._table.seconds(name).items()}
        order: list[str] = []
        for place in (0, 1):
            tests = {name: both[place] for name, both in covering.items()}
            costs = {name: sum(took.get(test, UNKNOWN) for test in tests[name]) for name in tests}
            order += [test for name in sorted(costs, key=costs.__getitem__) for test in tests[name]]
        # Generous: a busy machine must not look like a hang.
        return {test: round(GRACE + SLOWER * took.get(test, UNKNOWN)) for test in order}

    def _passes(self, tree: Tree, test: str, limits: dict[str, float]) -> bool:
        """Whether a test that failed passes without a fault. A file that cannot be imported is no test."""
        if "::" in test and test not in self._clean:
            how, _, _ = tree.run([test.partition("::")[0]], {test: limits.get(test, 600)}, 600)
            self._clean[test] = how == "passed"
        return self._clean.get(test, True)


def stages(limits: dict[str, float]) -> Iterator[dict[str, float]]:
    """The tests of the first few files that are quickly done, then the others; without those of no time."""
    first: dict[str, float] = {}
    seconds, files = 0.0, set[str]()
    for test, limit in limits.items():
        files.add(test.partition("::")[0])
        seconds += (limit - GRACE) / SLOWER
        if first and (len(files) > FIRST_FILES or seconds > FIRST_SECONDS):
            break
        first[test] = limit
    rest = {test: limit for test, limit in limits.items() if test not in first}
    for stage in (first, rest):
        if wanted := {test: limit for test, limit in stage.items() if limit}:
            yield wanted


def report(faults: list[Fault], results: dict[str, dict[str, Any]]) -> str:
    """A table of all faults, and the sum."""
    rows, counts = [], collections.Counter()
    for fault in faults:
        result = results.get(fault.key, {"status": "not run", "line": fault.line, "test": ""})
        equivalent = fault.note.startswith("equivalent") and result["status"] not in NOTICED
        status = "equivalent" if equivalent else result["status"]
        counts[status] += 1
        rows.append(f"{status:<10}  {fault.id:<24}  {fault.file}:{result['line']}  {result['test']}")
    ran = sum(counts.values()) - counts["equivalent"] - counts["not run"]
    noticed = sum(counts[status] for status in NOTICED)
    share = f"noticed {noticed} of {ran} that are not equivalent ({noticed / max(ran, 1):.1%})"
    return "\n".join([*rows, "", *(f"{count:4} {status}" for status, count in counts.most_common()), share])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="+", type=Path)
    parser.add_argument("--map", type=Path, required=True, help="what coverage_map wrote")
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON, one line for each fault; appended to"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=300, help="seconds for one fault, then: unfinished")
    parser.add_argument("--again", default="", help="run these statuses again: unnoticed,unfinished")
    parser.add_argument("--check", action="store_true", help="only say whether every fault can be planted")
    options = parser.parse_intermixed_args()
    faults = read_faults(options.faults)
    results = kept_results(options.results, options.again.split(","))
    bad = {fault.key: str(error) for fault in faults if (error := problem(fault))}
    todo = [f for f in faults if f.key not in results | bad and not f.note.startswith("equivalent")]
    if not options.check and todo:
        run_all(todo, results, options)
    print(report(faults, results), *bad.values(), sep="\n")
    sys.exit(1 if bad else 0)


def problem(fault: Fault) -> Exception | None:
    """Why a fault cannot be planted, if it cannot."""
    try:
        fault.planted((ROOT / fault.file).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        return error
    return None


def kept_results(path: Path, again: list[str]) -> dict[str, dict[str, Any]]:
    """The last result of each fault in the file, without those to run again."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    last = {result["key"]: result for result in map(json.loads, lines)}
    return {key: result for key, result in last.items() if result["status"] not in again}


def run_all(todo: list[Fault], results: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="jllama-plant-") as directory:
        table = CoverageMap(options.map)
        if stale := table.stale():
            print(f"changed since the map was made, so run whole (slower): {' '.join(stale)}")
        cache = options.map.absolute().with_suffix(".xla")  # of the next call too
        planter = Planter(table, Path(directory), cache, options.jobs, options.budget)
        with ThreadPoolExecutor(options.jobs) as pool, options.results.open("a", encoding="utf-8") as out:
            futures = [pool.submit(planter.try_fault, fault) for fault in todo]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    results[result["key"]] = result
                    print(json.dumps(result), file=out, flush=True)
                    print(
                        f"{result['status']:<10} {result['seconds']:6} s  {result['id']}  {result['test']}",
                        flush=True,
                    )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


if __name__ == "__main__":
    main()
