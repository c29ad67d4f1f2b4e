"""Each exception that is caught, at its place: the message, or the answer, that stands for it."""

import errno
import http.client
import io
import json
import socket
import subprocess
import sys
import tempfile
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import jax
import msgspec
import pytest
import safetensors

from jllama.chat.archive import cache, document, files
from jllama.checkpoint import output, reading
from jllama.checkpoint.formats import safetensors as headers
from jllama.checkpoint.formats import saved
from jllama.cli import streams, sweep
from jllama.cli.load import models, reply
from jllama.cli.terminal import attachments, clipboard, tool_calls, wrap
from jllama.errors import JllamaError
from jllama.families import checks
from jllama.grammar import source
from jllama.hub import pypi_index, pypi_pieces
from jllama.kernels.cpu import build
from jllama.machine import devices, meeting
from jllama.machine.native import compiling
from jllama.settings import build_settings
from jllama.text.vocabularies import spm_file
from jllama.tools import call_objects, functions, manner

HERE = Path("here")


def raising(error):
    def call(*given, **named):
        raise error

    return call


DEEP = '{"a": ' * 100_000
CONTEXTS = {
    "reading a cache": (
        lambda: cache._reported(HERE),
        [OSError(5, "odd"), safetensors.SafetensorError("odd"), ValueError("odd"), IndexError("odd")],
        "here",
    ),
    "reading a conversation": (
        lambda: document._damage_named(HERE),
        [
            *(document.DamagedError("odd"), msgspec.ValidationError("odd"), RecursionError(), ValueError()),
            *(json.JSONDecodeError("odd", "", 0), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "odd")),
        ],
        "here is damaged or no saved conversation: ",
    ),
    "a save": (
        lambda: files.reported(HERE, "write"),
        [OSError(5, "odd"), ValueError("odd"), safetensors.SafetensorError("odd")],
        "^cannot write here: odd$",
    ),
    "an output": (
        lambda: output._refusing(HERE),
        [OSError(5, "odd"), safetensors.SafetensorError("odd")],
        "^cannot write here: odd; nothing was left there$",
    ),
    "weights": (
        lambda: reading._memory_errors(1 << 20, reading.np.dtype("float16")),
        [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: odd")],
        "^out of memory: the weights need 1 MiB in float16",
    ),
    "a configuration": (
        lambda: checks.types_checked("config.json"),
        [TypeError("odd"), ValueError("odd"), OverflowError("odd"), ZeroDivisionError("odd")],
        "^config.json holds a value of the wrong type or size: odd$",
    ),
}


@pytest.mark.parametrize(
    ("what", "error"), [(what, error) for what, (_, errors, _) in CONTEXTS.items() for error in errors]
)
def test_what_fails_within_is_one_error(what, error):
    around, _, words = CONTEXTS[what]
    with pytest.raises(JllamaError, match=words), around():
        raise error


def holds_unread(patch, stdin):
    patch.setattr(sys, "stdin", stdin)
    return streams.holds_unread()


def closed():
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


def asked(patch, error):
    """A tool's run, of which a person is asked."""
    answers = iter([raising(error), lambda: "yes"])
    runner = tool_calls.ToolRunner.__new__(tool_calls.ToolRunner)
    runner._unasked, runner._always, runner._ask = False, set(), lambda question: next(answers)()
    return runner._may_run(SimpleNamespace(name="f"))


def begun(patch, error):
    record = SimpleNamespace(is_file=lambda: True, read_bytes=raising(error))
    growth = SimpleNamespace(record=record, file=SimpleNamespace(is_file=lambda: True))
    return pypi_pieces._Growth._begun(growth) == pypi_pieces.Joined()


def without_a_part(patch, error):
    patch.setattr(build, "_loaded", object)
    patch.setattr(build, "_BROKEN", {})
    patch.setattr(build, "begun", raising(error))
    return build._added("p").startswith("a part of the CPU kernels is lacking (odd)")


def seen(patch, error):
    patch.setattr(jax, "devices", raising(error))
    with pytest.raises(JllamaError, match="JAX sees no NVIDIA GPU"):
        devices._check_device("gpu")
    return True


def stranger(patch, said):
    left = []
    patch.setattr(meeting, "_line", lambda link, seconds: said)
    told = meeting._let_in(SimpleNamespace(close=lambda: left.append("closed")), {}, {"--dtype": "float32"})
    return (told, left) == ("", ["closed"])


def fails(call, words):
    with pytest.raises(JllamaError, match=words):
        call()
    return True


def unknown_host(patch, error):
    patch.setattr(socket, "getaddrinfo", raising(error))
    return fails(lambda: meeting.resolved("h"), "'h' is not known here: odd")


def no_attachment(patch, error):
    patch.setattr(attachments, "check_file", raising(error))
    return fails(lambda: attachments._bytes(HERE, 9), "cannot read here: odd")


def no_window(patch, error):
    patch.setattr("os.get_terminal_size", raising(error))
    return wrap.window_width() == 80


def not_copied(patch, error):
    patch.setattr(subprocess, "run", raising(error))
    return clipboard._runs(("xsel",), "a") is False


def no_index(patch, error):
    patch.setenv("PIP_INDEX_URL", "https://i.example/simple")
    patch.setattr(pypi_index, "_page", raising(error))
    return fails(lambda: pypi_index.download("p", "1", HERE, HERE, False), r"^i\.example")


def not_built(patch, error):
    patch.setattr(compiling, "_is_clang", lambda compiler: True)
    patch.setattr(compiling, "_source", raising(error))
    words = "cannot write to" if getattr(error, "errno", None) == errno.ENOSPC else "cc -O failed: "
    build = lambda: compiling._compile(("cc", "-O"), (), ["u"], "n", Path(tempfile.gettempdir()))  # noqa: E731
    return fails(build, words)


