"""What an answer must match, as `GenerationSettings` takes it: nothing of it needs the library."""

import json
import sys

import pytest

from jllama.errors import JllamaError
from jllama.grammar import library
from jllama.grammar.constraint import constraint_for
from jllama.settings import DEEPEST_SCHEMA, GenerationSettings, build_settings


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (dict(json_schema={"type": "string", "a": None}), "json_schema", '{"type": "string", "a": null}'),
        (dict(json_schema='{"b":1,"a":"é"}'), "json_schema", '{"b": 1, "a": "é"}'),
        (dict(json_schema=False), "json_schema", "false"),
        (dict(json_schema="true"), "json_schema", "true"),
        (dict(json_object=True), "json_object", '{"type": "object"}'),
        (dict(regex="a+"), "regex", "a+"),
        (dict(grammar="start: /a/"), "grammar", "start: /a/"),
        (dict(choice=["a", "é"]), "choice", '["a", "é"]'),
        (dict(choice="one"), "choice", '["one"]'),
    ],
)
def test_what_must_match_is_kept_as_text(given, kind, text):
    settings = GenerationSettings(**given)
    assert settings.constraint == (kind, text)
    assert build_settings(settings, seed=1).constraint == (kind, text)


def test_nothing_must_match_by_default():
    assert GenerationSettings(json_object=False, choice=(), regex=None).constraint is None


DEEP = json.loads('{"items":' * (DEEPEST_SCHEMA + 1) + "1" + "}" * (DEEPEST_SCHEMA + 1))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(json_schema=3), "is no schema"),
        (dict(json_schema=["a"]), "is no schema"),
        (dict(json_schema="{"), "is no JSON"),
        (dict(json_schema='{"const": NaN}'), "is no JSON"),
        (dict(json_schema={"const": {1, 2}}), "is no JSON"),
        (dict(json_schema={"const": float("inf")}), "is no JSON"),
        (dict(json_schema=DEEP), "nests deeper"),
        (dict(json_schema="[" * 100_000), "nests deeper|is no JSON"),
        (dict(json_schema={"enum": ["x" * 300_000]}), "characters"),
        (dict(json_schema=" " * 300_000), "characters"),
        (dict(json_object="yes"), "must be True or False"),
        (dict(regex=3), "must be a text"),
        (dict(regex=" "), "is empty"),
        (dict(grammar="x" * 300_000), "characters"),
        (dict(regex="a\ud800"), "no text"),
        (dict(grammar="a\0"), "no text"),
        (dict(choice=["a", ""]), "choice is empty"),
        (dict(choice=["a\0"]), "no text"),
        (dict(choice=[3]), "must be a text or a list"),
        (dict(choice=["a"], regex="a"), "regex and choice can't hold at once"),
        (dict(json_object=True, json_schema={}), "json_schema and json_object"),
        (dict(regex="a", ignore_eos=True), "ignore_eos"),
    ],
)
def test_what_no_answer_can_match_is_refused(given, words):
    with pytest.raises(JllamaError, match=words):
        GenerationSettings(**given)


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(JllamaError, match=r"pip install jllama\[grammar\]"):
        library.library()


def test_who_asks_for_nothing_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert constraint_for(None, 10, GenerationSettings(), ends=()) is None
