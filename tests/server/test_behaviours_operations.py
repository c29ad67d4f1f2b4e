"""Behaviours 58 to 61 of the protocol: who may ask, and what the operator sees."""

import re

import jllama
from tests.support.serving import (
    CHAT,
    HELLO,
    TEXT,
    WAIT,
    ask_and_leave,
    held,
    in_process,
    on_a_port,
    refusal,
    start_engine,
)

KEYS = ("first key", "zweiter Schlüssel")


def test_58_keys_open_the_api_and_nothing_else_does(engine):
    with in_process(engine, keys=KEYS) as client:
        http = client.http
        for key in ("", "first", "first key ", "first keyX", "FIRST KEY", "\xfc"):
            for headers in (
                {"Authorization": b"Bearer " + key.encode("latin-1")},
                {"X-Api-Key": key.encode("latin-1")},
            ):
                if key.strip() != KEYS[0]:
                    error = refusal(http.get("/v1/models", headers=headers), 401)
                    assert error["type"] == "authentication_error"
        refusal(http.get("/v1/models", headers={"Authorization": "Basic first key"}), 401)
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/version"):
            assert refusal(http.get(path), 401)["code"] == "invalid_api_key"
        for path in (CHAT, TEXT, "/tokenize", "/detokenize", "/apply-template"):
            response = http.post(path, json={"messages": HELLO})
            refusal(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        for key in KEYS:
            for name, value in (("Authorization", f"Bearer {key}"), ("X-Api-Key", key)):
                assert http.get("/v1/models", headers={name: value.encode()}).status_code == 200
        assert http.get("/health").status_code == 200


def test_58_the_page_needs_no_key_and_lets_nothing_in(engine, tmp_path):
    (tmp_path / "page" / "js").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<p>page")
    (tmp_path / "page" / "js" / "main.js").write_text("1")
    (tmp_path / "secret").write_text("secret")
    with in_process(engine, keys=KEYS, page_files=tmp_path / "page") as client:
        for path, kind in (
            ("/", "text/html"),
            ("/index.html", "text/html"),
            ("/js/main.js", "text/javascript"),
        ):
            response = client.http.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            policy = response.headers["content-security-policy"].split("; ")
            assert policy[0] == "default-src 'none'"
            own = {"script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"}
            none = {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"}
            assert set(policy[1:]) == own | none
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
            assert response.headers["cache-control"] == "no-cache"
            head = client.http.head(path)
            assert (head.status_code, head.content) == (200, b"")
        for path in ("/secret", "/../secret", "/%2e%2e/secret", "/js/../../secret", "/js", "/nothing"):
            assert client.http.get(path).status_code in (307, 404), path
        refusal(client.http.post("/", json={}), 404)
    with in_process(engine, page_files=tmp_path / "none") as client:
        refusal(client.http.get("/"), 404)


def test_58_other_pages_may_ask_only_where_they_are_named(client, engine):
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asking["Access-Control-Request-Headers"] = "authorization,content-type"
    response = client.http.options(CHAT, headers=asking)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]
    with in_process(engine, keys=KEYS, origins=("https://page.example",)) as open_client:
        response = open_client.http.options(CHAT, headers=asking)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert "authorization" in response.headers["access-control-allow-headers"]
        other = open_client.http.options(CHAT, headers=asking | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        refused = open_client.http.post(CHAT, json={}, headers={"Origin": "https://page.example"})
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        refusal(refused, 401)


def test_58_a_name_that_is_not_ours_is_refused(engine):
    with in_process(engine, hosts=("llm.example",)) as client:
        good = (
            "localhost",
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "192.168.0.7",
            "LLM.example",
            "llm.example:1",
        )
        for host in good:
            assert client.http.get("/health", headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "[x",
        ):
            assert (
                refusal(client.http.get("/health", headers={"Host": host}), 403)["code"] == "host_not_allowed"
            )
    with in_process(engine, hosts=("*",)) as client:
        assert client.http.get("/health", headers={"Host": "any.example"}).status_code == 200


def test_59_models_are_listed_by_all_their_names(client):
    listed = client.http.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "alias"]
    for one in listed:
        assert client.http.get(f"/v1/models/{one['id']}").json() == one
        assert one["owned_by"] == "jllama"
        assert type(one["created"]) is int
    assert refusal(client.http.get("/v1/models/other/name"), 404)["code"] == "model_not_found"


def test_60_texts_and_tokens_go_there_and_back(client):
    for text in ("Hello", " blank", "ünïcödé 🙂", "<|end|>", ""):
        told = client.ask("/tokenize", prompt=text, return_token_strs=True)
        assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
        assert client.ask("/detokenize", tokens=told["tokens"])["prompt"] == text
    as_text = client.ask("/apply-template", messages=HELLO)
    assert as_text == {"prompt": "[user]Hello<|end|>[assistant]", "tokens": as_text["tokens"]}
    assert client.ask("/detokenize", tokens=as_text["tokens"])["prompt"] == as_text["prompt"]
    assert client.ask("/tokenize", messages=HELLO)["tokens"] == as_text["tokens"]
    assert client.chat()["usage"]["prompt_tokens"] == len(as_text["tokens"])
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": HELLO}),
        ("/detokenize", {"tokens": [-1]}),
    ):
        assert client.error(path, **body)["type"] == "invalid_request_error"
    assert client.http.get("/version").json() == {"version": jllama.__version__}


