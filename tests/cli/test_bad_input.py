"""Input of every wrong kind where it is read: files, terminals and servers that are not as they should."""

import io
import os
import subprocess
from types import SimpleNamespace

import pytest

from jllama.cli import answers, streams
from jllama.cli.load import models, reply
from jllama.cli.terminal import attachments, clipboard, wrap
from jllama.errors import JllamaError


def raising(error):
    def act(*_, **__):
        raise error

    return act


@pytest.mark.parametrize("error", [OSError("no terminal"), ValueError("closed"), io.UnsupportedOperation()])
def test_a_window_that_can_not_be_asked_has_80_columns(monkeypatch, error):
    monkeypatch.setattr(wrap, "sys", SimpleNamespace(stdout=SimpleNamespace(fileno=raising(error))))
    assert wrap.window_width() == 80


@pytest.mark.parametrize(("columns", "width"), [(0, 80), (1, 1), (79, 79), (200, 200)])
def test_a_window_s_width(monkeypatch, columns, width):
    monkeypatch.setattr(wrap, "sys", SimpleNamespace(stdout=SimpleNamespace(fileno=lambda: 1)))
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    assert wrap.window_width() == width


ANSWER = b'{"id": 1}\n'


def finished(path):
    with answers.own(path) as output:
        return set(output.kept)


@pytest.mark.parametrize("line", [b"nope\n", b"{}\n", b"[1]\n", b"3\n", b'{"id": [1]}\n', b"\xff\n", b"\n"])
def test_answers_of_another_run_are_not_gone_on_with(tmp_path, line):
    path = tmp_path / "out"
    path.write_bytes(ANSWER + line)
    with pytest.raises(JllamaError, match="holds other things than answers of such a run"):
        finished(path)
    assert path.read_bytes() == ANSWER + line


@pytest.mark.parametrize("size", range(len(answers.BEGINS) + 1))
def test_a_line_that_was_cut_is_taken_off(tmp_path, size):
    path = tmp_path / "out"
    path.write_bytes(ANSWER + answers.BEGINS[:size])
    assert finished(path) == {1}
    assert path.read_bytes() == ANSWER
    path.write_bytes(ANSWER + b"x" + answers.BEGINS[:size])
    with pytest.raises(JllamaError, match="holds other things"):
        finished(path)


def test_where_nothing_was_written_nothing_is_finished(tmp_path):
    assert finished(tmp_path / "out") == set()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "a"}}', "a"),
        (b'{"error": "b"}', "b"),
        (b'{"detail": [1]}', "[1]"),
        (b'{"other": 1}', '{"other":1}'),
        (b"plain \n", "plain"),
        (b"caf\xff", "caf\ufffd"),
        (b'"\xff"', '"\ufffd"'),
        (b"", "(no message)"),
        (b'""', "(no message)"),
        (b"a\nb", "a\\nb"),
        (b"x" * 400, "x" * 300),
    ],
)
def test_what_a_server_says_is_wrong(body, words):
    assert reply.message_of(body) == words


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'"\xff"',
        b"{",
        b"3",
        b"{}",
        b'{"data": 3}',
        b'{"data": null}',
        b'{"data": [{}]}',
        b'{"data": [3]}',
    ],
)
def test_no_list_of_models(body):
    assert models._names(body) == []


def test_a_list_of_models():
    assert models._names(b'{"data": [{"id": "a"}, {"id": 5}]}') == ["a", "5"]


def closed():
    file = io.TextIOWrapper(io.BytesIO(b"x"))
    file.close()
    return file


@pytest.mark.parametrize("stdin", [None, closed(), io.StringIO("x")], ids=["none", "closed", "no file"])
def test_what_is_no_standard_input_holds_nothing_unread(monkeypatch, stdin):
    monkeypatch.setattr("sys.stdin", stdin)
    assert streams.holds_unread() is False


def test_standard_input_that_holds_something_unread(monkeypatch, tmp_path):
    (tmp_path / "in").write_text("x")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert streams.holds_unread() is True
        file.read()
        assert streams.holds_unread() is False
    with open(os.devnull) as device:
        monkeypatch.setattr("sys.stdin", device)
        assert streams.holds_unread() is False


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("x", 2), PermissionError()])
def test_a_tool_that_does_not_run_has_copied_nothing(monkeypatch, error):
    monkeypatch.setattr(subprocess, "run", raising(error))
    assert clipboard._runs(("x",), "text") is False


@pytest.mark.parametrize(("code", "done"), [(0, True), (1, False), (-9, False)])
def test_a_tool_tells_whether_it_has_copied(monkeypatch, code, done):
    seen = []

    def run(tool, **given):
        seen.append((tool, given["input"]))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    assert clipboard._runs(("x", "-y"), "é\ud800") is done
    assert seen == [(("x", "-y"), "é?".encode())]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a\0b", "is no text: it holds null bytes"),
        (b"a" * 10, "has more than 9 bytes: too long for the context"),
        (b"ab\xff", r"is no text in UTF-8 \(byte 2\): convert it"),
        (b" \n\t", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, data, words):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(JllamaError, match=words):
        attachments._text(str(path), 9)


@pytest.mark.parametrize("name", ["missing", "", "a\0b", "."])
def test_a_file_that_can_not_be_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JllamaError):
        attachments._text(name, 9)


def test_a_file_s_text_as_a_message_has_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("\ufeffa\r\né\n".encode())
    assert attachments._text(str(path), 9) == "a\né\n"
    assert attachments._text(str(path), path.stat().st_size) == "a\né\n"
    with pytest.raises(JllamaError, match="has more than 8 bytes"):
        attachments._text(str(path), path.stat().st_size - 1)
