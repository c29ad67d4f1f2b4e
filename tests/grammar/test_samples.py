"""Answers at temperature 1 to some of the sixty schemas, as jsonschema judges them."""

from types import SimpleNamespace

import pytest

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")
from tests.support import structured_samples
from tests.support.schema_matching import matcher_of
from tests.support.structured_schemas import SCHEMAS

SOME = (
    "anything",
    "enum of all",
    "date and time",
    "share",
    "sevens",
    "keys by pattern",
    "shapes",
    "tree",
    "order",
)


@pytest.mark.parametrize("name", SOME)
def test_answers_are_valid(engine, name):
    results = structured_samples.answers(engine, SCHEMAS[name], 3)
    words = structured_samples.judged(name, SCHEMAS[name], results)
    assert "invalid" not in words
    assert "valid" in words


def test_all_sixty_are_taken():
    for schema in SCHEMAS.values():
        matcher_of(schema)


def test_a_wrong_answer_would_be_seen(capsys):
    wrong = [SimpleNamespace(finish_reason="stop", text=text) for text in ('"2023-02-29"', '"x', "3")]
    assert structured_samples.judged("date", SCHEMAS["date"], wrong) == ["invalid"] * 3
    assert capsys.readouterr().out.count("INVALID date") == 3
