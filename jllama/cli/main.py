"""`jllama COMMAND …`: the installed command. Each command is the program of the same name in `jllama.cli`."""

import difflib
import importlib
import os
import re
import sys

from jllama import __version__
from jllama.cli import command_line, ready_made

COMMANDS = {
    "chat": "talk with a model",
    "serve": "answer over HTTP, as OpenAI's API and as a chat page",
    "generate": "continue or answer one prompt",
    "inspect": "show what a model is made of, and what it needs",
    "bench": "measure a model's speed",
    "bench serve": "measure a server under load, ours or another",
    "quantize": "write a model's weights in 8 or 4 bits",
    "perplexity": "measure how well a model predicts a text",
    "random-checkpoint": "write random weights of a given shape",
}
HELP = ("help", "-h", "--help", "--helpfull")
OVERVIEW = """usage: jllama COMMAND [MODEL] [flags]

{commands}

jllama COMMAND --help explains one. To begin with: jllama chat smollm2
"""


def main() -> None:
    """Runs the command that stands first; without one, says which there are."""
    typed = sys.argv[1:] or ["help"]
    if typed[0] in HELP and len(typed) > 1:
        everything = "--helpfull" in typed
        typed = [*(_command(typed[1:]) or typed[1]).split(" "), "--helpfull" if everything else "--help"]
    command = _command(typed)
    if command:
        sys.argv = [f"jllama {command}", *typed[command.count(" ") + 1 :]]
        run(command)
    elif typed[0] in HELP:
        print(overview(), end="", flush=True)
    elif typed[0] in ("--version", "-V", "version"):
        print(f"jllama {__version__}", flush=True)
    else:
        sys.exit(_refused(typed[0]))


def _command(words: list[str]) -> str:
    """The command that words begin with, which may be two; none: nothing."""
    return next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), "")


def run(command: str) -> None:
    """Runs a command with the flags that stand in `sys.argv`, and exits."""
    # NumPy's import starts a thread a core, which spins for a while beside ours: no command needs them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    command_line.run(importlib.import_module(f"jllama.cli.{re.sub('[ -]', '_', command)}"))


def overview() -> str:
    """All commands, with a few words on each."""
    return OVERVIEW.format(commands="\n".join(f"  {name:<18} {what}" for name, what in COMMANDS.items()))


def _refused(word: str) -> int:
    begun = [name for name in COMMANDS if word and name.startswith(word)]
    near = begun or difflib.get_close_matches(word, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    if word in ready_made.names() or os.path.exists(word):
        hint = f"it goes behind one, as in jllama chat {word[:40]}"
    command_line.say(f"error: {word[:40]!r} is no command: {hint}")
    return command_line.USER_ERROR
