"""How much of what a user or a file wrote is quoted in a message: the beginning, whatever its length."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from jllama.chat import branches
from jllama.chat.archive import cache, document
from jllama.cli import bench_tests, constraints, numbers, sweep
from jllama.cli.terminal import commands
from jllama.cli.terminal import settings as chat_settings
from jllama.errors import JllamaError
from jllama.files import errors
from jllama.grammar import compiler, gbnf, schemas
from jllama.kernels.cpu import build
from jllama.server import service
from jllama.server.protocol import messages, parsing, responses, tools
from jllama.settings import GenerationSettings, build_settings
from jllama.text import content_parts
from jllama.text.vocabularies import gguf_fields, ranked
from jllama.tools import arguments, definitions

LONG = "x" * 3000
CHAT = SimpleNamespace(settings=GenerationSettings())
CHOICES = (tools.ChatChoice, tools.ChatChoice)
SERVICE = SimpleNamespace(options=SimpleNamespace(names=("m",)))


def damage():
    with cache._reported(Path("p")):
        raise ValueError(LONG)


# What says it, and how many of the letters it quotes; a quotation mark or a name before them may count, too.
QUOTED = {
    "a branch": (lambda: branches.check_name(LONG), 40),
    "a bias of a saved chat": (lambda: document._token(LONG), 40),
    "a damaged cache": (damage, 200),
    "a number": (lambda: numbers.positive(LONG, "--f"), 40),
    "a test": (lambda: bench_tests.parse_tests([LONG], [1], {}), 40),
    "a storage": (lambda: sweep.grid([LONG], ["tg8"], [1], {}), 40),
    "a grammar's file": (lambda: constraints._grammar(LONG), 80),
    "a command": (lambda: commands.find("/" + LONG), 39),
    "a command to explain": (lambda: commands.help_(CHAT, LONG), 40),
    "words behind a command": (lambda: commands._refuse_words(commands.model, LONG), 40),
    "a turn": (lambda: commands._number(LONG, ""), 20),
    "a setting of a chat": (lambda: chat_settings.change(CHAT, f"{LONG}=1"), 40),
    "a number to set": (lambda: chat_settings.change(CHAT, f"top_k={LONG}"), 40),
    "a switch": (lambda: chat_settings.change(CHAT, f"ignore_eos={LONG}"), 40),
    "a bias to set": (lambda: chat_settings.change(CHAT, f"logit_bias={LONG}"), 40),
    "a setting": (lambda: build_settings(**{LONG: 1}), 80),
    "a value of a setting": (lambda: build_settings(top_k=LONG), 78),
    "threads": (lambda: build.threads(), 80),
    "an argument": (lambda: arguments.converted(LONG, int, "f.a"), 78),
    "a tool": (lambda: definitions.Tool(name=LONG), 80),
    "a place in a schema": (lambda: schemas.refusal(LONG, "w", "r"), 200),
    "options of a schema": (lambda: schemas._spacing({LONG: 1}), 40),
    "a value of options": (lambda: schemas._spacing({"a": LONG}), 40),
    "a reference": (lambda: schemas._check("#", {"$ref": "#/" + LONG}, {}), 78),
    "a constant": (lambda: schemas._check_characters("#", {"const": LONG + "\x01"}), 40),
    "a pattern": (lambda: schemas._check_characters("#", {"pattern": LONG + "\x01"}), 40),
    "the library's words": (lambda: compiler.refused("regex", LONG), 600),
    "a piece of a grammar": (lambda: gbnf._refused(re.match("x*", LONG), "is odd"), 40),
    "a library's error": (lambda: JllamaError(errors._reason(ValueError(LONG))), 200),
    "a part of a message": (lambda: content_parts._text({"type": LONG}), 40),
    "a field of a GGUF": (lambda: gguf_fields.wrong("k", LONG, "odd"), 39),
    "a field of a request's message": (lambda: messages._message({LONG: 1}, "m"), 80),
    "a kind of item": (lambda: responses._message({"type": LONG}, "i"), 80),
    "a parameter": (lambda: parsing._foreign(LONG, set(), {}), 80),
    "a parameter that others know": (lambda: parsing._foreign(LONG, set(), {LONG: "no"}), 80),
    "a kind of tool": (lambda: tools._tool({"type": LONG}, tools.ChatTool, "t"), 80),
    "a tool to choose": (lambda: tools._choice(LONG, CHOICES), 80),
    "a kind of choice": (lambda: tools._choice({"type": LONG}, CHOICES), 80),
    "a model": (lambda: service.Service.check_model(SERVICE, LONG), 200),
    "a token of a table": (lambda: ranked._bytes("!" + LONG), 38),
}


def said(call):
    """The message that is raised or made."""
    try:
        made = call()
    except Exception as error:
        made = error
    assert isinstance(made, Exception)
    return str(made)


@pytest.mark.parametrize("what", QUOTED)
def test_a_quotation_is_as_long_as_it_may_be(monkeypatch, what):
    monkeypatch.setenv("JLLAMA_THREADS", LONG)
    call, letters = QUOTED[what]
    assert max(map(len, re.findall("x+", said(call)))) == letters
