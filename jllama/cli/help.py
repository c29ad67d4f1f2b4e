"""What `--help` and `--helpfull` print."""

import inspect
import os
import re
import shutil
import textwrap
from types import ModuleType

from absl import flags

from jllama.cli import ready_made

FLAGFILE = "Flags from a file, one a line, as in configs/. What is typed behind it wins."
NOT_OURS = frozenset(["help", "helpfull", "flagfile", "undefok"])


def text(program: ModuleType, known: flags.FlagValues, called: str, everything: bool) -> str:
    """A page of help.

    Args:
      program: a module of `jllama.cli`; its docstring explains it, `PLACES` names the flags that bare words
        set and `HELP` those that matter, by heading.
      known: all flags of the program.
      called: the program as it was called, for the usage line.
      everything: all flags instead of those that matter.
    """
    words = "".join(f" [{name.upper()}" for name in program.PLACES) + "]" * len(program.PLACES)
    groups = {**program.HELP, "Settings": ("flagfile",)}
    if everything:
        named = {name for names in groups.values() for name in names}
        groups["More"] = tuple(sorted(_own(known) - named))
    about = inspect.cleandoc(program.__doc__ or "")
    parts = [f"usage: {called}{words} [flags]", about]
    parts += [
        f"{heading}:\n" + "\n".join(_line(known, name) for name in names) for heading, names in groups.items()
    ]
    if "model" in program.PLACES:
        names = ", ".join(ready_made.names())
        parts.append(f"Ready-made models: {names} (what has that name in this directory comes first).")
    if "random_config" in known or "config" in known or program.__name__.endswith(".inspect"):
        parts.append(f"Ready-made shapes: {', '.join(ready_made.shapes())}.")
    if not everything:
        parts.append("All flags: --helpfull")
    return "\n\n".join(parts)


def called_as(argv: list[str]) -> str:
    """`python scripts/chat.py` or `jllama chat`, as it was typed."""
    return f"python {os.path.relpath(argv[0])}" if argv[0].endswith(".py") else argv[0]


def _own(known: flags.FlagValues) -> set[str]:
    """The program's flags under their long names, without absl's."""
    ours = {module for module in known.flags_by_module_dict() if not module.startswith("absl.")}
    listed = known.flags_by_module_dict()
    return {flag.name for module in ours for flag in listed[module]} - NOT_OURS


def _line(known: flags.FlagValues, name: str) -> str:
    if name == "flagfile":
        return _wrapped("--flagfile=FILE", FLAGFILE)
    flag = known[name]
    short = f"-{flag.short_name}, " if flag.short_name else ""
    shown = f"--[no]{name}" if flag.boolean else f"--{name}={_kind(flag)}"
    default = "" if not flag.default else f" (default: {_value(flag)})"
    return _wrapped(short + shown, f"{_plain(flag)}{default}")


def _plain(flag: flags.Flag) -> str:
    """The flag's own words, without what absl adds: the choices, and that it may be repeated."""
    words = re.sub(r"^<[\w|]+>: ", "", " ".join(flag.help.split()))
    return re.sub(r";?\s*repeat this option to specify a list of values$", "", words)


def _kind(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return "|".join(choices)
    kinds = {"int": "N", "float": "X", "comma separated list of strings": "A,B"}
    return kinds.get(flag.flag_type(), "TEXT")


def _value(flag: flags.Flag) -> str:
    return ",".join(flag.default) if isinstance(flag.default, list) else str(flag.default)


def _wrapped(left: str, right: str) -> str:
    """The flag, and what it does from column 28 on."""
    width = max(60, min(110, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(" ".join(right.split()), width - 30) or [""]
    beside = lines if len(left) <= 26 else ["", *lines]
    return "\n".join(f"  {left if row == 0 else '':<26}  {line}".rstrip() for row, line in enumerate(beside))
