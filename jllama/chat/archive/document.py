"""A saved conversation's JSON, every value of it checked: it may be damaged, or someone else's."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from jllama.chat.branches import MAX_BRANCHES, Message, check_name
from jllama.chat.overflow import POLICIES
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings, build_settings

MAX_BYTES = 2**25  # millions of tokens; and what Python makes of its JSON stays below a gigabyte
ROLES = ("user", "assistant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedBranch:
    """A branch as the file has it: messages by number."""

    system: str | None
    messages: list[int]
    dropped: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A file's content, sound in itself; whether it suits a model is another question."""

    settings: GenerationSettings
    transcript: str | None
    on_overflow: str
    current: str
    branches: dict[str, SavedBranch]
    messages: list[Message]
    cache_sha256: str | None


class DamagedError(Exception):
    """What is wrong with the file."""


def damaged(path: Path, what: str) -> JllamaError:
    """The one message for every way in which a file may be spoilt; `what` may quote the file at length."""
    shown = what if len(what) <= 200 else what[:199] + "…"
    return JllamaError(f"{path} is damaged or no saved conversation: {shown}")


def write_document(document: dict[str, Any], path: Path) -> None:
    """Writes a conversation as `read_document` reads it.

    Raises:
      JllamaError: it is too large to be read again.
    """
    text = json.dumps(document, ensure_ascii=False, indent=1)
    # Half a surrogate pair, out of a flag that was no UTF-8, becomes JSON's own escape of it.
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_BYTES:
        raise JllamaError(
            f"the conversation has more than {MAX_BYTES >> 20} MiB: undo turns or clear branches"
        )
    path.write_bytes(data)


def check_overwrite(path: Path, wanted_format: str) -> None:
    """Refuses to replace a file that does not say itself that it is a conversation.

    Raises:
      JllamaError: it is another file, or can't be read.
    """
    if not path.exists():
        return
    with contextlib.suppress(DamagedError, ValueError, RecursionError):
        data = json.loads(_read_text(path))
        if isinstance(data, dict) and data.get("format") == wanted_format:
            return
    raise JllamaError(f"{path} exists and is no conversation: give another name")


def read_document(path: Path, wanted_format: str) -> Document:
    """Reads and checks a saved conversation.

    Raises:
      JllamaError: the file can't be read, or something in it is not as `save` writes it.
    """
    try:
        data = json.loads(_read_text(path), parse_constant=_refuse_constant)
        _need(
            isinstance(data, dict) and data.get("format") == wanted_format,
            f"its format is not {wanted_format!r}",
        )
        return _document(data)
    except DamagedError as error:
        raise damaged(path, str(error)) from None
    except json.JSONDecodeError as error:
        raise damaged(path, f"line {error.lineno}: {error.msg}") from None
    except ValueError:
        raise damaged(path, "a number in it has thousands of digits") from None
    except RecursionError:
        raise damaged(path, "it nests too deeply") from None
    except KeyError as error:
        raise damaged(path, f"{error.args[0]!r} is missing") from None


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise JllamaError(f"{path} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise DamagedError("it is larger than any conversation")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"byte {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JllamaError(f"cannot read {path}: {reason}") from None


def _document(data: dict[str, Any]) -> Document:
    messages = [_message(item) for item in _a(list, data["messages"], "messages")]
    saved = _a(dict, data["branches"], "branches")
    _need(0 < len(saved) <= MAX_BRANCHES, f"it has {len(saved)} branches")
    branches = {_name(name): _branch(item, messages) for name, item in saved.items()}
    current, policy = _a(str, data["current"], "current"), _a(str, data["on_overflow"], "on_overflow")
    _need(policy in POLICIES, f"on_overflow is {policy!r}")
    _need(current in branches, f"there is no branch {current!r}")
    return Document(
        settings=_settings(_a(dict, data["settings"], "settings")),
        transcript=_text_or_none(data, "transcript"),
        on_overflow=policy,
        current=current,
        branches=branches,
        messages=messages,
        cache_sha256=_text_or_none(data, "cache_sha256"),
    )


def _message(item: Any) -> Message:
    data = _a(dict, item, "a message")
    role, content = data["role"], _a(str, data["content"], "a message's content")
    _need(role in ROLES, f"a message's role is {role!r}")
    ids = data.get("token_ids")
    if ids is not None:
        _need(isinstance(ids, list) and all(type(token) is int for token in ids), "token_ids are no numbers")
    return Message(role, content, None if ids is None else tuple(ids))


def _branch(item: Any, messages: list[Message]) -> SavedBranch:
    data = _a(dict, item, "a branch")
    numbers = _a(list, data["messages"], "a branch's messages")
    _need(len(numbers) <= len(messages), "a branch has more messages than there are")
    for place, number in enumerate(numbers):
        _need(type(number) is int and 0 <= number < len(messages), f"there is no message {number!r}")
        _need(messages[number].role == ROLES[place % 2], "questions and answers do not alternate")
    _need(len(numbers) % 2 == 0, "the last question has no answer")
    dropped = data["dropped"]
    _need(type(dropped) is int and 0 <= dropped <= len(numbers) // 2, f"dropped is {dropped!r}")
    return SavedBranch(system=_text_or_none(data, "system"), messages=numbers, dropped=dropped)


def _settings(data: dict[str, Any]) -> GenerationSettings:
    try:
        given = _a(dict, data.get("logit_bias", {}), "logit_bias")
        bias = {_token(name): value for name, value in given.items()}
        stop = tuple(_a(list, data.get("stop", []), "stop"))
        return build_settings(**{**data, "logit_bias": bias, "stop": stop})
    except JllamaError as error:
        raise DamagedError(f"its settings: {error}") from None


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise DamagedError(f"logit_bias names {name[:40]!r}, which is no token id") from None


def _name(name: str) -> str:
    try:
        check_name(name)
    except JllamaError as error:
        raise DamagedError(str(error)) from None
    return name


def _text_or_none(data: dict[str, Any], name: str) -> str | None:
    value = data[name]
    return None if value is None else _a(str, value, name)


def _a(kind: type, value: Any, what: str) -> Any:
    _need(isinstance(value, kind), f"{what} should be a JSON {kind.__name__}")
    return value


def _need(sound: bool, otherwise: str) -> None:
    if not sound:
        raise DamagedError(otherwise)


def _refuse_constant(name: str) -> None:
    raise DamagedError(f"{name} is no number")
