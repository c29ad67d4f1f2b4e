"""`bench.py --sweep`: every point of batch × depth × prompt length × storage × sampling, kept one by one.

The file is one JSON object, `{"run": …, "points": […]}`. A run goes on where an earlier one ended.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jllama.cli.bench_tests import Test, parse_tests
from jllama.errors import JllamaError
from jllama.files.errors import file_errors
from jllama.loading import QUANTIZE_MODES

TESTS = (
    *("pp16", "pp64", "pp128", "pp256", "pp512", "pp2048", "pp8192"),
    *("pp64@d4096", "pp512@d4096", "pp2048@d4096"),
    *("tg64@d128", "tg64@d2048", "tg64@d8192"),
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SAMPLING = {"temperature": 0.8, "top_p": 0.95}
# What two runs must have in common to stand in one file.
SAME = ("model", "dtype", "device", "tensor_parallel", "jllama", "jax")


@dataclasses.dataclass(frozen=True)
class Point:
    """A test of weights that are stored in one way."""

    storage: str  # a value of `--quantize`
    test: Test

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from the others of a file."""
        return self.storage, self.test.name, self.test.batch, self.test.choice


def grid(
    storages: Sequence[str], tests: Sequence[str], batches: Sequence[int], sampling: dict[str, float]
) -> list[Point]:
    """All points, those of one storage together.

    Raises:
      JllamaError: a name is no test or no storage.
    """
    for storage in storages:
        if storage not in QUANTIZE_MODES:
            raise JllamaError(f"--storages: {storage[:40]!r} is none of {', '.join(QUANTIZE_MODES)}")
    wanted = parse_tests([*tests], [*batches], sampling)
    for test in wanted:
        if test.kind in ("en", "js"):
            raise JllamaError(f"--tests: {test.name} has no limit to compare with: leave it out of a sweep")
    points = [Point(storage, test) for storage in dict.fromkeys(storages) for test in wanted]
    return list({point.key: point for point in points}.values())


class Record:
    """The file of a sweep; every change is on the disk when the call returns."""

    def __init__(self, path: Path) -> None:
        """Reads what an earlier run left.

        Raises:
          JllamaError: it can't be read, or holds other things.
        """
        self.path = path
        self.run: dict[str, Any] = {}
        self.points: list[dict[str, Any]] = []
        with file_errors(path):
            text = path.read_text("utf-8") if path.exists() else ""
        if text:
            self.run, self.points = _held(path, text)

    @property
    def keys(self) -> set[tuple[str, str, int, str]]:
        """The keys of the points it holds."""
        return {key_of(point) for point in self.points}

    def begin(self, run: dict[str, Any]) -> None:
        """Says what the points are measured with: `SAME` must be as it was.

        Raises:
          JllamaError: something differs, or the file can't be written.
        """
        for name in SAME if self.points else ():
            if str(self.run.get(name)) != str(run[name]):  # older files have the devices' number as text
                raise JllamaError(
                    f"{self.path} holds points of {name} {self.run.get(name)}, this run has {run[name]}: "
                    "give another file"
                )
        self.run = self.run if self.points else run  # one that measured nothing may have been another
        self._write()

    def add(self, point: dict[str, Any]) -> None:
        """Keeps one more point."""
        self.points.append(point)
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_name(f"{self.path.name}.tmp")
        text = json.dumps({"run": self.run, "points": self.points}, indent=1)
        try:
            fresh.write_text(text + "\n", "utf-8")
            os.replace(fresh, self.path)
        except OSError as error:
            raise JllamaError(f"cannot write {self.path}: {error.strerror or error}") from None


def key_of(point: dict[str, Any]) -> tuple[str, str, int, str]:
    """`Point.key` of what a file holds."""
    return point["storage"], point["test"], point["batch"], point["choice"]


def _held(path: Path, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        held = json.loads(text)
        run, points = held["run"], held["points"]
        for point in points:
            hash(key_of(point))
        if not isinstance(run, dict):
            raise TypeError("run")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise JllamaError(f"{path} holds other things than a sweep: give another --sweep") from None
    return run, points


def measured(
    point: Point, config: Any, params: Any, limits: Any, repetitions: int, seed: int
) -> dict[str, Any]:
    """A point's rate and share of the limit; where its cache does not fit, why it was left out."""
    from jllama.cli import measure

    place = {"storage": point.storage, "depth": point.test.depth, "count": point.test.count}
    place |= {
        "read_gb_per_second": limits.read_bytes_per_second / 1e9,
        "matrix_tflops": limits.matrix_flops_per_second / 1e12,
    }
    name = {"test": point.test.name, "batch": point.test.batch, "choice": point.test.choice}
    try:
        measure.check_memory(config, str(params.norm.dtype), [point.test])
    except JllamaError as error:
        return place | name | {"left_out": str(error)}
    row = measure.run_test(config, params, point.test, repetitions, seed)
    share = measure.limit_seconds(config, params, point.test, limits) / statistics.median(row["seconds"])
    return place | row | {"limit_share": share}


def by_storage(
    points: Sequence[Point], done: set[tuple[str, str, int, str]]
) -> Iterator[tuple[str, list[Point]]]:
    """Storage by storage, what is not done."""
    for storage in dict.fromkeys(point.storage for point in points):
        rest = [point for point in points if point.storage == storage and point.key not in done]
        if rest:
            yield storage, rest
