"""Grammars that would take the machine: refused or compiled, in bounded time and memory."""

import json
import subprocess
import sys

import pytest

from jllama.errors import JllamaError
from jllama.grammar import library
from jllama.grammar.compiler import compiled
from jllama.settings import GenerationSettings
from tests.support.schema_matching import byte_words, takes

pytest.importorskip("llguidance")

PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from jllama.errors import JllamaError
from jllama.grammar.constraint import Constraint, masks_for
from jllama.settings import GenerationSettings
from jllama.grammar.compiler import compiled
from tests.support.peak_memory import peak_bytes
from tests.support.schema_matching import byte_words

def bombs():
    yield dict(regex="(((a|b){1,900}c){1,900}d){1,900}")
    yield dict(regex="((a{1,1000}){1,1000}){1,1000}")
    yield dict(regex="(" * 9000 + "a" + ")" * 9000)
    yield dict(regex="(x+x+)+y")
    yield dict(grammar="start: " + "(" * 50_000 + '"a"' + ")" * 50_000)
    yield dict(grammar="start: start")
    yield dict(grammar="start: a\\na: b\\nb: a")
    chain = "".join(f"r{i}: r{i + 1} r{i + 1}\\n" for i in range(12_000))
    yield dict(grammar="start: r0\\n" + chain + 'r12000: "a"')
    yield dict(grammar="root ::= " + "(" * 5000 + '"a"' + ")" * 5000)
    yield dict(grammar="root ::= (((" + '"a"{1,1000}){1,1000}){1,1000})')
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    yield dict(json_schema={"$defs": twice | {"d40": {"type": "object"}}, "$ref": "#/$defs/d0"})
    each = [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(9)]} for i in range(9)]
    yield dict(json_schema={"allOf": each})
    yield dict(json_schema={"type": "array", "minItems": 10**9})
    yield dict(json_schema={"type": "string", "minLength": 10**9})
    yield dict(json_schema={"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"})
    yield dict(choice=[f"v{i}" for i in range(20_000)])

words = byte_words()[1]
for settings in map(lambda given: GenerationSettings(**given), bombs()):
    try:
        matcher = compiled(words, *settings.constraint).deep_copy()
        constraint = Constraint(matcher, 9, words.ends, None)
        for _ in range(20):
            (mask,) = masks_for([constraint])
            if not constraint.live:
                break
            bits = [at for at in range(258) if mask[at // 32] >> (at % 32) & 1]
            constraint.follow(bits[:1])
        print(json.dumps([settings.constraint[0], str(constraint.error or "ran")[:90]]))
    except JllamaError as error:
        print(json.dumps([settings.constraint[0], "refused: " + str(error)[:90]]))
print(json.dumps(["MiB", peak_bytes() >> 20]))
"""


def test_bombs_end_in_bounded_time_and_memory():
    """Each is refused within ten seconds, or gives masks; the process lives, below 1.5 GB."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(lines) == 17
    assert lines.pop()[1] < 1500
    refused = [line for line in lines if line[1].startswith("refused")]
    assert ["grammar", "refused: grammar can't be used: nothing matches it"] in [
        [kind, words.split(" (")[0]] for kind, words in refused
    ]


MANY = 3000
ENDLESS = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(choice=[f"c{at}" for at in range(MANY)]), "c2999"),
        (dict(grammar="start: " + " | ".join(f'"c{at}"' for at in range(MANY))), "c2999"),
        (
            dict(json_schema={"properties": {f"p{at}": {"type": "null"} for at in range(MANY)}}),
            '{"p2999": null}',
        ),
    ],
)
def test_thousands_of_ways_to_go_on(given, text):
    assert takes(compiled(byte_words()[1], *GenerationSettings(**given).constraint), text)


def test_what_can_not_even_begin_is_refused_before():
    settings = GenerationSettings(json_schema=ENDLESS)
    with pytest.raises(JllamaError, match="can't be used"):
        compiled(byte_words()[1], *settings.constraint)


@pytest.mark.parametrize(
    ("version", "old"), [("1.6.9", True), ("1.7.0", False), ("1.10.0rc1", False), ("2.0", False)]
)
def test_an_older_library_is_refused(monkeypatch, version, old):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    if old:
        with pytest.raises(
            JllamaError, match=r"llguidance 1.6.9 is too old: pip install --upgrade jllama\[grammar\]"
        ):
            library.library()
    else:
        assert library.library() is not None
