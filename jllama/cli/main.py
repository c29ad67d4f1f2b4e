"""`jllama COMMAND …`: the installed command. Each command is the program of the same name in `jllama.cli`."""

import difflib
import importlib
import sys

from jllama import __version__
from jllama.cli import command_line

COMMANDS = {
    "chat": "talk with a model",
    "generate": "continue or answer one prompt",
    "inspect": "show what a model is made of, and what it needs",
    "bench": "measure a model's speed",
    "quantize": "write a model's weights in 8 or 4 bits",
    "perplexity": "measure how well a model predicts a text",
    "random-checkpoint": "write random weights of a given shape",
}
OVERVIEW = """usage: jllama COMMAND [MODEL] [flags]

{commands}

jllama COMMAND --help explains one. To begin with: jllama chat smollm2
"""


def main() -> None:
    """Runs the command that stands first; without one, says which there are."""
    first = sys.argv[1] if len(sys.argv) > 1 else "help"
    if first in ("help", "-h", "--help", "--helpfull") and len(sys.argv) > 2:
        sys.argv[1:] = [sys.argv[2], "--help"]
        first = sys.argv[1]
    if first in ("help", "-h", "--help", "--helpfull"):
        print(overview(), end="", flush=True)
    elif first in ("--version", "-V", "version"):
        print(f"jllama {__version__}", flush=True)
    elif first in COMMANDS:
        sys.argv = [f"jllama {first}", *sys.argv[2:]]
        run(first)
    else:
        sys.exit(_refused(first))


def run(command: str) -> None:
    """Runs a command with the flags that stand in `sys.argv`, and exits."""
    command_line.run(importlib.import_module(f"jllama.cli.{command.replace('-', '_')}"))


def overview() -> str:
    """All commands, with a few words on each."""
    return OVERVIEW.format(commands="\n".join(f"  {name:<18} {what}" for name, what in COMMANDS.items()))


def _refused(word: str) -> int:
    near = difflib.get_close_matches(word, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    command_line.say(f"error: {word[:40]!r} is no command: {hint}")
    return command_line.USER_ERROR
