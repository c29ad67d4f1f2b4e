"""The command line with its flagfiles: a model's serves every script, whatever flags that one has."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from jllama.cli import ready_made, spelling, streams
from jllama.errors import JllamaError

# What a flagfile may hold for one script and another does not know. Typed, it is refused as any unknown flag.
SHARED = frozenset(
    "prompt prompt_file chat_template system stats max_new_tokens min_new_tokens temperature top_k top_p "
    "min_p repetition_penalty presence_penalty frequency_penalty logit_bias seed stop stop_token_ids "
    "ignore_eos transcript on_overflow max_seq_len dtype device threads quantize verbose".split()
)

# What absl says of a value that is no number, and what we do.
_NUMBERS = {
    r"invalid literal for int\(\) with base \d+: .*": "give a whole number",
    r"could not convert string to float: .*": "give a number",
    r": \S+ is not integer >= (-?\d+)$": r": give a whole number from \1",
}

RIVALS = frozenset(["prompt", "prompt_file"])  # the one given last wins, as of one flag given twice


def parse(
    known: flags.FlagValues, argv: list[str], places: Sequence[str] = (), default_model: str = ""
) -> None:
    """Sets the flags.

    Args:
      known: the flags that this script defines.
      argv: the program's name, then what was typed.
      places: the flags that bare words set, the first word the first of them that was not typed.
      default_model: a ready-made model for who names none.

    Raises:
      JllamaError: a flag that is unknown or malformed, a word too many, a flagfile that can't be read.
    """
    try:
        words = _last_rival(known, _expanded(known, _named(known, argv[1:], places)))
        is_default = bool(default_model) and "model" not in map(_name, words)
        if is_default:
            words = _last_rival(known, [*_expanded(known, [_ready_made(default_model)]), *words])
        rest = known([argv[0], *words])
    except (flags.Error, ValueError) as error:  # absl raises the latter for --noNAME=VALUE
        raise JllamaError(_plainly(str(error))) from None
    assert not rest[1:], rest  # all words have become flags
    if is_default:
        streams.say(f"no model named: taking {default_model}; the first word names another")


def _plainly(message: str) -> str:
    """absl's message without Python's words for numbers."""
    for theirs, ours in _NUMBERS.items():
        message = re.sub(theirs, ours, message)
    return message


def _named(known: flags.FlagValues, typed: list[str], places: Sequence[str]) -> list[str]:
    """What was typed as flags under their own names."""
    end = typed.index("--") if "--" in typed else len(typed)
    groups = [*_flags_with_values(known, [spelling.plain(known, word) for word in typed[:end]])]
    if "prompt" in places and any(map(_names_a_model, groups)):
        first = next((group[0] for group in groups if not group[0].startswith("-")), None)
        if first is not None and not ready_made.may_be_a_model(first):
            places = [place for place in places if place != "model"]
    return spelling.with_words_named(known, [*groups, *([word] for word in typed[end:])], places)


def _names_a_model(group: list[str]) -> bool:
    """Whether a flag is a flagfile with a model in it: the first bare word is the prompt then.

    What a shell's `<(command)` gives can be read once alone, and later.
    """
    name = group[0].partition("=")[2] or group[-1]
    if not re.match("--?flagfile(=|$)", group[0]) or not Path(ready_made.settings(name.strip())).is_file():
        return False
    return any(re.match("--?model(=|$)", line) for line in _lines_of(group))


def _ready_made(model: str) -> str:
    return f"--flagfile={ready_made.directory() / model}.cfg"


def typed_names(known: flags.FlagValues, typed: list[str], places: Sequence[str]) -> frozenset[str]:
    """The flags that stand on the command line itself, not in a flagfile.

    Args:
      known: the flags that this script defines.
      typed: what was typed, without the program's name.
      places: the flags that bare words set.
    """
    words = [_name(taken[0]) for taken in _flags_with_values(known, _named(known, typed, places))]
    return frozenset(word if word in known else word.removeprefix("no") for word in words)


def _name(argument: str) -> str:
    return argument.lstrip("-").partition("=")[0] if argument.startswith("-") else ""


def _expanded(known: flags.FlagValues, typed: list[str]) -> list[str]:
    """Each flagfile's lines in its place, but for what they hold for other scripts."""
    kept: list[str] = []
    for taken in _flags_with_values(known, typed):
        if re.match("--?flagfile(=|$)", taken[0]):
            lines = [_underscored(line) for line in _lines_of(taken)]
            kept += _for_us(known, [spelling.plain(known, line) for line in lines])
        else:
            kept += taken
    return kept


