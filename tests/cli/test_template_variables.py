"""`--chat_template_kwargs`: a user's own variables reach the chat template of every command."""

import json

import pytest

import jllama
from tests.support.scripts_helpers import assert_explained
from tests.support.tiny_checkpoint import TEMPLATE, write_tiny_model

QUIET = '--chat_template_kwargs={"enable_thinking": false}'
FLAGS = ("--dtype=float32", "--max_new_tokens=8", "--ignore_eos", "--temperature=0")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    thinking = "{% if enable_thinking is defined and not enable_thinking %}quietly{% endif %}"
    return write_tiny_model(tmp_path_factory.mktemp("model") / "thinker", template=TEMPLATE + thinking)


@pytest.fixture(scope="module")
def wanted(model):
    """The ids of the answers with and without the variable."""
    loaded = jllama.load(str(model), dtype="float32")
    options = dict(max_new_tokens=8, ignore_eos=True)
    quiet = dict(chat_template_kwargs={"enable_thinking": False})
    return [jllama.complete(loaded, "Hi", **options, **given)[0].token_ids for given in (quiet, {})]


def test_commands_take_variables(model, server, wanted, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    out = tmp_path / "out.jsonl"
    for flags, ids in (((QUIET,), wanted[0]), ((), wanted[1])):
        common = (f"--model={model}", *FLAGS, *flags)
        assert server.run("generate.py", *common, "--json", "--prompt=Hi").report["token_ids"] == ids
        chat = server.run("chat.py", *common, "--json", "--message=Hi")
        assert json.loads(chat.out)["token_ids"] == ids
        server.run("generate.py", *common, f"--prompts_file={tmp_path / 'in.jsonl'}", f"--output={out}")
        assert json.loads(out.read_text())["token_ids"] == ids
        out.unlink()
    assert wanted[0] != wanted[1]


@pytest.mark.parametrize("script", [("generate.py", "--prompt=Hi"), ("chat.py", "--message=Hi")])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("enable_thinking=false", "give a JSON object"),
        ("[1]", "give a JSON object"),
        ("", "give a JSON object"),
        ('{"tools": []}', "tools is not yours to set"),
    ],
)
def test_what_is_no_variables_is_explained(model, server, script, given, words):
    outcome = server.run(script[0], f"--model={model}", script[1], f"--chat_template_kwargs={given}")
    assert_explained(outcome, words)
