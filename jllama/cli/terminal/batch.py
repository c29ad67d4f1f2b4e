"""The chat without a terminal: messages in, answers out, nothing else on standard output."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jllama.chat.conversation import Conversation
from jllama.cli import streams
from jllama.cli.command_line import INTERRUPTED, USER_ERROR, say
from jllama.cli.terminal import wording
from jllama.errors import JllamaError
from jllama.machine.devices import describe_device
from jllama.settings import GenerationSettings


def run(
    conversation: Conversation,
    settings: GenerationSettings,
    messages: Sequence[str],
    *,
    as_json: bool,
    stats: bool,
) -> int:
    """Answers the messages, or else each line of standard input that is not blank.

    Returns:
      0; 2 if a message could not be answered (the others were); 130 for Ctrl-C.
    """
    code = 0
    try:
        for message in messages or stdin_lines():
            try:
                _answer(conversation, message, settings, as_json)
            except JllamaError as error:
                code = USER_ERROR
                _report_error(str(error), as_json)
            else:
                if stats:
                    say(wording.statistics(conversation))
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def stdin_lines() -> Iterator[str]:
    """The lines that are not blank, as they come. Bytes that are no UTF-8 become U+FFFD."""
    lines: Iterable[bytes] = streams.standard_input()
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text.strip():
            yield text


def _answer(conversation: Conversation, message: str, settings: GenerationSettings, as_json: bool) -> None:
    dropped, shown = conversation.branch.dropped, False
    try:
        for piece in conversation.ask(message, settings):
            if not as_json:
                print(piece, end="", flush=True)
                shown = True
    finally:
        if not as_json and (shown or sys.exc_info()[0] is None):
            print(flush=True)
    if conversation.branch.dropped > dropped:
        say(wording.dropped(conversation.branch.dropped))
    if as_json:
        print(json.dumps(_report(conversation), ensure_ascii=False), flush=True)


def _report(conversation: Conversation) -> dict[str, Any]:
    model = conversation.model
    names = {"device": describe_device(), "dtype": model.dtype, "model": model.name}
    return {**conversation.result.summary(), "text": conversation.messages[-1].content, **names}


def _report_error(message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False), flush=True)
    say(*f"error: {message}".split("\n"))
