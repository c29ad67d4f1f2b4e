"""The fields of a GGUF that say what its tokens are.

Each function raises a `JllamaError` for a value of a wrong kind.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jllama.errors import JllamaError
from jllama.text.vocabularies.spm import NORMAL, settle_types

# llama.cpp's ids of a `llama` vocabulary that does not name them.
SPM_IDS = {"bos": 1, "eos": 2, "unknown": 0}


def token_types(
    fields: Mapping[str, Any], tokens: list[str], to_bytes: Callable[[str], bytes], also: Iterable[str] = ()
) -> list[int]:
    """The type of each token, with CONTROL for all that is special; `also` names more of that."""
    ids = (token_id(fields, name) for name in ("bos", "eos", "eot", "eom"))
    named = [tokens[token] for token in ids if token is not None]
    given = given_types(fields)
    return settle_types(
        tokens, given, to_bytes, named=[*named, *also], templates=chat_templates(fields).values()
    )


def given_types(fields: Mapping[str, Any]) -> list[int]:
    """The types as the file has them; without any, every token is an ordinary one."""
    types, count = fields.get("tokenizer.ggml.token_type", ()), len(fields["tokenizer.ggml.tokens"])
    return types if len(types) == count else [NORMAL] * count


def token_id(fields: Mapping[str, Any], name: str, warn: bool = False) -> int | None:
    """The token with this role; like llama.cpp, its default where the file's is outside the vocabulary."""
    default = SPM_IDS.get(name) if fields["tokenizer.ggml.model"] == "llama" else None
    key = f"tokenizer.ggml.{name}_token_id"
    given = fields.get(key, default)
    if given is None:
        return None
    if type(given) is not int:
        raise wrong(key, given, "which is no token id")
    known = range(len(fields["tokenizer.ggml.tokens"]))
    if name == "unknown" and given not in known:
        raise IndexError(f"its unknown token is number {given}")
    if warn and key in fields and given not in known:
        outside = f"is outside its vocabulary of {len(known)} tokens"
        warnings.warn(f"the GGUF file's {key}={given} {outside}; it is ignored", stacklevel=2)
    return next((token for token in (given, default) if token in known), None)


def flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    given = fields.get(f"tokenizer.ggml.{name}", default)
    if given not in (True, False):
        raise wrong(f"tokenizer.ggml.{name}", given, "neither true nor false")
    return bool(given)


def chat_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name; the one without a name is `default`."""
    main = "tokenizer.chat_template"
    found = {key: value for key, value in fields.items() if key == main or key.startswith(main + ".")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise wrong(key, value, "not a text")
    default = found.pop(main, "")
    named = {key.removeprefix(main + "."): value for key, value in found.items()}
    return ({"default": default} if default else {}) | named


def wrong(key: str, value: Any, what: str) -> JllamaError:
    return JllamaError(f"the GGUF file's {key} is {value!r:.40}, {what}; convert the model again")
