"""The chat's commands: one small function each, told what stands behind the command's name."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from jllama.chat.branches import Turn
from jllama.chat.conversation import Conversation
from jllama.cli.terminal import clipboard, keeping, wording
from jllama.cli.terminal import settings as chat_settings
from jllama.cli.terminal.attachments import Attachment, file_and_words
from jllama.cli.terminal.loaded import loaded
from jllama.cli.terminal.state import Chat, LeaveError
from jllama.errors import JllamaError, nearest

Command = Callable[[Chat, str], None]


def find(text: str) -> Command | None:
    """The command that a text calls, or None if it is a message. A blank first makes any text a message.

    Raises:
      JllamaError: it looks like a command and is none, or more stands behind it than it takes.
    """
    if not text.startswith("/"):
        return None
    name = text.split()[0]
    if name in COMMANDS:
        _refuse_words(COMMANDS[name], text.partition(name)[2].strip())
        return COMMANDS[name]
    if "\n" in text.strip():
        return None  # pasted text that happens to begin with a slash
    hint = nearest(name, COMMANDS)
    raise JllamaError(f"unknown command {name[:40]!r}{hint}; /help lists all, a blank before / sends it")


def arguments(command: str, conversation: Conversation) -> Iterable[str]:
    """What may follow a command, for completion."""
    choices: dict[str, Iterable[str]] = {
        "/set": (f"{name}=" for name in chat_settings.NAMES),
        "/switch": conversation.branches,
        "/delete": (name for name in conversation.branches if name != conversation.current),
        "/help": COMMANDS,
        "/stats": ("on", "off"),
    }
    return choices.get(command, ())


def help_(chat: Chat, argument: str) -> None:
    """/help [COMMAND]: lists the commands, or explains one"""
    if not argument:
        lines = [f"  {_usage(command):<22} {_meaning(command)}" for command in COMMANDS.values()]
        chat.screen.say("\n".join([*dict.fromkeys(lines), *_KEYS]))
        return
    command = COMMANDS.get("/" + argument.lstrip("/"))
    if command is None:
        raise JllamaError(f"no command {argument[:40]!r}{nearest('/' + argument.lstrip('/'), COMMANDS)}")
    chat.screen.say(f"{_usage(command)}: {_meaning(command)}")


def exit_(chat: Chat, argument: str) -> None:
    """/exit: leaves, as Ctrl-D does"""
    if chat.may_drop("/exit"):
        raise LeaveError


def system(chat: Chat, argument: str) -> None:
    """/system [TEXT]: sets the system message; shows it without TEXT; /system - removes it"""
    if argument:
        chat.conversation.set_system(None if argument == "-" else argument)
    chat.screen.say(f"system: {chat.conversation.branch.system or '(none)'}")


def set_(chat: Chat, argument: str) -> None:
    """/set KEY=VALUE: changes a setting; lists them without KEY"""
    if not argument:
        chat.screen.say(chat_settings.listing(chat))
        return
    name = chat_settings.change(chat, argument)
    chat.screen.say(f"{name}={chat_settings.value(chat, name)}")


def show(chat: Chat, argument: str) -> None:
    """/show [N]: shows the conversation, or turn N in full"""
    if not argument:
        chat.screen.say(wording.history(chat.conversation) or "nothing was said yet")
        return
    question, answer = _turn(chat, _number(argument, "/show N"))
    chat.screen.say(f"> {question.content}")
    for one in answer.rounds:
        for call, result in zip(one.calls, one.results, strict=True):
            chat.screen.say(f"call: {wording.call(call)}\ngave: {wording.shortened(result)}")
    chat.screen.say(answer.content, "")


def stats(chat: Chat, argument: str) -> None:
    """/stats [on|off]: statistics of the last answer; on: after each answer"""
    if argument:
        chat_settings.change(chat, f"stats={argument}")
        chat.screen.say(f"stats={chat_settings.value(chat, 'stats')}")
    elif chat.conversation.result.generated_tokens:
        chat.screen.say(wording.statistics(chat.conversation))
    else:
        chat.screen.say("no answer yet")


def tokens(chat: Chat, argument: str) -> None:
    """/tokens: how many tokens the messages have"""
    chat.screen.say(wording.tokens(chat.conversation))


def clear(chat: Chat, argument: str) -> None:
    """/clear: forgets this branch's messages; the system message stays"""
    if not chat.may_drop("/clear", chat.conversation.current):
        return
    chat.conversation.clear()
    chat.attached.clear()
    chat.screen.say("cleared")