def test_61_metrics_have_the_names_that_boards_know(served_model):
    with start_engine(served_model) as engine, in_process(engine) as client:
        for _ in range(2):
            client.text("a text of some forty characters, or so it is", max_tokens=5, ignore_eos=True, n=2)
        response = client.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = dict(re.findall(r"^(jllama:\w+(?:\{[^}]*\})?) (\S+)$", response.text, re.M))
    told = {
        re.sub(r'model_name="tiny",?|,?\{\}', "", name).replace("{}", "").replace(",}", "}"): float(value)
        for name, value in values.items()
    }
    assert told["jllama:prompt_tokens_total"] == 4 * 44
    assert told["jllama:generation_tokens_total"] == 4 * 5
    assert told['jllama:request_success_total{finished_reason="length"}'] == 4
    assert told['jllama:request_success_total{finished_reason="abort"}'] == 0
    assert told["jllama:prefix_cache_queries_total"] == 4 * 44
    assert told["jllama:prefix_cache_hits_total"] > 44
    assert told["jllama:num_preemptions_total"] == 0
    for name in (
        *("time_to_first_token", "inter_token_latency", "e2e_request_latency"),
        *("request_queue_time", "request_prefill_time", "request_decode_time"),
    ):
        assert told[f"jllama:{name}_seconds_count"] == 4
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert told[f"jllama:{name}"] == 0
    assert told["jllama:request_prompt_tokens_sum"] == 4 * 44
    assert told["jllama:request_generation_tokens_sum"] == 4 * 5


def test_61_what_runs_and_waits_is_told(served_model):
    with start_engine(served_model, slots=1) as engine, in_process(engine) as client:
        with held(engine, "run") as go:
            kept = [engine.submit("a prompt", max_new_tokens=5, ignore_eos=True) for _ in range(3)]
            assert go.reached.wait(WAIT)
            text = client.http.get("/metrics").text
            go.set()
        for stream in kept:
            stream.result(WAIT)
    assert 'jllama:num_requests_running{model_name="tiny"} 1.0' in text
    assert 'jllama:num_requests_waiting{model_name="tiny"} 2.0' in text
    [used] = re.findall(r"jllama:kv_cache_usage_perc\{.*\} (\S+)", text)
    assert 0 < float(used) < 1


def test_61_who_goes_away_is_counted(served_model):
    with start_engine(served_model) as engine, on_a_port(engine) as client:
        with held(engine, "run"):
            ask_and_leave(client, {"prompt": "x", "ignore_eos": True})
            ask_and_leave(client, {"prompt": "x", "ignore_eos": True, "stream": True})
        text = client.http.get("/metrics").text
    assert 'finished_reason="abort",model_name="tiny"} 2.0' in text
