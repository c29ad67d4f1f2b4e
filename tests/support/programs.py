"""The programs of `jllama.cli` as modules whose flags a test sets by itself."""

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

from absl import flags

DEFINED: dict[str, dict[str, flags.Flag]] = {}  # what each program defines, once it was imported


def program_module(name: str, package: str = "jllama.cli.") -> ModuleType:
    """A program, whose flags have the names of others': they go again, so that any other can be imported."""
    before = {*flags.FLAGS}
    try:
        return importlib.import_module(f"{package}{name}")
    finally:
        added = {*flags.FLAGS} - before
        DEFINED.setdefault(name, {flag: flags.FLAGS[flag] for flag in added})
        for flag in added:
            delattr(flags.FLAGS, flag)


class Flags(dict):
    """As absl's: by name, and as attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name].value


def flags_of(**values: Any) -> Flags:
    """Flags of these values."""
    return Flags({name: SimpleNamespace(value=value) for name, value in values.items()})


def defaults_of(program: str) -> dict[str, Any]:
    """The values of a program's flags where nothing is typed, by their long names."""
    return {flag.name: flag.default for flag in DEFINED[program].values()}


def bounds_of(program: str) -> dict[str, tuple[Any, Any]]:
    """The least and the greatest values that its flags take, where there are any."""
    parsers = {flag.name: flag.parser for flag in DEFINED[program].values()}
    found = {
        name: (getattr(parser, "lower_bound", None), getattr(parser, "upper_bound", None))
        for name, parser in parsers.items()
    }
    return {name: both for name, both in found.items() if both != (None, None)}
