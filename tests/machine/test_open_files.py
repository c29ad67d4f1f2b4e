"""How many connections the system allows this process, and what is left of them for others."""

import math
import resource

import pytest

from jllama.machine import open_files

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "refusal", "connections"),
    [
        (1024, 4096, None, 4096 - 64),
        (1024, 4096, ValueError("not so many"), 1024 - 64),
        (1024, 4096, OSError(1, "Operation not permitted"), 1024 - 64),
        (50, 50, None, 0),
        (1024, INFINITE, None, math.inf),
        (1024, INFINITE, ValueError(), 1024 - 64),
    ],
)
def test_as_many_as_the_system_allows(monkeypatch, soft, hard, refusal, connections):
    asked = []

    def setrlimit(kind, limits):
        asked.append((kind, limits))
        if refusal:
            raise refusal

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert open_files.raise_limit() == connections
    assert asked == [(resource.RLIMIT_NOFILE, (hard, hard))]
