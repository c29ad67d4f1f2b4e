"""What hands type -> flags as absl knows them: bare words, single letters, dashes, ready-made names."""

from collections.abc import Sequence

from absl import flags

from jllama.cli import ready_made
from jllama.errors import JllamaError

ALIASES = {"temp": "temperature", "n_predict": "max_new_tokens", "max_tokens": "max_new_tokens"}


def plain(known: flags.FlagValues, word: str) -> str:
    """A flag under its own name: `--max-new-tokens` and `--temp` are other spellings, `-n` a short one."""
    name, equals, value = word.partition("=")
    if not name.startswith("-") or name.strip("-") == "":
        return word
    bare = name.lstrip("-").replace("-", "_")
    if len(bare) == 1:
        full = bare if bare in known else ""
        return f"--{known[full].name}{equals}{value}" if full and name == f"-{bare}" else word
    bare = ALIASES.get(bare, bare)
    is_known = bare in known or bare.removeprefix("no") in known
    return f"--{bare}{equals}{value}" if is_known else word


def with_words_named(groups: Sequence[list[str]], places: Sequence[str]) -> list[str]:
    """The arguments with each bare word as the flag whose place it takes.

    A ready-made model is a flagfile: it stands first, so that whatever was typed wins.

    Args:
      groups: what was typed, each flag together with its value; behind a lone `--` all are words.
      places: the flags that bare words set, in this order, but for those that were typed themselves.

    Raises:
      JllamaError: there are more words than places.
    """
    end = next((at for at, group in enumerate(groups) if group == ["--"]), len(groups))
    typed = {group[0].lstrip("-").partition("=")[0] for group in groups[:end] if group[0].startswith("-")}
    free = [name for name in places if name not in typed]
    first: list[str] = []
    rest: list[str] = []
    for at, group in enumerate([*groups[:end], *groups[end + 1 :]]):
        is_word = at >= end or group[0] == "-" or not group[0].startswith("-")
        named = [f"--{_place(group[0], free, places)}={group[0]}"] if is_word else group
        ready = _ready_made(named)
        (first if ready else rest).extend(ready or named)
    return [*first, *rest]


def _place(word: str, free: list[str], places: Sequence[str]) -> str:
    """The flag that a word sets, which is taken then."""
    if not free:
        usual = " ".join(place.upper() for place in places) or "no words"
        raise JllamaError(f"unexpected argument {word!r}; expected {usual}, and flags: see --help")
    return free.pop(0)


def _ready_made(group: list[str]) -> list[str]:
    name, equals, value = group[0].partition("=")
    if name.lstrip("-") != "model":
        return []
    found = ready_made.flagfile(value if equals else "".join(group[1:]))
    return [f"--flagfile={found}"] if found else []