def model_of(patch, error):
    patch.setattr(spm_file, "_read", lambda path: b"")
    patch.setattr(spm_file, "_model", raising(error))
    return fails(lambda: spm_file.read_model(HERE), "here is not a SentencePiece model")


def no_signature(patch, error):
    patch.setattr(functions.inspect, "signature", raising(error))
    return fails(lambda: functions._parameters(print, "f"), "tool f says no parameters")


def not_bound(patch, error):
    with pytest.raises(functions.ArgumentsError, match="the arguments are no JSON object"):
        functions.bound(print, error)
    return True


def no_settings(patch, schema):
    return fails(lambda: build_settings(json_schema=schema), "json_schema")


def told_of(patch, error):
    """A schema in a grammar that is none."""
    patch.setattr(source.json, "JSONDecoder", lambda: SimpleNamespace(raw_decode=raising(error)))
    return fails(lambda: source._with_prepared("start: %json {"), "it is no JSON")


def saved_so(patch, keys):
    patch.setattr(saved, "read_object", keys if callable(keys) else lambda path: keys)
    return saved.saved_config(HERE) is None


def damaged(patch, error):
    keys = {"quantization_config": {"quant_method": saved.METHOD}, saved.METHOD: {"rope": {}}}
    patch.setattr(saved, "read_object", lambda path: keys)
    patch.setattr(saved, "ModelConfig", raising(error))
    return fails(lambda: saved.saved_config(HERE), "here/config.json is damaged")


def held(patch, text):
    return fails(lambda: sweep._held(HERE, text), "here holds other things than a sweep")


POINT = '{"run": {}, "points": [{"storage": [], "test": "", "batch": 1, "choice": ""}]}'
ANSWERS = {
    "unread": (holds_unread, [None, closed(), SimpleNamespace(fileno=raising(OSError(9, "odd")))], False),
    "a word": (asked, [KeyboardInterrupt(), EOFError()], False),
    "pieces": (begun, [OSError(5, "odd"), ValueError("odd"), RecursionError()], True),
    "a part": (without_a_part, [JllamaError("odd"), OSError("odd")], True),
    "no GPU": (seen, [RuntimeError("odd"), AssertionError("odd")], True),
    "strangers": (stranger, [None, "{", "5", "[1]", '["1", {}]', "[1, 2]", "[true, {}]"], True),
    "a host": (unknown_host, [OSError(2, "odd"), UnicodeError("odd")], True),
    "an attachment": (no_attachment, [OSError(2, "odd"), ValueError("odd")], True),
    "a window": (no_window, [OSError(2, "odd"), ValueError("odd")], True),
    "a clipboard": (not_copied, [OSError(2, "odd"), subprocess.TimeoutExpired("xsel", 2)], True),
    "an index": (
        no_index,
        [
            *(urllib.error.URLError("odd"), http.client.BadStatusLine("odd"), ConnectionError("odd")),
            *(TimeoutError("odd"), ValueError("odd"), RecursionError("odd")),
        ],
        True,
    ),
    "a model": (
        model_of,
        [
            *(KeyError("odd"), IndexError("odd"), ValueError("odd"), TypeError("odd")),
            *(AttributeError("odd"), spm_file.struct.error("odd")),
        ],
        True,
    ),
    "a tool": (no_signature, [TypeError("odd"), ValueError("odd")], True),
    "arguments": (not_bound, ["{", '{"a": "\ud800"}', DEEP], True),
    "a schema": (no_settings, ["{", {"a": object()}, {"a": float("nan")}, DEEP], True),
    "a schema in a grammar": (told_of, [ValueError("odd"), RecursionError("odd")], True),
    "another's directory": (saved_so, [raising(JllamaError("odd")), {"quantization_config": [1]}, {}], True),
    "a saved directory": (
        damaged,
        [KeyError("odd"), TypeError("odd"), ValueError("odd"), OverflowError("odd"), JllamaError("odd")],
        True,
    ),
    "a sweep": (held, ["{", "5", "{}", '{"run": {}, "points": 5}', '{"run": 5, "points": []}', POINT], True),
    "models of a server": (
        lambda _, body: models._names(body),
        [b"{", b"\xff", b'"\xff"', b"5", b"{}", b'{"data": [5]}', b'{"data": [{}]}'],
        [],
    ),
    "what a server says": (lambda _, body: reply.message_of(body), [b"odd", b" odd\n"], "odd"),
    "a tensor": (
        lambda _, entry: headers._stored(HERE, "t", entry, 8),
        [5, {}, {"dtype": "F32", "shape": [1], "data_offsets": [1, 2, 3]}, None],
        None,
    ),
    "a call": (lambda _, text: call_objects.read_call(text), ["{", '{"a": "\ud800"}', DEEP], None),
    "a named call": (lambda _, text: call_objects.named_call("f", text), ["{", '"\ud800"', DEEP], None),
    "data": (lambda _, text: manner._data(text) == text, ["{", DEEP], True),
    "a compiler": (
        not_built,
        [OSError(5, "odd"), OSError(errno.ENOSPC, "odd"), subprocess.TimeoutExpired("cc", 1)],
        True,
    ),
}


@pytest.mark.parametrize(
    ("what", "at"), [(what, at) for what, (_, given, _) in ANSWERS.items() for at in range(len(given))]
)
def test_what_fails_has_its_answer(monkeypatch, what, at):
    call, given, wanted = ANSWERS[what]
    assert call(monkeypatch, given[at]) == wanted
