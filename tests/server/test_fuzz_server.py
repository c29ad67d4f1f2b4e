"""Requests of all kinds, some hundred here; `python -m tests.support.fuzz_server` makes many more."""

import pytest

from tests.support.fuzz_server import judge, run, server
from tests.support.fuzz_server_requests import KEY
from tests.support.serving import CHAT, TEXT


def test_whatever_comes_is_answered_properly(served_model):
    run(served_model, count=500, seed=1)


def good(path, body):
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost"), (b"x-api-key", KEY.encode())]
    return dict(method="POST", path=path, headers=headers, parts=[body], leave=None)


def test_the_judge_sees_what_is_wrong(served_model):
    with server(served_model) as check:
        check(good(TEXT, b'{"prompt": "x", "max_tokens": 2, "stream": true}'))
        check(good(CHAT, b'{"prompt": "x"}'))
    start = {"status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    for sent in (
        [{"status": 500, "headers": []}, {"body": b"{}"}],
        [{"status": 400, "headers": []}, {"body": b'{"error": "text"}'}],
        [start, {"body": b"data: {}\n\n"}],
        [start, {"body": b"data: [DONE]\n\n", "more_body": True}],
    ):
        with pytest.raises((AssertionError, TypeError, KeyError)):
            judge(good(TEXT, b""), sent)
