"""What a tokenizer.json is checked for before the `tokenizers` library reads it.

The library runs rules while it reads, and some files make it take all memory or end the whole process. So
the rules that it would run are looked at first, without parsing the vocabulary: that would cost a third of
the time that reading it takes.
"""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

from jllama.errors import JllamaError
from jllama.files.errors import refuse_stand_in
from jllama.files.json_files import MAX_BYTES, parse_object
from jllama.text.vocabularies.spm_charsmap import CharsMap
from jllama.text.vocabulary import ADVICE

MAX_PIECE = 4096  # bytes of a token; the longest known has some hundred
MAX_GROWTH = 256  # times that rewriting may lengthen a text
MAX_STEPS = 1000
UNICODE_GROWTH = 18  # characters that one becomes in a compatibility form
_OBJECT = rb"\s*:\s*(?=\{)"  # behind a key


def check_tokenizer_json(file: Path) -> bytes:
    """The bytes of the file, safe to be given to the library, which may still refuse them.

    Raises:
        JllamaError: its rules would take any amount of time or memory, or end the process.
    """
    with file.open("rb") as source:
        data = source.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise JllamaError(f"{file} is larger than any tokenizer; {ADVICE}")
    refuse_stand_in(file, data)
    if _is_unusual(data):
        state = parse_object(file, data)
        _check_model(state.get("model"), file)
        _check_pieces([token.get("content") for token in state.get("added_tokens") or ()], file)
        _check_normalizer(state.get("normalizer"), file)
    else:
        _check_normalizer(_section(data, b"normalizer"), file)
    return data


def _is_unusual(data: bytes) -> bool:
    """Whether it must be parsed: long strings, letters as escapes (in keys, too), a prefix of subwords, or a
    second object under the key that `_section` looks for: the library passes over those that stand elsewhere.
    """
    borders = data.replace(b'\\"', b"\\_")
    steps = range(0, len(data) - MAX_PIECE // 2, MAX_PIECE // 2)
    is_long = any(borders.find(b'"', at, at + MAX_PIECE // 2) < 0 for at in steps)
    is_escaped = _find(data, b"\\u00", rb"[2-7]")
    has_prefix = _find(data, b'"continuing_subword_prefix"', rb'\s*:\s*"[^"]')
    first = _find(data, b'"normalizer"', _OBJECT)
    has_decoy = first and _find(data, b'"normalizer"', _OBJECT, first.end())
    return bool(is_long or is_escaped or has_prefix or has_decoy)


def _find(data: bytes, text: bytes, pattern: bytes, start: int = 0) -> re.Match[bytes] | None:
    """What stands behind a text, first found; far faster than to search for one pattern."""
    behind, at = re.compile(pattern), data.find(text, start)
    while at >= 0:
        if found := behind.match(data, at + len(text)):
            return found
        at = data.find(text, at + 1)
    return None


def _section(data: bytes, key: bytes) -> Any:
    """The object under a key of the outermost one, which no token's number can be."""
    found = _find(data, b'"' + key + b'"', _OBJECT)
    if not found:
        return None
    text = data[found.end() :].decode("utf-8", "replace")
    return json.JSONDecoder().raw_decode(text)[0]


def _check_model(model: Any, file: Path) -> None:
    if not isinstance(model, dict):
        return
    vocab = model.get("vocab") or ()
    _check_pieces([entry[0] if isinstance(entry, list) and entry else entry for entry in vocab], file)
    prefix = model.get("continuing_subword_prefix")
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    # The library cuts the prefix off by its length, whatever stands there: amid a character the process ends.
    if prefix and not all(merge[-1].startswith(prefix) for merge in merges):
        raise JllamaError(
            f"{file}: merges do not begin with its continuing_subword_prefix {prefix!r}; {ADVICE}"
        )


def _check_pieces(pieces: list, file: Path) -> None:
    longest = max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)
    if longest > MAX_PIECE:
        raise JllamaError(f"{file}: a token of {longest} characters is none of a model's; {ADVICE}")


def _check_normalizer(normalizer: Any, file: Path) -> None:
    steps = _steps(normalizer)
    growth = math.prod(map(_growth, steps))
    # Unicode's forms lengthen a text once, unless other rules stand between them.
    others = [step.get("type") for step in steps if step.get("type") not in ("Replace", "Prepend")]
    growth *= UNICODE_GROWTH ** (len(others) - len(set(others)))
    if len(steps) > MAX_STEPS or growth > MAX_GROWTH:
        raise JllamaError(f"{file}: its normalizer makes texts longer without bounds; {ADVICE}")


def _steps(normalizer: Any) -> list[dict]:
    if not isinstance(normalizer, dict):
        return []
    if normalizer.get("type") != "Sequence":
        return [normalizer]
    return [step for part in normalizer.get("normalizers") or () for step in _steps(part)]


def _growth(step: dict) -> float:
    """How many times longer a step may make a text."""
    if step.get("type") == "Precompiled":
        CharsMap(base64.b64decode(step["precompiled_charsmap"], validate=True))
    if step.get("type") == "Prepend":
        return max(1, len(step["prepend"]) / MAX_PIECE * MAX_GROWTH)  # a short one makes no room for others
    if step.get("type") != "Replace":
        return 1
    pattern, content = step["pattern"], step["content"]
    if "String" in pattern:
        return max(1, len(content) / max(1, len(pattern["String"])))
    return 1 + len(content)  # a pattern may match nothing, which is everywhere
