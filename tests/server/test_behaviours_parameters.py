"""Behaviours 26 to 40 of the protocol: parameters."""

import threading

import pytest

from tests.support.serving import ASCII, CHAT, HELLO, MAX_LEN, TEXT, content, said

LONG = dict(max_tokens=40, ignore_eos=True)
FREE = dict(temperature=1.3, **LONG)


def blamed(client, name, path=CHAT, **body):
    """The error of a request that is good but for what `body` holds; it names the parameter."""
    good = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
    error = client.error(path, **good, **body)
    assert error["param"] == name, error
    assert name.partition(".")[0].partition("[")[0] in error["message"]
    return error


def test_26_the_limit_has_two_names(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat(ignore_eos=True, **{"max_tokens": None, name: 5})
        assert answer["usage"]["completion_tokens"] == 5
    assert client.chat(max_tokens=5, max_completion_tokens=5)["choices"]
    blamed(client, "max_tokens", max_tokens=5, max_completion_tokens=6)
    blamed(client, "max_tokens", max_tokens=0)
    blamed(client, "max_completion_tokens", max_completion_tokens=0)
    assert client.text(max_tokens=10**6, ignore_eos=True)["choices"][0]["finish_reason"] == "length"


def test_27_without_a_limit_there_is_all_the_room(client):
    usage = client.chat(max_tokens=None, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == MAX_LEN
    assert client.text(max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("temperature", (-0.1, 2.1, "1", True, [1]), (0, 2, 1.5, None)),
        ("top_p", (-0.1, 1.1, "x"), (0, 0.5, 1, None)),
        ("min_p", (-0.1, 1.1), (0, 0.5, 1, None)),
        ("top_k", (-2, 1.5, "3"), (-1, 0, 1, 500, None)),
        ("presence_penalty", (-2.1, 2.1), (-2, 2, None)),
        ("frequency_penalty", (-2.1, 2.1), (-2, 2, None)),
        ("repetition_penalty", (0, -1, 101), (0.5, 1.5, None)),
        ("seed", (-1, 2**63, 1.5), (0, 2**63 - 1, None)),
        ("n", (0, 129, "2"), (1, None)),
        ("stream", ("yes", 1), (False, None)),
    ],
)
def test_28_values_are_checked_and_null_is_absent(client, name, bad, good):
    for value in bad:
        blamed(client, name, **{name: value})
        blamed(client, name, path=TEXT, **{name: value})
    for value in good:
        assert client.chat(**{"max_tokens": 1, name: value})["choices"]
        assert client.text(**{"max_tokens": 1, name: value})["choices"]
    seeded = {"temperature": None, "seed": 3}
    assert content(client.chat(**{**seeded, name: None, "seed": 3})) == content(client.chat(**seeded))


def test_28_settings_take_effect(client):
    greedy = content(client.text(**LONG))
    assert content(client.text(**FREE | {"top_k": 1})) == greedy
    assert content(client.text(**FREE | {"top_p": 0})) == greedy
    assert content(client.text(**FREE | {"min_p": 1})) == greedy
    assert content(client.text(repetition_penalty=3, **LONG)) != greedy
    assert content(client.text(presence_penalty=2, **LONG)) != greedy


def test_29_a_seed_gives_the_same_text_in_any_slot_and_load(client):
    wanted = content(client.chat(seed=7, **FREE))
    assert content(client.chat(seed=8, **FREE)) != wanted
    stop = threading.Event()

    def load(number):
        while not stop.is_set():
            client.text(f"{number}", seed=number, **FREE)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    found = {content(client.chat(seed=7, **FREE)) for _ in range(5)}
    stop.set()
    for thread in threads:
        thread.join()
    assert found == {wanted}


def test_30_without_a_seed_one_is_drawn_and_told(client):
    first, second = client.chat(**FREE), client.chat(**FREE)
    seeds = [answer["choices"][0]["seed"] for answer in (first, second)]
    assert seeds[0] != seeds[1]
    assert content(client.chat(seed=seeds[0], **FREE)) == content(first)
    streamed = client.chat_chunks(**FREE)
    assert content(client.chat(seed=streamed[-1]["choices"][0]["seed"], **FREE)) == said(streamed)


def test_31_stop_strings_never_show_and_the_one_that_fired_is_told(client):
    text = content(client.text(**LONG))
    at = next(at for at in range(3, len(text) - 3) if text[at : at + 2].isascii() and text[at : at + 2])
    stop = text[at : at + 2]
    before = text[: text.index(stop)]
    for given in (stop, [stop], ["never there", stop, *map(str, range(100, 110))]):
        for answer in (client.text(stop=given, **LONG), client.text(stop=given, stream=False, **LONG)):
            assert content(answer) == before
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert answer["choices"][0]["stop_reason"] == stop
        assert said(client.text_chunks(stop=given, **LONG)) == before
    assert client.text(**LONG)["choices"][0]["stop_reason"] is None
    blamed(client, "stop", stop="")
    blamed(client, "stop[1]", stop=["a", ""])
    blamed(client, "stop", stop=["a"] * 65)
    blamed(client, "stop", stop=3)


def test_32_tokens_may_end_an_answer_and_the_end_of_a_text_need_not(client):
    ids = client.ask("/tokenize", prompt=content(client.text(logit_bias=ASCII, **LONG)))["tokens"]
    stop = next(token for at, token in enumerate(ids) if at > 4 and token not in ids[:4])
    at = ids.index(stop)
    answer = client.text(stop_token_ids=[stop, 255], logit_bias=ASCII, **LONG)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert client.ask("/tokenize", prompt=content(answer))["tokens"] == ids[:at]
    assert answer["usage"]["completion_tokens"] == at + 1
    later = client.text(stop_token_ids=[stop], min_tokens=at + 1, logit_bias=ASCII, **LONG)
    assert later["usage"]["completion_tokens"] > at + 1
    ends = {str(token): -100 for token in range(258) if token not in (256, 65)} | {"256": 100}
    asked = dict(max_tokens=9, logit_bias=ends)
    assert client.text(**asked)["usage"]["completion_tokens"] == 1
    assert client.text(**asked)["choices"][0]["stop_reason"] is None
    assert client.text(min_tokens=4, **asked)["usage"]["completion_tokens"] == 5
    assert client.text(ignore_eos=True, **asked)["usage"]["completion_tokens"] == 9
    blamed(client, "stop_token_ids", stop_token_ids=[258])
    blamed(client, "stop_token_ids", stop_token_ids=3)
    blamed(client, "min_tokens", min_tokens=-1)
    blamed(client, "min_tokens", min_tokens=5, max_tokens=4)


def test_33_logit_bias_takes_ids_as_texts(client):
    only = client.text(logit_bias={"65": 100, "66": -100}, max_tokens=4)
    assert content(only) == chr(65 + 33) * 4, "byte-level: id 65 is the 66th printable character"
    blamed(client, "logit_bias", logit_bias={"258": 1})
    blamed(client, "logit_bias", logit_bias={"-1": 1})
    blamed(client, "logit_bias", logit_bias={"x": 1})
    blamed(client, "logit_bias[...]", logit_bias={"1": 101})
    blamed(client, "logit_bias", logit_bias=[1])


def test_34_logprobs_of_a_conversation_add_up_to_its_text(client):
    asked = dict(logprobs=True, top_logprobs=3, seed=5, **FREE)
    whole, chunks = client.chat(**asked), client.chat_chunks(**asked)
    told = whole["choices"][0]["logprobs"]["content"]
    streamed = [
        entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in told]
    data = b"".join(bytes(entry["bytes"] or ()) for entry in told)
    assert data.decode("utf-8", "replace") == content(whole)
    for entry in told:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 3
        values = [one["logprob"] for one in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert entry["logprob"] <= values[0] + 1e-6
    assert (
        client.chat(logprobs=True, top_logprobs=0)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        == []
    )
    assert client.chat(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    blamed(client, "top_logprobs", logprobs=True, top_logprobs=21)
    blamed(client, "top_logprobs", top_logprobs=3)
    blamed(client, "logprobs", logprobs=3)


def test_34_logprobs_are_cut_where_the_text_is(client):
    asked = dict(logit_bias=ASCII, **LONG)
    text = content(client.text(**asked))
    stop = text[6:8]
    answer = client.text(stop=stop, logprobs=0, **asked)
    logprobs = answer["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == content(answer) == text[: text.index(stop)]
    chunks = client.text_chunks(stop=stop, logprobs=0, **asked)
    tokens = [t for chunk in chunks for t in (chunk["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert tokens == logprobs["tokens"]


def test_34_logprobs_of_a_text_have_their_places(client):
    answer = client.text(logprobs=2, seed=9, **FREE)
    logprobs = answer["choices"][0]["logprobs"]
    assert len({len(values) for values in logprobs.values()}) == 1
    text = content(answer)
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if token != "\ufffd":
            assert text[offset : offset + len(token)] == token
    assert all(1 <= len(told) <= 2 for told in logprobs["top_logprobs"])
    blamed(client, "logprobs", path=TEXT, logprobs=6)
    blamed(client, "logprobs", path=TEXT, logprobs=True)


def test_35_each_of_n_answers_is_what_its_seed_gives_alone(client):
    answers = client.chat(n=3, seed=11, **FREE)
    for index, choice in enumerate(answers["choices"]):
        assert choice["seed"] == 11 + index
        assert choice["message"]["content"] == content(client.chat(seed=11 + index, **FREE))
    several = client.text(["one", "two"], n=2, seed=3, **FREE)["choices"]
    for index, prompt in enumerate(("one", "two")):
        alone = [content(client.text(prompt, seed=3 + i, **FREE)) for i in range(2)]
        assert [choice["text"] for choice in several[2 * index : 2 * index + 2]] == alone
    blamed(client, "best_of", best_of=2)
    blamed(client, "best_of", path=TEXT, best_of=2)


def test_35_prompts_are_texts_or_token_ids(client):
    ids = client.ask("/tokenize", prompt="Hello", model="tiny")["tokens"]
    wanted = content(client.text("Hello"))
    assert content(client.text(ids)) == wanted
    assert [choice["text"] for choice in client.text([ids, ids])["choices"]] == [wanted] * 2
    for bad in ([], "", [[]], ["a", 1], [1, [1]], [-1], [258], {"a": 1}, 3, [None], [1.5], ["a"] * 1025):
        assert client.error(TEXT, prompt=bad)["param"].startswith("prompt"), bad
    assert client.error(TEXT)["message"].startswith("the body: Object missing required field `prompt`")


def test_36_bookkeeping_is_passed_over_and_the_unknown_is_refused(client):
    passed = dict(user="me", metadata={"a": "b"}, store=False, service_tier="auto")
    assert content(client.chat(**passed)) == content(client.chat())
    assert blamed(client, "tempratur", tempratur=1)["code"] == "unknown_parameter"
    assert "did you mean 'temperature'" in blamed(client, "tempratur", tempratur=1)["message"]
    assert client.chat(tempratur=None)["choices"], "a null is as good as absent"
    blamed(client, "stream_options", stream_options={"include_usage": True})
    blamed(client, "stream_options", stream=True, stream_options={"foo": True})


def test_37_formats_that_can_not_be_are_refused(client):
    assert client.chat(response_format={"type": "text"})["choices"]
    for kind, param in (
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, "response_format.json_schema.schema"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "json_object", "strict": True}, "response_format"),
        ({"type": "x"}, "response_format.type"),
        ({}, "response_format"),
    ):
        for path in (CHAT, TEXT):
            blamed(client, param, path=path, response_format=kind)


@pytest.mark.parametrize("name", ["grammar", "guided_json", "structured_outputs", "json_schema"])
def test_38_what_is_no_grammar_is_refused_by_name(client, name):
    blamed(client, name, **{name: 3})


def test_39_the_prompt_is_echoed_where_that_is_asked_for(client):
    alone = content(client.text("Hello"))
    assert content(client.text("Hello", echo=True)) == "Hello" + alone
    assert said(client.text_chunks("Hello", echo=True)) == "Hello" + alone
    chosen = client.text(["One", "Two"], n=2, echo=True)["choices"]
    assert [choice["text"][:3] for choice in chosen] == ["One", "One", "Two", "Two"]
    blamed(client, "echo", echo=True)


def test_39_an_echo_is_scored_too(client):
    asked = dict(prompt="Héllo", echo=True, logprobs=2, logit_bias=ASCII, max_tokens=5)
    whole = client.text(**asked)
    told = whole["choices"][0]["logprobs"]
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    assert all(value <= 0 for value in told["token_logprobs"][1:])
    assert len(told["tokens"]) == len("Héllo".encode()) + 5
    assert told["text_offset"] == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    chunks = [chunk["choices"][0]["logprobs"] for chunk in client.text_chunks(**asked)]
    streamed = {name: [value for one in chunks if one for value in one[name]] for name in told}
    assert (streamed["tokens"], streamed["text_offset"]) == (told["tokens"], told["text_offset"])
    assert streamed["token_logprobs"][1:] == pytest.approx(told["token_logprobs"][1:], abs=1e-4)
    alone = client.text("Héllo", logprobs=2, logit_bias=ASCII, max_tokens=5)["choices"][0]["logprobs"]
    assert told["token_logprobs"][6:] == pytest.approx(alone["token_logprobs"], abs=1e-4)


def test_39_nothing_but_the_prompt_may_be_asked_for(client):
    answer = client.text("Hello", echo=True, logprobs=0, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == "Hello"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == [*"Hello"]
    assert answer["usage"]["completion_tokens"] == 0
    chunks = client.text_chunks("Hello", echo=True, max_tokens=0)
    assert said(chunks) == "Hello"
    blamed(client, "max_tokens", path=TEXT, max_tokens=0)


def test_40_a_suffix_is_refused(client):
    blamed(client, "suffix", path=TEXT, suffix="x")
