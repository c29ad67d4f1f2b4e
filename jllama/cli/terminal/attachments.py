"""A file's text as a part of a message."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from jllama.chat.branches import Message
from jllama.chat.conversation import Conversation
from jllama.errors import JllamaError
from jllama.files.paths import check_file, expanded

BYTES_A_TOKEN = 32  # more than any text has on average: what is larger is not even read


@dataclasses.dataclass(frozen=True)
class Attachment:
    """A file that goes before a message."""

    name: str
    text: str
    tokens: int

    @classmethod
    def read(cls, name: str, conversation: Conversation, others: Sequence["Attachment"]) -> Self:
        """Reads a text file.

        Args:
          name: of the file.
          conversation: whose model will read it.
          others: what goes before the same message.

        Raises:
          JllamaError: it can't be read, is no text in UTF-8, is empty, or leaves no room for an answer.
        """
        size = conversation.max_seq_len
        text = _text(name, BYTES_A_TOKEN * size)
        tokens = len(conversation.model.need_tokenizer().encode(text, add_special=False))
        message = with_files([*others, cls(name, text, tokens)], "")
        whole = len(conversation.encode([Message("user", message)]))
        if whole >= size:
            behind = " behind the other files" if others else ""
            larger = ", or start with a larger --max_seq_len" if conversation.may_grow else ""
            raise JllamaError(
                f"{name} has {tokens:,} tokens: too long{behind} for the context of {size:,}; "
                f"give a part of it{larger}"
            )
        return cls(name, text, tokens)


def with_files(files: Sequence[Attachment], words: str) -> str:
    """A message: the files' texts, then the words."""
    return "\n\n".join([*(file.text.strip("\n") for file in files), *([words] if words else [])])


def file_and_words(argument: str) -> tuple[str, str]:
    """The file that an argument begins with, and what stands behind it.

    A name with blanks is found without quotes, too: the longest beginning that is a file counts.
    """
    for quote in "\"'":
        name, closed, words = argument[1:].partition(quote)
        if argument.startswith(quote) and closed:
            return name, words.strip()
    parts = argument.split(" ")
    for count in range(len(parts), 1, -1):
        if os.path.isfile(os.path.expanduser(" ".join(parts[:count]))):
            return " ".join(parts[:count]), " ".join(parts[count:]).strip()
    name, *rest = argument.split(maxsplit=1)
    return name, "".join(rest)


def _text(name: str, most: int) -> str:
    data = _bytes(expanded(name), most)
    if b"\0" in data:
        raise JllamaError(f"{name} is no text: it holds null bytes")
    if len(data) > most:
        raise JllamaError(f"{name} has more than {most:,} bytes: too long for the context")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise JllamaError(
            f"{name} is no text in UTF-8 (byte {error.start}): convert it, for instance with iconv"
        ) from None
    if not text.strip():
        raise JllamaError(f"{name} is empty")
    return text.replace("\r\n", "\n")


def _bytes(path: Path, most: int) -> bytes:
    try:
        check_file(path)
        with path.open("rb") as file:
            return file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JllamaError(f"cannot read {path}: {reason}") from None
