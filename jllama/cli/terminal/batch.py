"""The chat without a terminal: messages in, answers out, nothing else on standard output."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jllama.chat.asking import MOST_ROUNDS
from jllama.chat.conversation import Conversation
from jllama.cli import interrupts, streams
from jllama.cli.command_line import INTERRUPTED, USER_ERROR, say
from jllama.cli.terminal import wording
from jllama.errors import JllamaError
from jllama.machine.devices import describe_device
from jllama.settings import GenerationSettings
from jllama.tools.definitions import Call


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
        for piece in _pieces(conversation, message, settings):
            if not as_json:
                print(piece, end="", flush=True)
                shown = True
            interrupts.check()
    finally:
        if not as_json and (shown or sys.exc_info()[0] is None):
            print(flush=True)
    if conversation.branch.dropped > dropped:
        say(wording.dropped(conversation.branch.dropped))
    if as_json:
        print(json.dumps(_report(conversation), ensure_ascii=False), flush=True)


def _pieces(conversation: Conversation, message: str, settings: GenerationSettings) -> Iterator[str]:
    """The answer, behind the calls that it makes, which are run."""
    yield from conversation.ask(message, settings)
    for _ in range(MOST_ROUNDS):
        if not conversation.calls:
            return
        yield from conversation.reply([_ran(conversation, call) for call in conversation.calls], settings)


def _ran(conversation: Conversation, call: Call) -> str:
    result = conversation.run(call)
    say(f"call: {wording.call(call)}", f"gave: {wording.shortened(result)}")
    return result


def _report(conversation: Conversation) -> dict[str, Any]:
    model, answer = conversation.model, conversation.messages[-1]
    names = {"device": describe_device(model.params), "dtype": model.dtype, "model": model.name}
    pairs = [pair for one in answer.rounds for pair in zip(one.calls, one.results, strict=True)]
    calls = [{"name": call.name, "arguments": call.arguments, "result": result} for call, result in pairs]
    told = {"calls": calls} if conversation.toolbox.tools else {}
    return {**conversation.result.summary(), "text": answer.content, **told, **names}


def _report_error(message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False), flush=True)
    say(*f"error: {message}".split("\n"))
