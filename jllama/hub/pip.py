"""Fetches a wheel with pip, which knows the user's index, mirrors, proxy, certificates and passwords.

The bar is ours: pip says how large the wheel is, and the file grows where it was told to put it.
"""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from jllama.errors import JllamaError
from jllama.machine.progress import ByteBar

PAUSE = 0.1  # seconds between two looks at the file
_OPTIONS = (
    *("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
    *("--progress-bar=off", "--timeout=10", "--retries=1"),
)
_ANNOUNCED = re.compile(r"(?:Downloading|Using cached) \S+\.whl \(([\d.]+) (bytes|kB|MB|GB)\)")
_UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def pip_download(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    """The wheel of a package, in `scratch`. pip's own log stays there, too; its last error is raised.

    Args:
      name: of the package.
      version: of it.
      home: not used: pip resumes nothing.
      scratch: an empty directory.
      progress: show a bar.

    Raises:
      JllamaError: pip is not installed, or fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise JllamaError("pip is not installed")
    said, errors = scratch / "pip.out", scratch / "pip.err"
    command = [sys.executable, "-m", "pip", "download", *_OPTIONS, f"--dest={scratch}", f"{name}=={version}"]
    # Its temporary files lie on the same disk, and are swept with the rest.
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    with (
        said.open("wb") as stdout,
        errors.open("wb") as stderr,
        subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr) as process,
    ):
        try:
            if progress:
                _show(process, f"fetching {name} {version}", scratch, said)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    wheels = list(scratch.glob("*.whl"))
    if code or len(wheels) != 1:
        raise JllamaError(f"pip: {_last_error(errors)}")
    return wheels[0]


def _show(process: subprocess.Popen[bytes], label: str, scratch: Path, said: Path) -> None:
    """The bar, from when pip knows the size until it ends."""
    size = 0
    while not size and _runs(process):
        size = announced_size(said.read_text(encoding="utf-8", errors="replace"))
    with ByteBar(label, size) as bar:
        seen = 0
        while _runs(process):
            there = max(seen, min(_largest_wheel(scratch), size))  # it was rounded
            bar.advance(there - seen)
            seen = there


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """Waits a little, and tells whether it still runs."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PAUSE)
    return process.returncode is None


def announced_size(said: str) -> int:
    """Bytes of the wheel as pip's log has them, rounded to three digits or so; 0: it does not say."""
    found = _ANNOUNCED.search(said)
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def _largest_wheel(scratch: Path) -> int:
    """Bytes; pip writes it elsewhere in `scratch` first, and moves it when it is whole."""
    sizes = [0]
    for path in scratch.rglob("*.whl"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _last_error(errors: Path) -> str:
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return ([line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no wheel came"])[-1]
