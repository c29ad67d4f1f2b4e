"""`chat.py --tools=FILE.py` as a user starts it; a grammar makes random weights call."""

import pytest

from tests.support.scripts_helpers import environment, start
from tests.support.terminal import PROMPT, Terminal, command
from tests.support.tiny_checkpoint import write_tiny_model
from tests.support.tool_templates import sources

pytest.importorskip("llguidance")

TOOLS = '''
def sun(city: str) -> str:
    """Is it up?"""
    return f"In {city} it is."
'''
CALL = (
    'start: "<tool_call>\\n{\\"name\\": \\"sun\\", \\"arguments\\": {\\"city\\": \\"Oslo\\"}}\\n</tool_call>"'
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    place = tmp_path_factory.mktemp("chat-tools")
    model = write_tiny_model(place / "model", template=sources()["chatml"], max_position_embeddings=4096)
    (place / "tools.py").write_text(TOOLS)
    (place / "call.lark").write_text(CALL)
    files = [f"--tools={place}/tools.py", f"--grammar={place}/call.lark"]
    return [f"--model={model}", "--dtype=float32", "--max_seq_len=4096", *files]


@pytest.fixture
def env(tmp_path_factory):
    return environment(tmp_path_factory.getbasetemp() / "chat-cache")


def test_a_call_is_asked_for_shown_and_answered(flags, env):
    terminal = Terminal(command("chat.py", *flags, "--max_new_tokens=200"), env)
    try:
        terminal.wait_for("/help lists")
        terminal.wait_for(PROMPT)
        terminal.type("/tools\r")
        terminal.wait_for("sun(city)")
        terminal.wait_for(PROMPT)
        terminal.type("Is it day?\r")
        for answer, said in (("n\r", "the user declined"), ("\x03", "the user declined"), ("y\r", "In Oslo")):
            terminal.wait_for('call: sun({"city": "Oslo"})')
            terminal.wait_for(PROMPT)
            terminal.wait_for("run it?")
            terminal.type(answer)
            terminal.wait_for(said)
        terminal.wait_for(PROMPT)
        terminal.wait_for("run it?")
        terminal.type("a\r")
        assert PROMPT not in terminal.wait_for("[10 rounds of calls")
        terminal.wait_for(PROMPT)
        terminal.type("\x04\x04")
        terminal.wait_for("not saved")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()


def test_without_a_terminal_only_a_flag_runs_them(flags, env):
    refused = start("chat.py", *flags, "--message=Hi", env=env)
    assert refused.code == 2
    assert "without a terminal nobody can be asked" in refused.err
    allowed = start("chat.py", *flags, "--message=Hi", "--json", "--allow_tools", "--nostats", env=env)
    report = allowed.report
    assert (
        report["calls"] == [{"name": "sun", "arguments": '{"city": "Oslo"}', "result": "In Oslo it is."}] * 10
    )
    assert allowed.err.count("gave: In Oslo it is.") == 10


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(x: bytes): ...", "tool f(x): the type hint bytes can't be told to a model"),
        ("1 / 0", "fails in line 1: ZeroDivisionError"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_before_the_model_is_loaded(env, tmp_path, source, words):
    (tmp_path / "tools.py").write_text(source)
    flags = (f"--tools={tmp_path}/tools.py", "--allow_tools", "--message=Hi", "--model=/nowhere")
    refused = start("chat.py", *flags, env=env)
    assert refused.code == 2
    assert words in refused.err