def _underscored(line: str) -> str:
    """A line with the flag's name as all programs have it: `--top-p=0.9` is `--top_p=0.9`."""
    name, equals, value = line.partition("=")
    if not re.fullmatch("--[a-z_-]+", name):
        return line
    bare = name[2:].replace("-", "_")
    bare = f"no{bare[3:]}" if bare.startswith("no_") else spelling.ALIASES.get(bare, bare)
    return f"--{bare}{equals}{value}"


def _lines_of(taken: list[str]) -> list[str]:
    name = taken[1] if len(taken) > 1 else taken[0].partition("=")[2]
    if "=" not in taken[0] and len(taken) == 1:
        raise JllamaError("--flagfile with no argument")
    return _read(name.strip())


def _read(name: str, within: tuple[str, ...] = ()) -> list[str]:
    """A flagfile's lines, those of a flagfile that it names in that one's place.

    As absl reads them, but with our messages, and with what is no file refused. A ready-made model's settings
    stand before all others, as where its name is typed.
    """
    if not name or name in within:
        return []
    kept = []
    for line in io.StringIO(streams.read_text(ready_made.settings(name)), newline=None):
        if re.match("--?flagfile=", line):
            kept += _read(line.partition("=")[2].strip(), (*within, name))
        elif re.match("--?model=", line) and (ready := ready_made.flagfile(line.partition("=")[2].strip())):
            kept = _read(str(ready)) + kept
        elif line.strip() and not line.startswith(("#", "//")):
            kept.append(line.strip())
    return kept


def _last_rival(known: flags.FlagValues, arguments: list[str]) -> list[str]:
    """The arguments without those of `RIVALS` that another one of them follows."""
    groups = [*_flags_with_values(known, arguments)]
    last = next((_name(taken[0]) for taken in reversed(groups) if _name(taken[0]) in RIVALS), "")
    kept = (taken for taken in groups if _name(taken[0]) not in RIVALS - {last})
    return [argument for taken in kept for argument in taken]


def _flags_with_values(known: flags.FlagValues, typed: list[str]) -> Iterator[list[str]]:
    """What was typed, each flag together with a value that stands behind it."""
    while typed:
        taken = typed[: 2 if _takes_the_next(known, typed) else 1]
        yield taken
        typed = typed[len(taken) :]


def _takes_the_next(known: flags.FlagValues, typed: list[str]) -> bool:
    """Whether the second argument is the value of the first.

    Raises:
      JllamaError: it is a flag itself: a value was forgotten.
    """
    name = typed[0].lstrip("-")  # with a value behind `=` it is no name
    takes = typed[0].startswith("-") and (name == "flagfile" or (name in known and not known[name].boolean))
    if takes and len(typed) > 1 and typed[1].startswith("--") and _is_flag(known, typed[1]):
        raise JllamaError(
            f"missing value for flag --{name}; if it is {typed[1]!r}, write --{name}={typed[1]}"
        )
    return takes


def _is_flag(known: flags.FlagValues, text: str) -> bool:
    name = _name(text)
    return name == "flagfile" or {name, name.removeprefix("no")} & (SHARED | set(known)) != set()


def _for_us(known: flags.FlagValues, lines: list[str]) -> list[str]:
    """A flagfile's lines but for other scripts' flags and what stands below them as their values."""
    kept, dropped = [], False
    for _ in _flags_with_values(known, lines):
        pass  # a flag without its value must not take the next line's flag for it
    for line in lines:
        if line.startswith("-"):
            dropped = _is_for_others(known, line)
        if not dropped:
            kept.append(line)
    return kept


def _is_for_others(known: flags.FlagValues, line: str) -> bool:
    name = _name(line)
    plain = name.removeprefix("no")
    return plain in SHARED and name not in known and plain not in known
