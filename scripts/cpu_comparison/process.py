"""The processes that `compare_cpu.py` times."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.paths import expanded

TREE = Path(__file__).resolve().parents[2]


class Side:
    """One of the programs in a process of its own, asked for one timing at a time."""

    def __init__(
        self, python: str, worker: str, path: Path, threads: int, *more: str, tree: Path = TREE
    ) -> None:
        self.name = worker
        module = f"cpu_comparison.{worker}_side"
        command = [command_of(python), "-m", module, str(path.absolute()), str(threads), *more]
        found = [str(tree / "scripts"), str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "JLLAMA_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(found)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(  # a module is looked for in its directory first
            command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=tree
        )

    def ask(self, request: dict[str, Any]) -> float:
        """Seconds that the other side took.

        Raises:
          JllamaError: it ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("seconds "):
                    return float(line.split()[1])
        except OSError:
            pass
        raise JllamaError(f"the side {self.name} ended; its message, if any, stands above")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def command_of(python: str) -> str:
    """A Python as the shell would take it: a path from `~`, or a name."""
    return str(expanded(python)) if python.startswith("~") else python
