"""The chat at a terminal: reads, answers, obeys commands, and survives every mistake."""

import contextlib

from jllama.cli.command_line import INTERRUPTED, explanation
from jllama.cli.terminal import commands, wording
from jllama.cli.terminal.line_editor import Terminal
from jllama.cli.terminal.screen import quiet_typing
from jllama.cli.terminal.state import Chat, LeaveError
from jllama.errors import JllamaError


def run(chat: Chat, banner: str) -> int:
    """Talks until the user leaves.

    Returns:
      0; 130 if it was by Ctrl-C.
    """
    terminal = Terminal(
        [name for name in commands.COMMANDS if name not in commands.ALIASES],
        lambda command: commands.arguments(command, chat.conversation),
    )
    chat.screen.say(banner)
    try:
        with quiet_typing():
            while True:
                handle(chat, read(chat, terminal))
    except (EOFError, LeaveError):
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def read(chat: Chat, terminal: Terminal) -> str:
    """The next line. Ctrl-C on an empty line leaves when pressed twice; Ctrl-D too if turns are not saved."""
    warned = False
    while True:
        name, default = chat.conversation.current, chat.prefill
        chat.prefill = ""
        try:
            return terminal.read("> " if len(chat.conversation.branches) == 1 else f"{name}> ", default)
        except (KeyboardInterrupt, EOFError) as error:
            ends = isinstance(error, EOFError)
            if terminal.typed and not ends:
                warned = False
                continue
            lost = wording.unsaved(chat.unsaved_turns())
            if warned or (ends and not lost):
                raise
            chat.screen.say(lost + ("Ctrl-D again leaves" if ends else "Ctrl-C again or Ctrl-D leaves"))
            warned = True


def handle(chat: Chat, text: str) -> None:
    """Obeys or answers one input; says what is wrong with it if something is."""
    if not text.strip():
        return
    chat.inputs += 1
    try:
        with contextlib.suppress(KeyboardInterrupt):
            command = commands.find(text)
            if command is None:
                chat.ask(text)
            else:
                command(chat, text.partition(text.split()[0])[2].strip())
    except JllamaError as error:
        chat.screen.error(str(error))
    except LeaveError:
        raise
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        chat.screen.error(message)
