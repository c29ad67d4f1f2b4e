"""What seldom happens: a server that speaks no HTTP or closes early, a tool that is stopped, several GPUs."""

import asyncio
import dataclasses
from types import SimpleNamespace

import h11
import jax.numpy as jnp
import numpy as np
import pytest

from jllama.cli.load.connection import Connection
from jllama.cli.load.reply import DroppedError, Reply, RequestError
from jllama.cli.terminal import tool_calls
from jllama.families.llama import LLAMA
from jllama.layers.quantization import SCHEMES, quantize
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox
from tests.support.programs import program_module

inspect, perplexity = program_module("inspect"), program_module("perplexity")
REQUEST = h11.Request(method="GET", target="/", headers=[("Host", "x")])


class Wire(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written, self.aborted = b"", False

    def write(self, data):
        self.written += data

    def abort(self):
        self.aborted = True


def exchanged(*parts, lost=True):
    """What becomes of a request for which this comes back: the reply, its error, the connection."""

    async def run():
        one, wire, reply = Connection(), Wire(), Reply()
        one.connection_made(wire)
        one.send(REQUEST, b"", reply)
        assert wire.written.startswith(b"GET / HTTP/1.1\r\n")
        for part in parts:
            one.data_received(part)
        if lost and not reply.ended.done():
            one.connection_lost(None)
        error = reply.ended.exception() if reply.ended.done() else None
        return reply, error, one, wire

    return asyncio.run(run())


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ([b"nonsense\r\n\r\n"], RequestError, "what came is no HTTP: "),
        ([], DroppedError, "the server closed the connection before it answered"),
        ([OK + b"Content-Length: 9\r\n\r\nhalf"], RequestError, "the connection broke in the middle of an"),
    ],
)
def test_what_is_no_answer(parts, kind, words):
    _, error, one, _ = exchanged(*parts)
    assert type(error) is kind
    assert str(error).startswith(words)
    assert one.is_lost


@pytest.mark.parametrize(
    ("head", "kept"),
    [(b"Content-Length: 2\r\n", True), (b"Content-Length: 2\r\nConnection: close\r\n", False)],
)
def test_a_connection_is_kept_if_the_server_keeps_it(head, kept):
    reply, error, one, wire = exchanged(OK + head + b"\r\nhi")
    assert (error, reply.status, bytes(reply.data)) == (None, 200, b"hi")
    assert (one.is_lost, wire.aborted) == (not kept, not kept)
    if kept:
        one.data_received(b"HTTP/1.1 408 Timeout\r\n\r\n")  # while nobody asks
        assert (one.is_lost, wire.aborted) == (True, True)


def test_a_body_of_unknown_length_ends_with_the_connection():
    reply, error, _, _ = exchanged(OK + b"Connection: close\r\n\r\n", b"all of ", b"it")
    assert (error, bytes(reply.data)) == (None, b"all of it")


@pytest.mark.parametrize("at_once", [True, False])
def test_what_comes_before_an_answer_is_none(at_once):
    parts = [b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 1\r\n\r\nx"]
    reply, error, _, _ = exchanged(*([b"".join(parts)] if at_once else parts), lost=False)
    assert reply.ended.done()  # nothing of it waits until more comes, or the connection ends
    assert (error, reply.status, bytes(reply.data)) == (None, 200, b"x")


def slow(x: int) -> int:
    raise KeyboardInterrupt


def test_a_tool_that_is_stopped_gives_that():
    said = []
    screen = SimpleNamespace(say=lambda text, style="dim": said.append((text, style)))
    runner = tool_calls.ToolRunner(Toolbox([slow]), screen, unasked=True)
    (given,) = runner.results((Call("i", "slow", '{"x": 1}'),))
    assert given == '{"error": "the user stopped it"}'
    assert said == [('call: slow({"x": 1})', "dim"), (f"gave: {given}", "error")]


@pytest.mark.parametrize(
    ("storage", "kept", "words"),
    [
        ("auto", None, ""),
        ("none", None, ""),
        ("int8", None, ", weights int8"),
        ("auto", 9999, ", weights auto as GPUs keep them (CPUs together: bfloat16)"),
    ],
)
def test_what_each_device_takes_is_a_part_of_the_report(tiny_config, storage, kept, words):
    report = inspect.describe(tiny_config, inspect.planned_tensors(tiny_config, LLAMA), 16, 2) | {
        "model": "m"
    }
    report["each_device"] = inspect.each_device(tiny_config, report["kv_cache"], 2, storage, kept)
    lines = inspect.as_text(report, with_tensors=False).splitlines()
    at = lines.index(f"each of 2 devices, in bfloat16{words}")
    assert lines[at - 1] == ""
    told = report["each_device"]
    assert lines[at + 1 :] == [
        f"  {name:<10} {inspect.mib(told[name])}" for name in ("weights", "kv_cache", "together")
    ]
    assert told["together"] == told["weights"] + told["kv_cache"]
    assert kept is None or told["weights"] == kept


def test_the_exact_model_has_the_very_weights():
    wide = jnp.asarray(np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32))
    packed = quantize(wide, SCHEMES["int8"][0])
    model = dataclasses.make_dataclass("Some", ["params", "dtype"])(
        {"a": packed, "b": jnp.ones((3,), jnp.bfloat16)}, "bfloat16"
    )
    made = perplexity.expanded(model)
    assert made.dtype == "float32"
    assert {name: leaf.dtype.name for name, leaf in made.params.items()} == {"a": "float32", "b": "float32"}
    assert float(abs(made.params["a"] - wide).max()) < 1 / 127
