"""Ways to damage bytes and JSON, shared by the kinds of the fuzz runner."""

import copy
import json
import math
import random
import struct
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, "", "x", "yarn", "0", [], [1], [[]], {}, {"a": 1}),
    *(math.nan, math.inf, -math.inf, 5e-324, 1e-300, 1e-30, 1e30, 1e308),
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40, 10**400),
)
_LENGTHS = (
    0,
    1,
    2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def damaged_bytes(rng: random.Random, data: bytes, head: int) -> bytes:
    """`data` with one to three damages, most of them in its first `head` bytes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        limit = min(len(out), head if rng.random() < 0.8 else len(out))
        at = rng.randrange(max(limit, 1))
        _DAMAGES[rng.randrange(len(_DAMAGES))](rng, out, at)
    return bytes(out)


def _cut(rng: random.Random, out: bytearray, at: int) -> None:
    del out[at:]


def _flip(rng: random.Random, out: bytearray, at: int) -> None:
    if out:
        out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)


def _length(rng: random.Random, out: bytearray, at: int) -> None:
    value, code = rng.choice(_LENGTHS), rng.choice("IQ")
    size = struct.calcsize(code)
    out[at : at + size] = struct.pack("<" + code, value % 2 ** (8 * size))


def _overwrite(rng: random.Random, out: bytearray, at: int) -> None:
    size = rng.randint(1, 16)
    out[at : at + size] = rng.randbytes(size)


def _insert(rng: random.Random, out: bytearray, at: int) -> None:
    out[at:at] = rng.randbytes(rng.randint(1, 32))


def _remove(rng: random.Random, out: bytearray, at: int) -> None:
    del out[at : at + rng.randint(1, 32)]


def _repeat(rng: random.Random, out: bytearray, at: int) -> None:
    out[at:at] = out[at : at + rng.randint(1, 64)]


_DAMAGES = (_cut, _flip, _flip, _length, _length, _overwrite, _insert, _remove, _repeat)


def damaged_json(rng: random.Random, tree: Any, more: dict[str, Any] | None = None) -> Any:
    """A copy of a JSON value with one to three places changed; `more`: keys that it may get besides."""
    changed = json.loads(json.dumps(tree))
    for key, value in rng.sample(sorted((more or {}).items()), min(len(more or {}), rng.randint(0, 2))):
        changed[key] = value
    for _ in range(rng.randint(1, 3)):
        _change(rng, changed)
    return changed


def _change(rng: random.Random, tree: Any) -> None:
    """One place: a value replaced, taken from its neighbour, removed or doubled."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    if not keys:
        return
    key = rng.choice(keys)
    inner = tree[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
        _change(rng, inner)
        return
    action = rng.randrange(8)
    if action == 0:
        del tree[key]
    elif action == 1 and isinstance(tree, dict):
        tree[f"{key}x"] = tree.pop(key)
    elif action == 2:
        tree[key] = copy.deepcopy(tree[rng.choice(keys)])  # else a later change could close a circle
    elif action == 3 and type(inner) in (int, float):
        factor = rng.choice((2, -1, 0.5, 10**6))
        tree[key] = inner * factor if abs(inner) < 1e300 else -inner
    else:
        tree[key] = copy.deepcopy(rng.choice(ODD))
