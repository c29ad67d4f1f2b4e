"""Conversations in files: JSON for what was said, safetensors beside it for the cache."""

import dataclasses
from pathlib import Path

import msgspec

from jllama.chat.archive import cache as archive_cache
from jllama.chat.archive.document import (
    Document,
    SavedBranch,
    SavedCall,
    SavedMessage,
    SavedRound,
    check_overwrite,
    read_document,
    write_document,
)
from jllama.chat.archive.files import replacing, resolved
from jllama.chat.branches import Branch, Message, Round
from jllama.chat.conversation import Conversation
from jllama.chat.transcript import Transcript
from jllama.errors import JllamaError
from jllama.session import Session
from jllama.settings import GenerationSettings
from jllama.text.tokenizer import Tokenizer
from jllama.tools.definitions import Call


def save(
    conversation: Conversation, settings: GenerationSettings, path: str | Path, *, cache: bool = False
) -> list[Path]:
    """Writes all branches and the settings: all files whole, or none.

    An older cache beside the file goes, unless it is written anew: it would be of another conversation.

    Args:
      conversation: what is saved.
      settings: saved with it.
      path: of the JSON file. An older conversation there is replaced, any other file is not.
      cache: also write the current branch's cache beside it, as `PATH.safetensors`; an answer that is being
        read ends first, with what came.

    Returns:
      The files written.

    Raises:
      JllamaError: a file can't be written, or is in the way.
    """
    target = resolved(path)
    files = [target, cache_path(target)][: 1 + cache]
    check_overwrite(target)
    if cache:
        archive_cache.check_overwrite(files[1])
        conversation.branch.streams.end()  # it has the cache
    document = _document(conversation, settings)
    with replacing(*files) as temporary:
        if cache:
            written = archive_cache.write(conversation, temporary[1])
            document = msgspec.structs.replace(document, cache_sha256=written)
        write_document(document, temporary[0])
    if not cache:
        archive_cache.remove(cache_path(target))
    return files


def load(conversation: Conversation, path: str | Path) -> tuple[GenerationSettings, list[str]]:
    """Replaces all branches by those of a file; a caller's variables for the template stay.

    Returns:
      The settings saved with it, and remarks on what was saved but could not be used.

    Raises:
      JllamaError: the file can't be read, is damaged, or does not suit the model; nothing is changed then.
    """
    target = resolved(path)
    document, saved_settings = read_document(target)
    settings, remarks = _own_settings(saved_settings, conversation.model.config.vocab_size)
    tokenizer = conversation.model.need_tokenizer()
    transcript = Transcript(tokenizer, document.transcript, conversation.transcript.variables)
    remarks += _check_template(transcript, document)
    messages, foreign = _own_messages(document.messages, tokenizer)
    if foreign:
        remarks.append(
            f"the text of {foreign} answer{'s' * (foreign > 1)} was changed or comes from another tokenizer: "
            "it is read anew"
        )
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
    conversation.transcript, conversation.on_overflow = transcript, document.on_overflow
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


def _document(conversation: Conversation, settings: GenerationSettings) -> Document:
    numbers: dict[int, int] = {}
    messages: list[SavedMessage] = []
    for branch in conversation.branches.values():
        for message in branch.messages:
            if id(message) not in numbers:
                numbers[id(message)] = len(messages)
                messages.append(_saved(message))
    return Document(
        model=conversation.model.name,
        settings=dataclasses.asdict(settings),
        transcript=conversation.transcript.source,
        on_overflow=conversation.on_overflow,
        current=conversation.current,
        branches={
            name: SavedBranch(
                system=branch.system,
                dropped=branch.dropped,
                messages=[numbers[id(message)] for message in branch.messages],
            )
            for name, branch in conversation.branches.items()
        },
        messages=messages,
        cache_sha256=None,
    )


def _own_settings(settings: GenerationSettings, vocab_size: int) -> tuple[GenerationSettings, list[str]]:
    """The settings without biases of tokens that the model does not have: each answer would fail on them."""
    known = {token: bias for token, bias in settings.logit_bias.items() if 0 <= token < vocab_size}
    missing = len(settings.logit_bias) - len(known)
    remark = f"the logit_bias of {missing} tokens that this model does not have is left out"
    return dataclasses.replace(settings, logit_bias=known), [remark] * bool(missing)


def _check_template(transcript: Transcript, document: Document) -> list[str]:
    """Tries the template on a short talk with each system message, because a file may bring one that fails.

    Returns:
      A remark if it is the model's own that does not take a branch's system message.
    """
    talk = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    for name, branch in document.branches.items():
        system = [{"role": "system", "content": branch.system}] if branch.system else []
        try:
            transcript.encode([*system, *talk])
        except JllamaError as error:
            if transcript.source is not None:
                raise JllamaError(f"the conversation's own transcript can't be used: {error}") from None
            return [f"branch {name} can't go on with its system message (/system - removes it): {error}"]
    return []


def _own_messages(saved: list[SavedMessage], tokenizer: Tokenizer) -> tuple[list[Message], int]:
    """The messages, without token ids that do not spell their text, and of how many answers that is so."""
    messages = [_message(one) for one in saved]
    checked = [_without_foreign_ids(message, tokenizer) for message in messages]
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    return checked, sum(checked[at] is not messages[at] for at in answers)


def _saved(message: Message) -> SavedMessage:
    calls = tuple(map(_saved_call, message.calls))
    rounds = tuple(
        SavedRound(content=one.content, calls=tuple(map(_saved_call, one.calls)), results=one.results)
        for one in message.rounds
    )
    return SavedMessage(**message.as_dict(), cut=message.cut, rounds=rounds, calls=calls)


def _saved_call(call: Call) -> SavedCall:
    return SavedCall(call.id, call.name, call.arguments)


def _message(saved: SavedMessage) -> Message:
    rounds = tuple(Round(one.content, tuple(map(_call, one.calls)), one.results) for one in saved.rounds)
    calls = tuple(map(_call, saved.calls))
    return Message(saved.role, saved.content, saved.token_ids, saved.cut, rounds, calls)


def _call(saved: SavedCall) -> Call:
    return Call(saved.id, saved.name, saved.arguments)


def _without_foreign_ids(message: Message, tokenizer: Tokenizer) -> Message:
    ids = message.token_ids
    if ids is None:
        return message
    if message.role != "assistant":
        return dataclasses.replace(message, token_ids=None)  # `save` writes none: the text alone is read
    known = all(0 <= token < tokenizer.vocab_size for token in ids)
    if known and tokenizer.decode(ids).lstrip() == message.content:
        return message
    return dataclasses.replace(message, token_ids=None)
