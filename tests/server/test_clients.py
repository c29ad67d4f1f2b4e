"""Clients that people use, where they are installed: langchain-openai, litellm, llm, pydantic-ai.

Each runs in a process of its own: their warnings are not ours.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.support.serving import NAME, WAIT, content, on_a_port

LANGCHAIN = """
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=url, api_key="none", model=name, temperature=0, max_tokens=12)
told = [chat.invoke("Hello").content, "".join(chunk.content for chunk in chat.stream("Hello"))]
"""
LITELLM = """
import litellm
asked = dict(model=f"openai/{name}", api_base=url, api_key="none", temperature=0, max_tokens=12)
asked |= dict(messages=[{"role": "user", "content": "Hello"}])
chunks = litellm.completion(stream=True, **asked)
told = ["".join(chunk.choices[0].delta.content or "" for chunk in chunks)]
told += [litellm.completion(**asked).choices[0].message.content]
"""
PYDANTIC_AI = """
import pydantic_ai
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="none"))
agent = pydantic_ai.Agent(model, model_settings={"temperature": 0, "max_tokens": 12})
told = [agent.run_sync("Hello").output]
"""
LLM = """
import llm
model = llm.get_model("ours")
told = [model.prompt("Hello", stream=stream, temperature=0, max_tokens=12).text() for stream in (False, True)]
"""
CLIENTS = {
    "langchain_openai": LANGCHAIN,
    "litellm": LITELLM,
    "pydantic_ai": PYDANTIC_AI,
    "llm": LLM,
}


@pytest.fixture(scope="module")
def served(engine):
    with on_a_port(engine) as server:
        yield server


@pytest.mark.clients
@pytest.mark.parametrize("package", CLIENTS)
def test_a_client_reads_what_the_server_says(served, package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package.replace('_', '-')}: pip install it")
    url, wanted = f"{served.http.base_url}/v1", content(served.chat())
    ours = {"model_id": "ours", "model_name": NAME, "api_base": url}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([ours]))
    program = f"url, name = {url!r}, {NAME!r}\n{CLIENTS[package]}\nimport json\nprint(json.dumps(told))"
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == {wanted}
