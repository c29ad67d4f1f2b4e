"""Answers to sixty schemas, judged by jsonschema: `python -m tests.support.structured_samples [COUNT]`.

A tiny model of random weights writes COUNT answers (200) to each at temperature 1, with a liking for what
ends a value, else it would never. Every answer that ends must be valid; those cut by the limit are counted.
Then: how long the first mask of each schema takes for 49,152 tokens, and whether each valid instance that
hypothesis-jsonschema 0.23 makes (100 of each schema but recursive ones) may come; it needs hypothesis 6.131.
"""

import collections
import contextlib
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema

import jllama
from jllama.cli.plain_tokenizer import plain_tokenizer
from jllama.grammar.constraint import constraint_for, masks_for
from jllama.grammar.schemas import _UNWRITTEN, _texts
from jllama.grammar.words import words_of
from jllama.settings import GenerationSettings
from tests.support.schema_matching import matcher_of, takes
from tests.support.structured_schemas import SCHEMAS
from tests.support.tiny_checkpoint import write_tiny_model

LIKED = {'"': 5.0, "}": 4.0, "]": 4.0, ",": -1.0, "[": -1.0, "{": -1.0}
LIMIT = 400  # tokens


def main(count: int) -> int:
    """Prints what was found; returns how many answers or instances are wrong."""
    wrong = sampled(count) + len(refused_instances(100))
    times = sorted(first_masks())
    print(
        f"first masks: median {statistics.median(times) * 1e3:.1f} ms, p99 {times[-1] * 1e3:.1f} ms, "
        f"of {len(times)} schemas"
    )
    return wrong


def sampled(count: int) -> int:
    """How many of the answers that ended are not valid."""
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_model(Path(folder) / "tiny", max_position_embeddings=512)
        model = jllama.load(str(path), dtype="float32")
    with jllama.Engine(model, slots=16, max_seq_len=512, max_queue=count) as engine:
        for name, schema in SCHEMAS.items():
            found.update(judged(name, schema, answers(engine, schema, count)))
    print("answers:", dict(found))
    return found["invalid"]


def answers(engine: jllama.Engine, schema: Any, count: int) -> list[Any]:
    """Results at temperature 1, each of a seed of its own."""
    encode = engine.model.need_tokenizer().encode
    bias = {encode(letter, add_special=False)[0]: value for letter, value in LIKED.items()}
    asked: Any = dict(json_schema=schema, temperature=1.0, max_new_tokens=LIMIT, logit_bias=bias)
    streams = engine.submit_all([dict(prompt="JSON:", seed=seed, **asked) for seed in range(count)])
    return [stream.result() for stream in streams]


def judged(name: str, schema: Any, results: list[Any]) -> list[str]:
    """Of each answer whether it is valid, invalid or cut."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    words = []
    for result in results:
        if result.finish_reason == "length":
            words.append("cut")
            continue
        try:
            errors = [error.message for error in validator.iter_errors(json.loads(result.text))]
        except ValueError as error:
            errors = [str(error)]
        if errors or result.finish_reason != "stop":
            print(f"INVALID {name}: {result.text!r}: {errors[:1]} {result.finish_reason}")
        words.append("invalid" if errors else "valid")
    return words


def first_masks(vocab_size: int = 49_152) -> list[float]:
    """Seconds from a new schema to its first mask, by schema."""
    tokenizer, times = plain_tokenizer(vocab_size), []
    words_of(tokenizer, vocab_size)  # made once for a model
    for schema in SCHEMAS.values():
        started = time.perf_counter()
        settings = GenerationSettings(json_schema=schema)
        masks_for([constraint_for(tokenizer, vocab_size, settings, ends=())])
        times.append(time.perf_counter() - started)
    return times


def refused_instances(count: int) -> list[tuple[str, Any]]:
    """Valid instances that may not come, of `count` that hypothesis makes to each schema."""
    missing, tried = [], 0
    for name, schema in SCHEMAS.items():
        matcher = matcher_of(schema)
        for value in instances(schema, count):
            tried += 1
            if not any(takes(matcher, text) for text in written(schema, value)):
                missing.append((name, value))
                print(f"NOT TAKEN {name}: {json.dumps(value)[:150]}")
    print(f"instances: {tried} tried, {len(missing)} not taken")
    return missing


def instances(schema: Any, count: int) -> list[Any]:
    """Valid ones, without control characters, which never come."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from hypothesis_jsonschema import from_schema
    from hypothesis_jsonschema._canonicalise import HypothesisRefResolutionError

    made: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(from_schema(schema))
    def collect(value: Any) -> None:
        made.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Unsatisfiable, HypothesisRefResolutionError):  # it can make none
            collect()
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    sound = [value for value in made if validator.is_valid(value)]
    return [value for value in sound if not any(map(_UNWRITTEN.search, _texts(value)))]


def written(schema: Any, value: Any) -> set[str]:
    """An instance as JSON, its keys in the schema's order, its numbers in several spellings."""
    names = list(dict.fromkeys(property_names(schema)))
    return {spelled(value, names, form) for form in (json.dumps, decimals, whole)}


def spelled(value: Any, names: list[str], number: Any) -> str:
    """Like `json.dumps`."""
    if isinstance(value, dict):
        known = [name for name in names if name in value]
        keys = [*known, *(key for key in value if key not in known)]
        pairs = (
            f"{json.dumps(key, ensure_ascii=False)}: {spelled(value[key], names, number)}" for key in keys
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spelled(item, names, number) for item in value) + "]"
    if type(value) in (int, float):
        return number(value)
    return json.dumps(value, ensure_ascii=False)


def decimals(value: float) -> str:
    """Without an exponent."""
    return format(Decimal(repr(value)), "f")


def whole(value: float) -> str:
    """2.0 as 2."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else decimals(value)


def property_names(schema: Any) -> list[str]:
    """In the order in which a schema names them, depth first."""
    found: list[str] = []
    for key, inner in schema.items() if isinstance(schema, dict) else ():
        if key in ("properties", "$defs"):
            found += inner if key == "properties" else ()
            for each in inner.values():
                found += property_names(each)
        for each in inner if isinstance(inner, list) else [inner]:
            found += property_names(each)
    if isinstance(schema, dict) and isinstance(schema.get("const"), dict):
        found += schema["const"]
    return found


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 200) else 0)
