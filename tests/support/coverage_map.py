"""Which test runs which line: `python -m tests.support.coverage_map MAP.json [--jobs=2] [TEST_FILE …]`.

Runs each test file once under coverage.py, child processes and forks included, and keeps the result in a
file outside the repository. A second call runs again only the test files that changed since, or those named.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RC = """
[run]
source = {root}/jllama, {root}/scripts
data_file = {directory}/.coverage
parallel = true
patch = fork, _exit
context = ${{PYTEST_CURRENT_TEST-}}
disable_warnings = no-data-collected, module-not-measured, module-not-imported, already-imported,
    couldnt-parse, trace-changed, no-ctracer, no-sysmon, include-ignored
"""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
CONTEXT = re.compile(r"(.*) \((setup|call|teardown)\)", re.DOTALL)
# The kernels' sources are no Python: these files test them.
NATIVE = {
    ".cc": "tests/kernels/test_kernels_cpu*.py",
    ".h": "tests/kernels/test_kernels_cpu*.py",
    ".cu": "tests/kernels/test_kernels_gpu*.py",
}


class CoverageMap:
    """The map in memory. A test file's entry: its digest, seconds of each test, and tests of each line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"files": {}, "sources": {}}
        if path.exists():
            self.content = json.loads(path.read_text("utf-8"))

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        return self.content["files"]

    def stale(self) -> list[str]:
        """The test files that the map does not know as they are now."""
        known = {name: entry["digest"] for name, entry in self.files.items()}
        every = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
        return [
            str(name) for name in every if known.get(str(name)) != digest((ROOT / name).read_text("utf-8"))
        ]

    def save(self) -> None:
        used = {digest for entry in self.files.values() for digest in entry["sources"].values()}
        self.content["sources"] = {d: text for d, text in self.content["sources"].items() if d in used}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content), "utf-8")
        partial.replace(self.path)

    def add(self, name: str, entry: dict[str, Any], sources: dict[str, str]) -> None:
        """Keeps what a test file did, and says so."""
        self.files[name] = entry
        self.content["sources"] |= sources
        self.save()
        failed = [test for test, (_, passed) in entry["tests"].items() if not passed]
        print(f"{name}: {len(entry['tests'])} tests, {len(failed)} not passed", flush=True)

    def covering(self, source: str, text: str, lines: range) -> dict[str, tuple[list[str], list[str]]]:
        """Test file -> the tests that run these lines of a source whose text is `text`, and its others.

        Files that changed since the map was made may have new tests: such a file stands for itself.
        """
        if (suffix := Path(source).suffix) in NATIVE:
            found = {str(path.relative_to(ROOT)): {""} for path in sorted(ROOT.glob(NATIVE[suffix]))}
        else:
            found = self._running(source, text, lines)
        covering = {name: self._split(name, direct) for name, direct in found.items() if direct}
        stale = set(self.stale())
        for name in stale & covering.keys():
            covering[name][1].append(name)
        if unknown := stale - covering.keys():
            covering |= {name: ([], [name]) for name in self._mentioning(source) if name in unknown}
        return covering

    def _running(self, source: str, text: str, lines: range) -> dict[str, set[str]]:
        for wider in _widening(text, lines):
            found = {name: self._direct(name, source, text, wider) for name in self.files}
            if any(found.values()):
                return found
        return {name: {""} for name in self._mentioning(source)}  # nothing runs it, or it is new

    def _mentioning(self, source: str) -> list[str]:
        word = re.compile(rf"\b{Path(source).stem}\b")
        every = sorted((ROOT / "tests").rglob("test_*.py"))
        return [str(path.relative_to(ROOT)) for path in every if word.search(path.read_text("utf-8"))]

    def seconds(self, name: str) -> dict[str, float]:
        """What each test of a file took."""
        return {test: seconds for test, (seconds, _) in self._tests(name).items()}

    def _tests(self, name: str) -> dict[str, tuple[float, bool]]:
        return self.files[name]["tests"] if name in self.files else {}

    def _split(self, name: str, direct: set[str]) -> tuple[list[str], list[str]]:
        passing = [test for test, (_, passed) in self._tests(name).items() if passed]
        if "" in direct:
            return passing, []
        return [t for t in passing if t in direct], [t for t in passing if t not in direct]

    def _direct(self, name: str, source: str, text: str, lines: range) -> set[str]:
        """Tests of one file. What a fixture or its process runs counts for all, as the empty name."""
        entry = self.files[name]
        if source not in entry["sources"]:
            return set()
        then = self.content["sources"][entry["sources"][source]]
        known, tests = entry["lines"][source], list(entry["tests"])
        wanted = _translated(text, then, lines)
        return {tests[i] if i >= 0 else "" for line in wanted for i in known.get(str(line), ())}


