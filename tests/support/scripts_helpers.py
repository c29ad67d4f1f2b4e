"""Starts the project's scripts as a user does, or, where only the imports would differ, in a fork."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What scripts import, but for the programs themselves, each of which defines flags of its own.
PRELOADED = (
    *("jllama.api", "jllama.batching.engine", "jllama.chat.conversation", "jllama.checkpoint.random_weights"),
    *("jllama.cli.main", "jllama.cli.terminal.batch", "jllama.text.tokenizer"),
    "tests.support.small_ceilings",
)
PATIENCE = 500  # seconds; less than a test has, so that what it started ends too


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """A user's environment with a cache of its own; what the tests set for JAX itself is left out.

    Without PYTHONUNBUFFERED, too, which would hide that a script does not flush what it wrote.
    """
    others = ("JAX_", "HF_", "JLLAMA", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept |= dict(
        JLLAMA_CACHE=str(cache), HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join(paths), COLUMNS="100"
    )
    # Compiling the kernels anew for each empty cache would take longer than the tests.
    return kept | dict(JAX_PLATFORMS="cpu", JLLAMA_KERNELS="0") | changes


def command(script: str, *arguments: str, warnings: str = "error") -> list[str]:
    """The command line that runs a script."""
    return [sys.executable, "-W", warnings, str(ROOT / "scripts" / script), *arguments]


def start(
    script: str,
    *arguments: str,
    env: dict[str, str],
    stdin: bytes = b"",
    warnings: str = "error",
    file_blocks: int | None = None,
) -> Outcome:
    """Runs a script in a process of its own; `file_blocks` limits its files, as a full disk does."""
    limit = [] if file_blocks is None else ["sh", "-c", f'ulimit -f {file_blocks}; exec "$@"', "sh"]
    done = subprocess.run(
        [*limit, *command(script, *arguments, warnings=warnings)],
        env=env,
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_explained(outcome: Outcome, words: str) -> None:
    """A user's mistake in one or two lines on stderr that hold all words (between bars), and nothing else."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") <= 2, outcome.err
    for word in words.split("|"):
        assert word in outcome.err


class ScriptServer:
    """The forking server of `script_server.py`."""

    def __init__(self, scratch: Path, modules: Sequence[str] = PRELOADED, **env: str) -> None:
        """Starts it with these modules imported; `env`: changes of a user's environment, for all scripts."""
        self.scratch, self.env = scratch, environment(scratch / "cache", **env)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(ROOT / "tests" / "support" / "script_server.py"), *modules],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def run(
        self,
        script: str,
        *arguments: str,
        stdin: bytes = b"",
        stdout: str | None = None,
        cwd: Path = ROOT,
        **env: str,
    ) -> Outcome:
        """One script, whose standard input is a file; `stdout` names another file for its output."""
        files = {name: self.scratch / name for name in ("stdin", "stdout", "stderr")}
        for file in files.values():
            file.write_bytes(stdin if file.name == "stdin" else b"")
        request = {name: str(file) for name, file in files.items()}
        request |= {"stdout": stdout} if stdout else {}
        request |= dict(argv=[str(ROOT / "scripts" / script), *arguments], env=self.env | env, cwd=str(cwd))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return Outcome(code, files["stdout"].read_text("utf-8"), files["stderr"].read_text("utf-8"))

    def jllama(self, *arguments: str, cwd: Path = ROOT) -> Outcome:
        """The installed command."""
        return self.run("../jllama/__main__.py", *arguments, cwd=cwd)

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)
