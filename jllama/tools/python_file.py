"""Tools out of a file of Python."""

import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from jllama.errors import JllamaError

MODULE = "jllama_tools"  # what the file is called while it runs


def load_functions(path: Path) -> list[Callable[..., Any]]:
    """The functions that a file defines itself, in their order, but for names that begin with an underscore.

    The file is run, as `python FILE` would.

    Raises:
      JllamaError: it can't be read or fails, or defines none.
    """
    module = _run(path)
    found = [value for name, value in vars(module).items() if not name.startswith("_") and _is_own(value)]
    if not found:
        raise JllamaError(f"{path} defines no function: give a file with functions that have type hints")
    return found


def _is_own(value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == MODULE


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise JllamaError(f"there is no file {path}")
    loader = SourceFileLoader(MODULE, str(path))
    spec = spec_from_loader(MODULE, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[MODULE] = module  # where dataclasses and type hints look names up
    try:
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = before
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise  # SIGTERM
        raise JllamaError(f"{path} fails{_line(error, path)}: {type(error).__name__}: {error}") from None
    return module


def _line(error: BaseException, path: Path) -> str:
    """Where in the file."""
    at = error.lineno if isinstance(error, SyntaxError) else None
    frames = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(path)]
    number = at or (frames[-1] if frames else None)
    return f" in line {number}" if number else ""
