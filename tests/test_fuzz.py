"""Damaged inputs: a sample of every kind that the fuzz runner knows, and the runner itself."""

import subprocess
import sys

from tests.support.scripts_helpers import PATIENCE, ROOT

PLANTED = """
import os, re, time
from pathlib import Path
from jllama.errors import JllamaError
from tests.support import fuzz, fuzz_child

def refused(random, directory):
    assert not list(directory.iterdir())
    (directory / "x").write_text("")
    raise JllamaError("remove it")

def memory(random, directory):
    block = b"x" * (80 << 20)
    time.sleep(3600)

def hang(random, directory):
    while True:
        pass

KINDS = {
    "read": lambda random, directory: None,
    "refused": refused,
    "returned": lambda random, directory: JllamaError("remove it"),
    "error": lambda random, directory: 1 // 0,
    "crash": lambda random, directory: os.abort(),
    "sometimes": lambda random, directory: 1 // random.randrange(2),
    "hang": hang,
    "memory": memory,
}
LIMITS = fuzz_child.Limits(seconds=0.15, megabytes=64)
fuzz.run({name: kind for name, kind in KINDS.items() if name != "sometimes"}, range(2), 0, 2, LIMITS)
found = fuzz.run({"sometimes": KINDS["sometimes"]}, range(20), 7, 1, LIMITS)
number = int(re.search(r"--seed=7 --first=(\\d+) --count=1", found[0])[1])
assert 0 < len(found) < 20
assert found[:1] == fuzz.run({"sometimes": KINDS["sometimes"]}, range(number, number + 1), 7, 1, LIMITS)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, *command]
    return subprocess.run(done, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_sample_of_every_kind_is_read_or_refused():
    done = run("-m", "tests.support.fuzz", "--count=10", "--seed=1", "--jobs=1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_bad_end_of_a_case_is_a_finding_that_can_be_repeated():
    done = run("-c", PLANTED)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    counts = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.split()[1:2] == ["2"]}
    assert counts == {
        "read": "2 read",
        "refused": "2 refused",
        "returned": "2 refused",
        "error": "2 error",
        "crash": "2 crash",
        "hang": "2 hang",
        "memory": "2 memory",
    }, done.stdout + done.stderr
