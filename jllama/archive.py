"""Conversations in files: JSON for what was said, safetensors beside it for the cache."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jllama import archive_cache
from jllama.archive_json import read_document
from jllama.branches import Branch, Message
from jllama.conversation import Conversation
from jllama.errors import JllamaError
from jllama.overflow import check_policy
from jllama.paths import expanded
from jllama.session import Session
from jllama.settings import GenerationSettings
from jllama.tokenizer import Tokenizer
from jllama.transcript import Transcript

FORMAT = "jllama conversation 1"


def save(
    conversation: Conversation, settings: GenerationSettings, path: str | Path, *, cache: bool = False
) -> list[Path]:
    """Writes all branches and the settings, each file whole or not at all.

    Args:
      conversation: what is saved.
      settings: saved with it.
      path: of the JSON file. An older conversation there is replaced, any other file is not.
      cache: also write the current branch's cache beside it, as `PATH.safetensors`.

    Returns:
      The files written.

    Raises:
      JllamaError: a file can't be written, or is in the way.
    """
    target = _target(path)
    document, written = _document(conversation, settings), [target]
    if cache:
        beside = cache_path(target)
        archive_cache.check_overwrite(beside)
        with _replacing(beside) as temporary:
            document["cache_sha256"] = archive_cache.write(conversation, temporary)
        written.append(beside)
    with _replacing(target) as temporary:
        text = json.dumps(document, ensure_ascii=False, indent=1)
        # Half a surrogate pair, out of a flag that was no UTF-8, becomes JSON's own escape of it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return written


def load(conversation: Conversation, path: str | Path) -> tuple[GenerationSettings, list[str]]:
    """Replaces all branches by those of a file.

    Returns:
      The settings saved with it, and remarks on what was saved but could not be used.

    Raises:
      JllamaError: the file can't be read, is damaged, or does not suit the model; nothing is changed then.
    """
    target = expanded(path)
    document = read_document(target, FORMAT)
    settings, remarks = document.settings, []
    transcript = Transcript(conversation.model.tokenizer, document.transcript)
    policy = check_policy(document.on_overflow)
    messages, foreign = _own_messages(document.messages, conversation.model.tokenizer)
    if foreign:
        remarks.append(f"{foreign} answers come from another tokenizer: their text is used, not their tokens")
    branches = {
        name: Branch(
            session=Session(conversation.model, max_seq_len=conversation.max_seq_len),
            system=saved.system,
            messages=tuple(messages[index] for index in saved.messages),
            dropped=saved.dropped,
        )
        for name, saved in document.branches.items()
    }
    if document.cache_sha256 is not None:
        remarks += _read_cache(branches[document.current].session, cache_path(target), document.cache_sha256)
    conversation.branches, conversation.current = branches, document.current
    conversation.transcript, conversation.on_overflow = transcript, policy
    return settings, remarks


def cache_path(path: Path) -> Path:
    """Where the cache of a conversation lies."""
    return path.with_name(path.name + ".safetensors")


def _read_cache(session: Session, path: Path, sha256: str) -> list[str]:
    """A cache that can't be used costs time, not words: the conversation loads without it."""
    try:
        archive_cache.read_into(session, path, sha256)
    except JllamaError as error:
        return [f"the saved cache is not used: {error}"]
    return []


def _document(conversation: Conversation, settings: GenerationSettings) -> dict[str, Any]:
    numbers: dict[int, int] = {}
    messages: list[dict[str, Any]] = []
    for branch in conversation.branches.values():
        for message in branch.messages:
            if id(message) not in numbers:
                numbers[id(message)] = len(messages)
                messages.append(message.as_dict())
    return {
        "format": FORMAT,
        "model": conversation.model.name,
        "settings": dataclasses.asdict(settings),
        "transcript": conversation.transcript.source,
        "on_overflow": conversation.on_overflow,
        "current": conversation.current,
        "branches": {
            name: {
                "system": branch.system,
                "dropped": branch.dropped,
                "messages": [numbers[id(message)] for message in branch.messages],
            }
            for name, branch in conversation.branches.items()
        },
        "messages": messages,
        "cache_sha256": None,
    }


def _own_messages(messages: list[Message], tokenizer: Tokenizer) -> tuple[list[Message], int]:
    """The messages, without token ids that do not spell their text, and how many those were."""
    checked = [_without_foreign_ids(message, tokenizer) for message in messages]
    return checked, sum(new is not old for new, old in zip(checked, messages, strict=True))


def _without_foreign_ids(message: Message, tokenizer: Tokenizer) -> Message:
    ids = message.token_ids
    if ids is None:
        return message
    known = all(0 <= token < tokenizer.vocab_size for token in ids)
    if known and tokenizer.decode(ids).lstrip() == message.content:
        return message
    return dataclasses.replace(message, token_ids=None)


def _target(path: str | Path) -> Path:
    """The file to write, links followed.

    Raises:
      JllamaError: another file is in the way.
    """
    target = Path(os.path.realpath(expanded(path)))
    if not target.exists():
        return target
    if not target.is_file():
        raise JllamaError(f"{path} is not a file: give another name")
    with _reported(target, "read"), target.open("rb") as file:
        if FORMAT.split()[0].encode() not in file.read(64):
            raise JllamaError(f"{path} exists and is no conversation: give another name")
    return target


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file, readable by the user alone, that takes the target's place if all goes well."""
    temporary: Path | None = None
    with _reported(target, "write"):
        try:
            handle, name = tempfile.mkstemp(prefix=".jllama-", suffix=".tmp", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _reported(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JllamaError(f"cannot {verb} {path}: {error.strerror or error}") from None
