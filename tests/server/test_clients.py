"""Clients that people use, where they are installed: langchain-openai, litellm, llm, pydantic-ai, instructor.

Each runs in a process of its own: their warnings are not ours.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

import jllama
from tests.support.serving import NAME, WAIT, content, on_a_port, start_engine
from tests.support.tiny_checkpoint import write_tiny_model
from tests.support.tool_templates import sources

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
# What random weights can be made to say: no text of theirs would ever fit.
KINDS = """
from typing import Literal
import openai, pydantic
class Trip(pydantic.BaseModel):
    to: Literal["Oslo", "Rome"]
    days: int = pydantic.Field(ge=1, le=9)
client = openai.OpenAI(base_url=url, api_key="none")
asked = dict(model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=2000, temperature=1)
"""
PARSE = """
answer = client.chat.completions.parse(**asked, response_format=Trip)
assert isinstance(answer.choices[0].message.parsed, Trip)
tool = openai.pydantic_function_tool(Trip)
answer = client.chat.completions.parse(**asked, tools=[tool], tool_choice="required")
assert answer.choices[0].finish_reason == "tool_calls"
for call in answer.choices[0].message.tool_calls:
    assert isinstance(call.function.parsed_arguments, Trip)
with client.chat.completions.stream(**asked, tools=[tool], tool_choice="required") as stream:
    pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
    final = stream.get_final_completion().choices[0].message.tool_calls
assert len(pieces) > len(final)
assert all(isinstance(call.function.parsed_arguments, Trip) for call in final)
answer = client.responses.parse(model=name, input="Hello", text_format=Trip, max_output_tokens=200)
assert isinstance(answer.output_parsed, Trip)
"""
INSTRUCTOR = """
import instructor
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    made = instructor.from_openai(client, mode=mode)
    found = made.chat.completions.create(**asked, response_model=Trip, max_retries=0)
    assert isinstance(found, Trip)
"""
AGENT = """
import pydantic_ai
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits
model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="none"))
settings = {"temperature": 1, "max_tokens": 2000}
for kind in (Trip, pydantic_ai.NativeOutput(Trip)):
    agent = pydantic_ai.Agent(model, output_type=kind, model_settings=settings)
    assert isinstance(agent.run_sync("Hello").output, Trip)
agent = pydantic_ai.Agent(model, output_type=Trip, model_settings=settings)
called = []
@agent.tool_plain
def sun(city: Literal["Oslo", "Rome"]) -> str:
    called.append(city)
    return "It is up."
for _ in range(10):
    found = agent.run_sync("Hello", usage_limits=UsageLimits(request_limit=20)).output
    assert isinstance(found, Trip)
    if called:
        break
assert set(called) <= {"Oslo", "Rome"} and called
"""
STRUCTURED = {"openai": PARSE, "instructor": INSTRUCTOR, "pydantic_ai": AGENT}
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
    wanted = content(served.chat())
    program = f"{CLIENTS[package]}\nimport json\nprint(json.dumps(told))"
    assert set(json.loads(run(served, program, tmp_path).splitlines()[-1])) == {wanted}


def run(served, program, place):
    """What a client's program prints, which goes well."""
    url = f"{served.http.base_url}/v1"
    ours = {"model_id": "ours", "model_name": NAME, "api_base": url}
    (place / "extra-openai-models.yaml").write_text(json.dumps([ours]))
    env = os.environ | {"LLM_USER_PATH": str(place), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-c", f"url, name = {url!r}, {NAME!r}\n{program}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def calling(tmp_path_factory):
    """A server whose model has tools."""
    place = tmp_path_factory.mktemp("calling") / "model"
    directory = write_tiny_model(place, template=sources()["chatml"], max_position_embeddings=8192)
    model = jllama.load(str(directory), dtype="float32")
    with start_engine(model, max_seq_len=8192) as engine, on_a_port(engine) as server:
        yield server


@pytest.mark.clients
@pytest.mark.parametrize("package", STRUCTURED)
def test_a_client_gets_what_fits_its_types(calling, package, tmp_path):
    pytest.importorskip("llguidance")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package.replace('_', '-')}: pip install it")
    run(calling, KINDS + STRUCTURED[package], tmp_path)
