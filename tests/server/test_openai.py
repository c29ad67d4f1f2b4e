"""The server as OpenAI's own client sees it."""

import asyncio
import importlib
import re

import pytest

from tests.support.scripts_helpers import ROOT
from tests.support.serving import ASCII, HELLO, NAME, WAIT, busy, held, on_a_port, start_engine

ASKED = dict(model=NAME, max_tokens=12, temperature=0, extra_body={"ignore_eos": True})


@pytest.fixture(scope="module")
def keyed(engine):
    with on_a_port(engine, keys=("secret",)) as server:
        yield server


@pytest.fixture(scope="module")
def openai():
    """Its types take a second to import: no other process does."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def client(openai, keyed):
    with openai.OpenAI(base_url=f"{keyed.http.base_url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_a_conversation(client, engine):
    answer = client.chat.completions.create(messages=HELLO, **ASKED)
    wanted = engine.submit(HELLO, max_new_tokens=12, ignore_eos=True).result(WAIT)
    assert answer.choices[0].message.content == wanted.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def until(client):
    """Settings whose answer ends before its limit, as the client wants it for what it parses."""
    text = (
        client.chat.completions.create(messages=HELLO, logit_bias=ASCII, **ASKED).choices[0].message.content
    )
    return ASKED | {"stop": text[8:], "logit_bias": ASCII}


def test_a_stream(client):
    whole = client.chat.completions.create(messages=HELLO, **ASKED).choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            messages=HELLO, stream=True, stream_options={"include_usage": True}, **ASKED
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 12
    with client.chat.completions.stream(messages=HELLO, **until(client)) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text != ""


def test_parse_without_a_schema(client):
    answer = client.chat.completions.parse(messages=HELLO, **until(client))
    assert answer.choices[0].message.content
    assert answer.choices[0].message.parsed is None


def test_texts(client):
    whole = client.completions.create(prompt=["One", "Two"], n=2, logprobs=2, seed=1, **ASKED)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len(whole.choices[0].logprobs.tokens) == 12
    chunks = client.completions.create(prompt="One", stream=True, **ASKED)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_logprobs(client):
    answer = client.chat.completions.create(
        messages=HELLO, logprobs=True, top_logprobs=2, logit_bias=ASCII, **ASKED
    )
    told = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in told) == answer.choices[0].message.content
    assert [len(entry.top_logprobs) for entry in told] == [2] * 12


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").id == "alias"


def test_responses(client):
    asked = dict(model=NAME, input="Hello", temperature=0, max_output_tokens=12)
    whole = client.responses.create(**asked)
    assert whole.output_text
    assert whole.usage.output_tokens == 12
    assert whole.usage.output_tokens_details.reasoning_tokens == 0
    with client.responses.stream(**asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text if whole.status == "completed" else text
    assert text == whole.output_text


def test_errors_are_the_clients_own(openai, client, keyed):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=HELLO, model=NAME, temperature=1.5, top_p=7)
    assert caught.value.param == "top_p"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=HELLO, model="gpt-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="functions is not supported"):
        client.chat.completions.create(messages=HELLO, model=NAME, functions=[])
    stranger = openai.OpenAI(base_url=f"{keyed.http.base_url}/v1", api_key="guess", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@pytest.mark.parametrize("page", ["README.md", "docs/server.md"])
def test_the_snippet_for_a_newcomer(live, capsys, page):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    [ours] = [snippet for snippet in snippets if "OpenAI" in snippet]
    here = ours.replace("http://127.0.0.1:8000", str(live.http.base_url)).replace("smollm2", NAME)
    assert here != ours
    exec(compile(here, page, "exec"), {})
    assert capsys.readouterr().out


def test_asyncio(openai, keyed, client):
    wanted = [
        client.chat.completions.create(messages=HELLO, seed=seed, **ASKED | {"temperature": 1})
        for seed in range(8)
    ]

    async def all_of_them():
        options = dict(base_url=f"{keyed.http.base_url}/v1", api_key="secret", max_retries=0)
        async with openai.AsyncOpenAI(**options) as client:

            async def one(seed):
                asked = ASKED | {"temperature": 1, "seed": seed}
                chunks = await client.chat.completions.create(messages=HELLO, stream=True, **asked)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            return await asyncio.gather(*map(one, range(8)))

    assert asyncio.run(all_of_them()) == [answer.choices[0].message.content for answer in wanted]


def test_a_client_that_loses_patience_leaves_nothing_behind(openai, served_model):
    with start_engine(served_model, slots=2) as engine, on_a_port(engine) as server:
        options = dict(base_url=f"{server.http.base_url}/v1", api_key="none", max_retries=0, timeout=0.2)
        with openai.OpenAI(**options) as client, held(engine, "run"):
            for _ in range(5):
                with pytest.raises(openai.APITimeoutError):
                    client.chat.completions.create(
                        messages=HELLO, model=NAME, extra_body={"ignore_eos": True}
                    )
        assert server.chat(max_tokens=3)["usage"]["completion_tokens"] <= 3
        assert busy(engine) == 0
        assert not engine._loop._scheduler.waiting
