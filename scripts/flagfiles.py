"""The command line with its flagfiles: a model's serves every script, whatever flags that one has."""

import re

from absl import flags

from jllama.errors import JllamaError

# What a flagfile may hold for one script and another does not know. Typed, it is refused as any unknown flag.
SHARED = frozenset(
    "prompt prompt_file chat_template system stats max_new_tokens temperature top_k top_p min_p "
    "repetition_penalty presence_penalty frequency_penalty logit_bias seed stop ignore_eos transcript "
    "on_overflow max_seq_len dtype device quantize verbose".split()
)


def parse(known: flags.FlagValues, argv: list[str]) -> None:
    """Sets the flags.

    Args:
      known: the flags that this script defines.
      argv: the program's name, then what was typed.

    Raises:
      JllamaError: a flag that is unknown or malformed, an argument that is no flag, a flagfile that can't be
        read.
    """
    try:
        rest = known([argv[0], *_expanded(known, argv[1:])])
    except UnicodeDecodeError as error:
        raise JllamaError(f"a flagfile is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (flags.Error, ValueError) as error:  # absl raises the latter for --noNAME=VALUE
        raise JllamaError(str(error)) from None
    if rest[1:] and not known["help"].value:
        raise JllamaError(f"unexpected argument {rest[1]!r}; settings are flags: see --help")


def _expanded(known: flags.FlagValues, typed: list[str]) -> list[str]:
    """Each flagfile's lines in its place, but for what they hold for other scripts."""
    kept: list[str] = []
    while typed:
        is_file = re.match("--?flagfile(=|$)", typed[0])
        taken = typed[: 2 if _takes_the_next(known, typed) else 1]
        typed = typed[len(taken) :]
        if is_file:
            kept += _for_us(known, known.read_flags_from_files(taken))
        else:
            kept += taken
    return kept


def _takes_the_next(known: flags.FlagValues, typed: list[str]) -> bool:
    """Whether the second argument is the value of the first.

    Raises:
      JllamaError: it is a flag itself: a value was forgotten.
    """
    name = typed[0].lstrip("-")
    takes = typed[0].startswith("-") and (name == "flagfile" or (name in known and not known[name].boolean))
    if takes and len(typed) > 1 and typed[1].startswith("--") and _is_flag(known, typed[1]):
        raise JllamaError(
            f"missing value for flag --{name}; if it is {typed[1]!r}, write --{name}={typed[1]}"
        )
    return takes


def _is_flag(known: flags.FlagValues, text: str) -> bool:
    name = text.lstrip("-").partition("=")[0]
    return name == "flagfile" or name in known or name.removeprefix("no") in known


def _for_us(known: flags.FlagValues, lines: list[str]) -> list[str]:
    """A flagfile's lines but for other scripts' flags and what stands below them as their values."""
    kept, dropped = [], False
    for line in lines:
        if line.startswith("-"):
            dropped = _is_for_others(known, line)
        if not dropped:
            kept.append(line)
    return kept


def _is_for_others(known: flags.FlagValues, line: str) -> bool:
    name = line.lstrip("-").partition("=")[0]
    plain = name.removeprefix("no")
    return plain in SHARED and name not in known and plain not in known