def copy(chat: Chat, argument: str) -> None:
    """/copy: copies the last answer to the clipboard"""
    if not chat.conversation.messages:
        raise JllamaError("nothing to copy: there is no answer yet")
    text = chat.conversation.messages[-1].content
    sequence, tool = clipboard.osc52(text), clipboard.copy_with_tool(text)
    if not (sequence or tool):
        raise JllamaError(
            "the answer is too long for the terminal's clipboard, and there is no clipboard tool"
        )
    chat.screen.raw(sequence)
    how = f"with {tool}" if tool else "if the terminal allows it"
    chat.screen.say(f"copied {len(text)} characters {how}")


def undo(chat: Chat, argument: str) -> None:
    """/undo [N]: takes back the last turn, or the last N"""
    undone = chat.conversation.undo(_number(argument, "/undo N") if argument else 1)
    for question in undone[::2]:
        chat.screen.say(f"taken back: {wording.one_line(question.content)}")


def redo(chat: Chat, argument: str) -> None:
    """/redo: another answer to the last message"""
    settings = chat.settings
    if settings.temperature == 0 and chat.conversation.turns:
        settings = dataclasses.replace(settings, temperature=0.8, top_p=0.95)
        chat.screen.say(
            "temperature=0 would repeat the answer: this one is drawn at 0.8 (/set temperature=0.8 stays)"
        )
    chat.answer(chat.conversation.retry(settings))


def continue_(chat: Chat, argument: str) -> None:
    """/continue: goes on with an answer that was cut, by max_new_tokens or Ctrl-C"""
    before = chat.conversation.messages[-1:]
    chat.answer(chat.conversation.resume(chat.settings), before[0].content if before else "")


def read(chat: Chat, argument: str) -> None:
    """/read FILE [TEXT]: puts a file before the next message, or before TEXT; /read - drops it"""
    if argument == "-":
        chat.attached.clear()
    elif argument:
        name, words = file_and_words(argument)
        file = Attachment.read(name, chat.conversation, chat.attached)
        chat.attached.append(file)
        chat.screen.say(f"{file.name}: {wording.count(file.tokens, 'token')}")
        if words:
            chat.ask(words)
            return
    names = ", ".join(file.name for file in chat.attached)
    chat.screen.say(f"before the next message: {names or '(no file)'}")


def tools(chat: Chat, argument: str) -> None:
    """/tools: the functions that the model may call"""
    known = chat.conversation.toolbox.tools
    lines = [
        f"  {tool.name}({', '.join(tool.parameters['properties'])})  {tool.description}" for tool in known
    ]
    chat.screen.say("\n".join(map(wording.one_line, lines)) or "none: start the chat with --tools=FILE.py")


def model(chat: Chat, argument: str) -> None:
    """/model: what is loaded, and the memory that it takes"""
    chat.screen.say(loaded(chat.conversation))


def edit(chat: Chat, argument: str) -> None:
    """/edit N [TEXT]: asks turn N again with another text, and forgets the turns after it"""
    first, _, text = argument.partition(" ")
    number = _number(first, "/edit N TEXT")
    question, _ = _turn(chat, number)
    if text.strip():
        chat.answer(chat.conversation.edit(number, text.strip(), chat.settings))
    else:
        chat.prefill = f"/edit {number} {question.content}"


def _turn(chat: Chat, number: int) -> Turn:
    turns = chat.conversation.branch.turns
    if not 1 <= number <= len(turns):
        there = f"there {'is' if len(turns) == 1 else 'are'} {wording.turns(len(turns))}"
        raise JllamaError(f"turn {number} does not exist: {there}")
    return turns[number - 1]


def _number(text: str, usage: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise JllamaError(f"{text[:20]!r} is no number of a turn: {usage}")
    return int(text)


def _refuse_words(command: Command, argument: str) -> None:
    """`/model NAME` of other programs loads another model; what a word was meant for is not guessed."""
    if argument and " " not in _usage(command):
        hint = "; for another model start another chat" if command is model else ""
        raise JllamaError(f"{_usage(command)} takes nothing behind it: {argument[:40]!r}{hint}")


def _usage(command: Any) -> str:
    return command.__doc__.partition(":")[0]


def _meaning(command: Any) -> str:
    return command.__doc__.partition(":")[2].strip()


_KEYS = (
    "Several lines: Alt-Enter, or a backslash at the line's end, or triple quotes around them.",
    "Ctrl-C stops an answer and keeps what came. Ctrl-Z suspends the chat, fg goes on.",
)
_TALK = (system, read, continue_, redo, undo, edit, show, copy, clear)
_ABOUT = (set_, tokens, stats, tools, model, help_, exit_)
COMMANDS: dict[str, Command] = {
    _usage(command).split()[0]: command for command in (*_TALK, *keeping.ALL, *_ABOUT)
}
ALIASES = {"/quit": exit_, "/retry": redo}
COMMANDS |= ALIASES
