"""Copies of the working tree, in which faults are planted and tests run."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import quick_compiling
from .coverage_map import ROOT


class Tree:
    """A copy of the working tree, in which tests run."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.root, self._directory, self._cache = directory / "tree", directory, cache
        self._flags = quick_compiling.flags()
        command = ["git", "ls-files", "-coz", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)

    @contextlib.contextmanager
    def planted(self, file: str, text: str) -> Iterator[None]:
        """The file has this text for a while."""
        before = (self.root / file).read_text("utf-8")
        self._write(file, text)
        try:
            yield
        finally:
            self._write(file, before)

    def _write(self, file: str, text: str) -> None:
        path = self.root / file
        path.write_text(text, "utf-8")
        # Bytecode is told by second and size alone.
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)

    def run(self, files: list[str], limits: dict[str, float], seconds: float) -> tuple[str, str, int]:
        """Runs tests in this order up to the first failure; how it went, that test, and how many ran.

        "passed", "failed", "timed out" (a test's own limit), "crashed", "unfinished" (`seconds` are over)
        """
        selection, record = self._directory / "selection.json", self._directory / "record.jsonl"
        selection.write_text(json.dumps(limits), "utf-8")
        record.write_text("")
        command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "tests.support.selection"]
        command += ["-p", "no:cacheprovider", f"--selection={selection}", f"--record={record}"]
        command += [f"--basetemp={self._directory / 'pytest'}", *files]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(),
            stdout=(self._directory / "output").open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
        steps = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
        return self._outcome(code, steps)

    def _outcome(self, code: int | None, steps: list[dict[str, Any]]) -> tuple[str, str, int]:
        started = [step["start"] for step in steps if "start" in step]
        failed = [step["test"] for step in steps if step.get("outcome") == "failed"]
        if failed:
            return "failed", failed[0], len(started)
        if code in (0, 5):
            return "passed", "", len(started)
        timed_out = b"+ Timeout +" in (self._directory / "output").read_bytes()
        how = "unfinished" if code is None else "timed out" if timed_out else "crashed"
        return how, started[-1] if started else "collection", len(started)

    def _environment(self) -> dict[str, str]:
        story = os.environ.get("JLLAMA_STORY") or ROOT.parent / "shared" / "models" / "story"
        kept = {"JLLAMA_STORY": str(story), "PYTHONPATH": str(self.root)}
        # Most faults leave most programs as they were: their compilation, most of a test's time, is shared.
        kept |= {"JAX_COMPILATION_CACHE_DIR": str(self._cache)}
        kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        # Said here, each test run need not ask XLA in a process of its own which it knows.
        return {"XLA_FLAGS": self._flags} | os.environ | kept


def _kill_group(process: subprocess.Popen) -> None:
    """Whatever a test has left behind goes too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