def _widening(text: str, lines: range) -> list[range]:
    """The lines, the statements around them from the inside out, the whole module."""
    every = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    spans = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in every]
    around = [span for span in spans if span.start <= lines.start and lines.stop <= span.stop]
    return [lines, *sorted(around, key=len), range(1, text.count("\n") + 2)]


def _translated(now: str, then: str, lines: range) -> set[int]:
    """Line numbers of a text as they were in an earlier one."""
    if now == then:
        return set(lines)
    matcher = difflib.SequenceMatcher(None, now.splitlines(), then.splitlines(), autojunk=False)
    found: set[int] = set()
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for line in range(max(lines.start, i1 + 1), min(lines.stop, i2 + 1)):
            found |= {line - i1 + j1} if tag == "equal" else set(range(j1 + 1, max(j2, j1 + 1) + 1))
    return found


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measure(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs one test file; its entry, and the sources it saw by digest."""
    with tempfile.TemporaryDirectory(prefix="jllama-coverage-") as temporary:
        directory = Path(temporary)
        rc, record = directory / "coveragerc", directory / "record.jsonl"
        rc.write_text(RC.format(root=ROOT, directory=directory), "utf-8")
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={rc}", "-m", "pytest", "-n0", "-q"]
        command += ["-p", "tests.support.selection", "-p", "no:cacheprovider", f"--record={record}", name]
        command += [f"--basetemp={directory / 'pytest'}"]
        env = os.environ | {"COVERAGE_PROCESS_START": str(rc), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1, 5):
            raise RuntimeError(
                f"{name}: pytest ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
            )
        return _entry(name, directory, record)


def _entry(name: str, directory: Path, record: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from coverage import CoverageData, CoverageException

    data = CoverageData(no_disk=True)
    for path in directory.glob(".coverage*"):
        part = CoverageData(str(path))
        with contextlib.suppress(CoverageException):  # cut off: a test that lets a process run out of disk
            part.read()
            data.update(part)
    tests = _tests(record)
    places = {test: i for i, test in enumerate(tests)}
    texts = {str(Path(path).relative_to(ROOT)): Path(path) for path in sorted(data.measured_files())}
    entry: dict[str, Any] = {"digest": digest((ROOT / name).read_text("utf-8")), "tests": tests}
    entry |= {"sources": {}, "lines": {}}
    sources = {}
    for source, path in texts.items():
        text = path.read_text("utf-8")
        inside = _inside_functions(text)
        found = {line: _places(tests, places) for line, tests in data.contexts_by_lineno(str(path)).items()}
        if lines := {line: sorted(tests) for line, tests in found.items() if tests and line in inside}:
            entry["sources"][source], entry["lines"][source] = digest(text), lines
            sources[digest(text)] = text
    return entry, sources


def _inside_functions(text: str) -> set[int]:
    """The lines that do not run at import, when they would count for whatever imports first."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, FUNCTIONS)]
    bodies = [f.body if isinstance(f.body, list) else [f.body] for f in functions]
    return {line for body in bodies for line in range(body[0].lineno, (body[-1].end_lineno or 0) + 1)}


def _tests(record: Path) -> dict[str, tuple[float, bool]]:
    """Node id -> seconds of setup, call and teardown together, and whether it passed (not skipped either)."""
    tests: dict[str, tuple[float, bool]] = {}
    for line in record.read_text("utf-8").splitlines():
        if "test" in (step := json.loads(line)):
            seconds, passed = tests.get(step["test"], (0.0, True))
            tests[step["test"]] = (
                round(seconds + step["seconds"], 3),
                passed and step["outcome"] == "passed",
            )
    return tests


def _places(contexts: list[str], places: dict[str, int]) -> set[int]:
    """Indices of the tests in whose call a line ran; −1 for a fixture, nothing for an import."""
    found = set()
    for context in contexts:
        if match := CONTEXT.fullmatch(context):
            test, phase = match.groups()
            found.add(places.get(test, -1) if phase == "call" else -1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("files", nargs="*", help="test files to run again even if unchanged")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_intermixed_args()
    table = CoverageMap(options.map)
    for gone in [name for name in table.files if not (ROOT / name).exists()]:
        del table.files[gone]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(measure, name): name for name in options.files or table.stale()}
        for future in as_completed(futures):
            if error := future.exception():
                print(f"{futures[future]}: {error}", flush=True)
            else:
                table.add(futures[future], *future.result())


if __name__ == "__main__":
    main()
