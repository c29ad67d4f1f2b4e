"""A saved conversation's JSON, every value of it checked: it may be damaged, or someone else's."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from jllama.chat.branches import MAX_BRANCHES, check_name
from jllama.chat.overflow import POLICIES
from jllama.errors import JllamaError
from jllama.settings import GenerationSettings, build_settings

FORMAT = "jllama conversation 1"
MAX_BYTES = 2**25  # millions of tokens; and what Python makes of its JSON stays below a gigabyte
ROLES = ("user", "assistant")
Count = Annotated[int, msgspec.Meta(ge=0)]


class SavedCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    id: str
    name: str
    arguments: str


class SavedRound(msgspec.Struct, frozen=True, kw_only=True):
    """Calls with what they gave."""

    content: str
    calls: tuple[SavedCall, ...]
    results: tuple[str, ...]


class SavedMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question or an answer, this with its token ids."""

    role: Literal["user", "assistant"]
    content: str
    token_ids: tuple[int, ...] | None = None
    cut: bool = False
    rounds: tuple[SavedRound, ...] = ()
    calls: tuple[SavedCall, ...] = ()


class SavedBranch(msgspec.Struct, frozen=True, kw_only=True):
    """A branch as the file has it: messages by number."""

    system: str | None
    dropped: Count
    messages: list[Count]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A file's content, sound in itself, without fields of others. Whether it suits a model is to be seen."""

    format: str = FORMAT
    model: str = ""
    settings: dict[str, Any]  # the fields of `GenerationSettings`
    transcript: str | None
    on_overflow: str
    current: str
    branches: Annotated[dict[str, SavedBranch], msgspec.Meta(min_length=1, max_length=MAX_BRANCHES)]
    messages: list[SavedMessage]
    cache_sha256: str | None


class DamagedError(Exception):
    """What is wrong with the file."""


def damaged(path: Path, what: str) -> JllamaError:
    """The one message for every way in which a file may be spoilt; `what` may quote the file at length."""
    shown = what if len(what) <= 200 else what[:199] + "…"
    return JllamaError(f"{path} is damaged or no saved conversation: {shown}")


def write_document(document: Document, path: Path) -> None:
    """Writes a conversation as `read_document` reads it.

    Raises:
      JllamaError: it is too large to be read again.
    """
    text = json.dumps(msgspec.to_builtins(document), ensure_ascii=False, indent=1)
    # Half a surrogate pair, out of a flag that was no UTF-8, becomes JSON's own escape of it.
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_BYTES:
        raise JllamaError(
            f"the conversation has more than {MAX_BYTES >> 20} MiB: undo turns or clear branches"
        )
    path.write_bytes(data)


def check_overwrite(path: Path) -> None:
    """Refuses to replace a file that does not say itself that it is a conversation.

    Raises:
      JllamaError: it is another file, or can't be read.
    """
    if not path.exists():
        return
    with contextlib.suppress(DamagedError, ValueError, RecursionError):
        if _is_conversation(json.loads(_read_text(path))):
            return
    raise JllamaError(f"{path} exists and is no conversation: give another name")


def read_document(path: Path) -> tuple[Document, GenerationSettings]:
    """Reads and checks a saved conversation and the settings in it.

    Raises:
      JllamaError: the file can't be read, or something in it is not as `save` writes it.
    """
    with _damage_named(path):
        # Not by msgspec: it takes no half of a surrogate pair.
        data = json.loads(_read_text(path), parse_constant=_refuse_constant)
        _need(_is_conversation(data), f"its format is not {FORMAT!r}")
        document = msgspec.convert(data, Document)
        _check(document)
        return document, _settings(document.settings)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file's content, as one `JllamaError`."""
    try:
        yield
    except (DamagedError, msgspec.ValidationError) as error:
        raise damaged(path, str(error)) from None
    except json.JSONDecodeError as error:
        raise damaged(path, f"line {error.lineno}: {error.msg}") from None
    except UnicodeEncodeError:
        raise damaged(path, "a name in it is no Unicode text") from None
    except ValueError:
        raise damaged(path, "a number in it has thousands of digits") from None
    except RecursionError:
        raise damaged(path, "it nests too deeply") from None


def _is_conversation(data: Any) -> bool:
    return isinstance(data, dict) and data.get("format") == FORMAT


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


def _check(document: Document) -> None:
    """What the types don't say: names, and numbers that refer to something else."""
    _need(document.on_overflow in POLICIES, f"on_overflow is {document.on_overflow!r}")
    _need(document.current in document.branches, f"there is no branch {document.current!r}")
    for one in (one for message in document.messages for one in message.rounds):
        _need(len(one.calls) == len(one.results) > 0, "calls and their results are not as many")
    for name, branch in document.branches.items():
        try:
            check_name(name)
        except JllamaError as error:
            raise DamagedError(str(error)) from None
        _check_branch(branch, document.messages)


def _check_branch(branch: SavedBranch, messages: list[SavedMessage]) -> None:
    numbers = branch.messages
    _need(len(numbers) <= len(messages), "a branch has more messages than there are")
    for place, number in enumerate(numbers):
        _need(number < len(messages), f"there is no message {number!r}")
        _need(messages[number].role == ROLES[place % 2], "questions and answers do not alternate")
    _need(len(numbers) % 2 == 0, "the last question has no answer")
    _need(branch.dropped <= len(numbers) // 2, f"dropped is {branch.dropped!r}")


def _settings(data: dict[str, Any]) -> GenerationSettings:
    try:
        for name, kind in {"logit_bias": dict, "stop": list}.items():
            _need(isinstance(data.get(name, kind()), kind), f"{name} should be a JSON {kind.__name__}")
        bias = {_token(name): value for name, value in data.get("logit_bias", {}).items()}
        return build_settings(**{**data, "logit_bias": bias})
    except JllamaError as error:
        raise DamagedError(f"its settings: {error}") from None


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise DamagedError(f"logit_bias names {name[:40]!r}, which is no token id") from None


def _need(sound: bool, otherwise: str) -> None:
    if not sound:
        raise DamagedError(otherwise)


def _refuse_constant(name: str) -> None:
    raise DamagedError(f"{name} is no number")
