"""What `bench.py` measures of answers that must match: `tg`, each row held to a JSON schema."""

import dataclasses
import time

import numpy as np

from jllama.cli.bench_tests import Test
from jllama.cli.plain_tokenizer import plain_tokenizer
from jllama.engine.decoder import masked_bursts
from jllama.engine.rows import Row
from jllama.engine.slots import Slots
from jllama.grammar.constraint import Constraint, constraint_for, masks_for
from jllama.settings import GenerationSettings

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["friend", "family", "work"]}, "maxItems": 3},
        "note": {"type": ["string", "null"], "maxLength": 100},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1_000_000}  # no row ends before its limit


def constraints_of(slots: Slots, rows: int) -> list[Constraint | None]:
    """One for each row, of a vocabulary of V bytes and words."""
    V, settings = slots.config.vocab_size, GenerationSettings(json_schema=SCHEMA)
    return [constraint_for(plain_tokenizer(V), V, settings, ends=()) for _ in range(rows)]


def arrivals(slots: Slots, test: Test, row: Row, logits: np.ndarray) -> list[tuple[float, int]]:
    """When the tokens of each step came, and how many a row, as of `measure.arrivals`."""
    rows, constraints = range(test.batch), constraints_of(slots, test.batch)
    row = dataclasses.replace(row, prompt=np.zeros((test.depth,), np.int32))  # as if read
    first = slots.begin_together([(at, row, at) for at in rows], logits, masks_for(constraints))
    steps = masked_bursts(slots, first, constraints, rows)
    return [(time.perf_counter(), block.shape[1]) for block in steps]
