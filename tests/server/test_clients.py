"""Clients that people use, where they are installed: langchain-openai, litellm, llm, pydantic-ai."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from tests.support.serving import NAME, WAIT, content, on_a_port

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),  # they are not ours
]


@pytest.fixture(scope="module")
def served(engine):
    with on_a_port(engine) as server:
        yield server


@pytest.fixture
def url(served):
    return f"{served.http.base_url}/v1"


@pytest.fixture
def wanted(served):
    return content(served.chat())


def test_langchain(url, wanted):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=url, api_key="none", model=NAME, temperature=0, max_tokens=12
    )
    assert chat.invoke("Hello").content == wanted
    assert "".join(chunk.content for chunk in chat.stream("Hello")) == wanted


def test_litellm(url, wanted):
    litellm = pytest.importorskip("litellm")
    asked = dict(model=f"openai/{NAME}", api_base=url, api_key="none", temperature=0, max_tokens=12)
    messages = [{"role": "user", "content": "Hello"}]
    assert litellm.completion(messages=messages, **asked).choices[0].message.content == wanted
    chunks = litellm.completion(messages=messages, stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted


def test_pydantic_ai(url, wanted):
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(NAME, provider=OpenAIProvider(base_url=url, api_key="none"))
    agent = pydantic_ai.Agent(model, model_settings={"temperature": 0, "max_tokens": 12})
    assert asyncio.run(agent.run("Hello")).output == wanted


def test_llm(url, wanted, tmp_path):
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        json.dumps([{"model_id": "ours", "model_name": NAME, "api_base": url}])
    )
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "ours",
        "-o",
        "temperature",
        "0",
        "-o",
        "max_tokens",
        "12",
        "Hello",
    ]
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.removesuffix("\n") == wanted
