"""Requests for the server, of all kinds: mostly good ones, each wrong in one way at most."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.support.serving import CHAT, TEXT

KEY = "key"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
    TEXT: {"prompt": "Hi", "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 3},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": [{"role": "user", "content": "Hi"}]},
}
OTHERS = ("/", "/health", "/metrics", "/version", "/v1/models", "/v1/models/tiny", "/v1", "/../etc", "/%00")
SETTINGS = (
    "stream stream_options n max_tokens temperature top_p top_k min_p presence_penalty frequency_penalty "
    "repetition_penalty seed stop stop_token_ids ignore_eos min_tokens logit_bias logprobs model user foo"
).split()
MATCHING = "response_format structured_outputs grammar json_schema".split()
TOOLS = "tools tool_choice parallel_tool_calls".split()
TEMPLATED = "messages continue_final_message add_generation_prompt chat_template_kwargs model".split()
NAMES = {
    CHAT: [
        *(*SETTINGS, *TEMPLATED, *TOOLS, *MATCHING),
        *("max_completion_tokens", "top_logprobs", "return_token_ids"),
    ],
    TEXT: [*SETTINGS, *MATCHING, "prompt", "echo", "suffix", "best_of"],
    "/v1/responses": [
        *"input instructions max_output_tokens temperature top_p seed text stream foo".split(),
        *TOOLS,
    ],
    "/tokenize": [*TEMPLATED, "prompt", "add_special_tokens", "parse_special", "return_token_strs", "foo"],
    "/detokenize": ["tokens", "skip_special_tokens", "model", "foo"],
    "/apply-template": TEMPLATED,
}
WORDS = st.sampled_from(
    ["", "Hi", " ", "\0", "<|end|>", "é🙂", "\ud800", "tiny", "text", "user", "x" * 70, "$", "[0]"]
)
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, -1, 5, 256, 258, 2**31, 2**63, -(2**63), 10**30, 0.5, 1.5, -0.0, 1e-300, 1e300]
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.just(float("nan")), st.just(float("inf")))
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "x", None, 3]),
            "content": st.one_of(
                WORDS, LEAVES, st.lists(st.one_of(WORDS, st.just({"type": "text", "text": "Hi"})))
            ),
            "type": st.sampled_from(["message", "reasoning", "text", 3]),
            "name": LEAVES,
            "token_ids": st.lists(NUMBERS, max_size=2),
            "tool_calls": st.one_of(LEAVES, st.just([{"function": {"name": "f", "arguments": "{"}}])),
        },
    ),
    max_size=3,
)
VALUES = st.recursive(
    st.one_of(LEAVES, MESSAGES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
FLAG, SHARE = st.booleans(), st.floats(0, 1)
TEXTS = st.sampled_from(["Hi", "a", "e", " ", "é🙂", "<|end|>"])
TOKENS = st.lists(st.integers(0, 257), min_size=1, max_size=4)
TALKS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS}),
    min_size=1,
    max_size=3,
)
FITTING = {
    **dict.fromkeys("stream ignore_eos echo add_generation_prompt continue_final_message".split(), FLAG),
    **dict.fromkeys("add_special_tokens parse_special return_token_strs skip_special_tokens".split(), FLAG),
    **dict.fromkeys("temperature top_p min_p presence_penalty frequency_penalty".split(), SHARE),
    **dict.fromkeys("n max_tokens max_completion_tokens max_output_tokens".split(), st.integers(1, 6)),
    **dict.fromkeys("top_k min_tokens seed".split(), st.integers(0, 3)),
    "prompt": st.one_of(TEXTS, TOKENS, st.lists(TEXTS, min_size=1, max_size=3)),
    "tokens": TOKENS,
    "messages": TALKS,
    "input": st.one_of(TEXTS, TALKS),
    "instructions": TEXTS,
    "user": TEXTS,
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=3)),
    "stop_token_ids": TOKENS,
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str), st.floats(-100, 100), max_size=3),
    "logprobs": st.one_of(FLAG, st.integers(0, 5)),
    "top_logprobs": st.integers(0, 4),
    "model": st.just("tiny"),
    "stream_options": st.just({"include_usage": True}),
    "text": st.just({"format": {"type": "text"}}),
    "tools": st.lists(
        st.sampled_from([{"type": "function", "function": {"name": name}} for name in ("f", "g")]), max_size=2
    ),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"function": {"name": "f"}}]),
    "parallel_tool_calls": FLAG,
    "response_format": st.sampled_from(
        [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}]
    ),
    "structured_outputs": st.sampled_from([{"regex": "a+"}, {"choice": ["a", "b"]}, {"json": {}}]),
    "grammar": st.just('start: "a" | "b"'),
    "json_schema": st.sampled_from([{}, True, {"type": "string"}, {"oneOf": [{}, {}]}]),
}


@st.composite
def bodies(draw: Any, path: str, damaged: bool) -> bytes:
    """A good one with some values replaced; or cut, or no JSON."""
    names = draw(st.lists(st.sampled_from(NAMES[path]), unique=True, max_size=5))
    odd = draw(st.integers(0, 7))  # which of them has a value of any kind, if one has
    changes = {
        name: draw(VALUES if at == odd else FITTING.get(name, LEAVES)) for at, name in enumerate(names)
    }
    body = json.dumps({**GOOD[path], **changes}).encode()
    if not damaged:
        return body
    at = draw(st.integers(0, len(body)))
    noise = body[:at] + draw(st.binary(max_size=4)) + body[at:]
    others = (body[:at], noise, draw(st.binary(max_size=40)), b"[%s]" % body, b'{"a":' * 3000, body * 500)
    return draw(st.sampled_from(others))


HEADERS = {
    b"content-type": (b"application/json; charset=utf-8", b"text/plain", b"", b"\xff"),
    b"authorization": (b"Bearer", b"bearer  key", b"Basic key", b"\xff\xfe", b"Bearer \xc3\xa9"),
    b"x-api-key": (KEY.encode(), b"", b"\x00"),
    b"host": (b"evil.example", b"", b"[::1", b"127.0.0.1:99999", b"\xff", b"a" * 9000),
    b"origin": (b"https://evil.example", b"null"),
    b"content-length": (b"0", b"-1", b"99999999999999999999", b"x", b"5", b"30000"),
    b"content-encoding": (b"gzip", b"identity"),
    b"accept": (b"text/html", b""),
}
USUAL = {
    b"content-type": b"application/json",
    b"authorization": f"Bearer {KEY}".encode(),
    b"host": b"localhost",
}
WRONG = ("nothing", "nothing ", "nothing  ", "patience", "body", "headers", "method", "path")


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    """What `exchange` takes: wrong in one way, beside whatever values its body holds."""
    wrong = draw(st.sampled_from(WRONG))
    path = draw(st.sampled_from(list(GOOD)))
    body = draw(bodies(path, wrong == "body"))
    headers = dict(USUAL)
    if wrong == "headers":
        name = draw(st.sampled_from(list(HEADERS)))
        headers[name] = draw(st.sampled_from(HEADERS[name]))
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=2)))
    methods = ["GET", "PUT", "OPTIONS", "HEAD", "DELETE", "BREW"]
    return {
        "method": draw(st.sampled_from(methods)) if wrong in ("method", "path") else "POST",
        "path": draw(st.sampled_from(OTHERS)) if wrong == "path" else path,
        "headers": list(headers.items()),
        "parts": [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)],
        "leave": draw(st.integers(0, 4)) if wrong == "patience" else None,
    }
