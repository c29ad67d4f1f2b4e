"""Behaviours 21 to 25 of the protocol: how many tokens."""

from tests.support.serving import content, in_process, start_engine

LONG = "a prompt that is long enough to be worth keeping for another time, and then some more of it"


def test_21_the_total_is_the_sum(client):
    for answer in (client.chat(n=2), client.text(["one", "two"])):
        usage = answer["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert client.text("one")["usage"]["prompt_tokens"] == 3, "a token a byte"
    assert client.text(["one", "four"], n=2)["usage"]["prompt_tokens"] == 7


def test_22_tokens_that_were_there_already_are_told(served_model):
    with start_engine(served_model) as engine, in_process(engine) as client:
        first, second = (client.text(LONG + end)["usage"] for end in ("!", "?"))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": len(LONG)}


def test_23_the_token_that_ends_an_answer_counts(client):
    """Also where it is the special token that a stop string spells."""
    limit = client.text(max_tokens=5, ignore_eos=True)["usage"]["completion_tokens"]
    assert limit == 5
    ban = {str(token): -100 for token in range(258) if token != 256}
    answer = client.text(logit_bias=ban)  # leaves the token that ends a text
    assert content(answer) == ""
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1
    text = content(client.text(max_tokens=12, ignore_eos=True))
    stopped = client.text(stop=text[4], ignore_eos=True)
    assert stopped["usage"]["completion_tokens"] >= text.index(text[4]) + 1


def test_24_a_stream_counts_alike(client):
    for settings in (dict(max_tokens=30, seed=3, temperature=1), dict(n=2), dict(stop="e")):
        whole = client.chat(**settings)["usage"]
        streamed = client.chat_chunks(stream_options={"include_usage": True}, **settings)[-1]["usage"]
        del whole["prompt_tokens_details"], streamed["prompt_tokens_details"]  # the second finds more
        assert streamed == whole


def test_25_drafts_are_not_told_where_no_prediction_was_sent(client):
    assert "completion_tokens_details" not in client.chat()["usage"]
    assert client.error("/v1/chat/completions", messages=[], prediction={})["param"] == "prediction"
