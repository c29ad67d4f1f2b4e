"""What hands type -> flags as absl knows them: bare words, single letters, dashes, ready-made names."""

import re
from collections.abc import Iterator, Sequence

from absl import flags

from jllama.cli import ready_made
from jllama.errors import JllamaError, nearest

ALIASES = {"temp": "temperature", "n_predict": "max_new_tokens", "max_tokens": "max_new_tokens"}
FROM_STANDARD_INPUT = {"prompt": "prompt_file"}  # where a lone `-` goes in place of the word itself


def plain(known: flags.FlagValues, word: str) -> str:
    """A flag under its own name: `--max-new-tokens` and `--temp` are other spellings, `-n` a short one."""
    name, equals, value = word.partition("=")
    if not name.startswith("-") or name.strip("-") == "":
        return word
    bare = name.lstrip("-").replace("-", "_")
    if attached := re.fullmatch(r"-([a-z])(\d[\d.]*)", word):  # `-n3`
        letter, number = attached.groups()
        return f"--{known[letter].name}={number}" if letter in known else word
    if len(bare) == 1:
        full = bare if bare in known else ""
        return f"--{known[full].name}{equals}{value}" if full and name == f"-{bare}" else word
    bare = ALIASES.get(bare, bare)
    if bare.startswith("no_") and bare[3:] in known and known[bare[3:]].boolean:
        bare = f"no{bare[3:]}"
    return f"--{bare}{equals}{value}" if _is_known(known, bare) else word


def _is_known(known: flags.FlagValues, bare: str) -> bool:
    return bare in known or bare.removeprefix("no") in known or bare == "flagfile"


def with_words_named(
    known: flags.FlagValues, groups: Sequence[list[str]], places: Sequence[str]
) -> list[str]:
    """The arguments with each bare word as the flag whose place it takes.

    A ready-made model is a flagfile: it stands first, so that whatever was typed wins. Beside a model that
    was typed by its flag, a first word that names a ready-made one lends its settings.

    Args:
      known: all flags of the program.
      groups: what was typed, each flag together with its value; behind a lone `--` all are words.
      places: the flags that bare words set, in this order, but for those that were typed themselves.

    Raises:
      JllamaError: there are more words than places, maybe because a flag is unknown.
    """
    end = next((at for at, group in enumerate(groups) if group == ["--"]), len(groups))
    before, behind = groups[:end], [group[0] for group in groups[end + 1 :]]
    lender = _lender(before, places)
    typed = {_bare(group) for group in before if not _is_word(group)}
    free = [place for place in places if place not in typed]
    words = [*(group[0] for group in before if _is_word(group) and group is not lender), *behind]
    if len(words) > len(free):
        raise JllamaError(_too_many(known, before, words[len(free)], places))
    named = iter(free)
    all_flags = [_as_flag(group, named, is_model=group is lender) for group in before]
    all_flags += [[f"--{next(named)}={word}"] for word in behind]
    ready = [_ready_made(group) for group in all_flags]
    rest = [word for group, found in zip(all_flags, ready, strict=True) if not found for word in group]
    return [*(word for found in ready for word in found), *rest]


def _as_flag(group: list[str], named: Iterator[str], is_model: bool) -> list[str]:
    if is_model or not _is_word(group):
        return [f"--model={group[0]}"] if is_model else group
    place = next(named)
    return [f"--{FROM_STANDARD_INPUT.get(place, place) if group == ['-'] else place}={group[0]}"]


def _is_word(group: list[str]) -> bool:
    return group[0] == "-" or not group[0].startswith("-")


def _bare(group: list[str]) -> str:
    return group[0].lstrip("-").partition("=")[0]


def _lender(groups: Sequence[list[str]], places: Sequence[str]) -> list[str] | None:
    """`story` of `story --model=DIR`; none where that model is ready-made itself, and the word a prompt."""
    models = [group for group in groups if not _is_word(group) and _bare(group) == "model"]
    word = next(filter(_is_word, groups), None)
    if "model" not in places or not models or word is None or any(map(_ready_made, models)):
        return None
    return word if _ready_made([f"--model={word[0]}"]) else None


def _too_many(known: flags.FlagValues, groups: Sequence[list[str]], word: str, places: Sequence[str]) -> str:
    """What is wrong with a word that has no place: it may be the value of a flag that does not exist."""
    for group in groups:
        if not _is_word(group) and not _is_known(known, _bare(group)):
            return f"Unknown command line flag {_bare(group)!r}{nearest(_bare(group), known)}"
    usual = " ".join(place.upper() for place in places) or "no words"
    return f"unexpected argument {word!r}; expected {usual}, and flags: see --help"


def _ready_made(group: list[str]) -> list[str]:
    name, equals, value = group[0].partition("=")
    if name.lstrip("-") != "model":
        return []
    found = ready_made.flagfile(value if equals else "".join(group[1:]))
    return [f"--flagfile={found}"] if found else []
