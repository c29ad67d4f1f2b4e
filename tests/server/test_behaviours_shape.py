"""Behaviours 1 to 10 of the protocol: the shape of answers."""

from jllama.server.app import create_app
from tests.support.serving import CHAT, TEXT, options, said


def test_01_ids_say_their_kind_are_unique_and_stay_the_same_in_a_stream(client):
    chats = [client.chat()["id"] for _ in range(2)]
    texts = [client.text()["id"] for _ in range(2)]
    assert all(one.startswith("chatcmpl-") for one in chats)
    assert all(one.startswith("cmpl-") for one in texts)
    assert len({*chats, *texts}) == 4
    for chunks in (client.chat_chunks(n=2), client.text_chunks(n=2)):
        assert len({chunk["id"] for chunk in chunks}) == 1


def test_02_objects_have_their_names(client):
    assert client.chat()["object"] == "chat.completion"
    assert {chunk["object"] for chunk in client.chat_chunks()} == {"chat.completion.chunk"}
    assert client.text()["object"] == "text_completion"
    assert {chunk["object"] for chunk in client.text_chunks()} == {"text_completion"}
    listed = client.http.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {one["object"] for one in listed["data"]} == {"model"}


def test_03_created_is_whole_seconds(client):
    for answer in (client.chat(), client.text(), *client.chat_chunks()):
        assert type(answer["created"]) is int
        assert answer["created"] > 1_700_000_000


def test_04_the_model_is_called_as_it_is_served(client):
    for asked in ("tiny", "alias", None):
        assert client.chat(model=asked)["model"] == "tiny"
        assert {chunk["model"] for chunk in client.text_chunks(model=asked)} == {"tiny"}


def test_05_the_fingerprint_is_that_of_the_weights(client, engine):
    print_ = client.chat()["system_fingerprint"]
    assert print_.startswith("fp_")
    assert {chunk["system_fingerprint"] for chunk in client.chat_chunks()} == {print_}
    assert create_app(engine, options(names=("other",))).state.service.fingerprint == print_


def test_06_choices_are_numbered(client):
    for answer in (client.chat(n=3), client.text(n=3)):
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


def test_07_a_finish_reason_comes_once_and_last(client):
    assert client.chat(max_tokens=3, ignore_eos=True)["choices"][0]["finish_reason"] == "length"
    text = client.text(max_tokens=12)["choices"][0]["text"]
    assert client.text(stop=text[3])["choices"][0]["finish_reason"] == "stop"
    for chunks in (client.chat_chunks(n=3), client.text_chunks(n=3)):
        for index in range(3):
            mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
            assert [one["finish_reason"] for one in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1]["finish_reason"] in ("stop", "length")


def test_08_content_is_a_text_even_if_it_is_empty(client):
    first = client.chat()["choices"][0]["message"]["content"][0]
    assert client.chat(stop=first)["choices"][0]["message"]["content"] == ""


def test_09_there_is_no_refusal(client):
    assert client.chat()["choices"][0]["message"].get("refusal") is None


def test_10_logprobs_are_null_unless_asked_for(client):
    for answer in (client.chat(), client.chat(logprobs=False), client.text(), client.text(logprobs=None)):
        assert answer["choices"][0]["logprobs"] is None
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": "x"}]}), (TEXT, {"prompt": "x"})):
        chunks = client.chunks(path, max_tokens=4, temperature=0, ignore_eos=True, **body)
        assert said(chunks)
        assert {one["logprobs"] for chunk in chunks for one in chunk["choices"]} == {None}
