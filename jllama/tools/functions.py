"""Python functions as tools: told to a model by their type hints, called with what fits these."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from jllama.errors import JllamaError
from jllama.tools.arguments import ArgumentsError, converted
from jllama.tools.definitions import Call, Tool, check_tools
from jllama.tools.schemas import hints_of, schema_of


class Toolbox:
    """Functions that a model may call, by name.

    Example:
      >>> box = Toolbox([get_weather])
      >>> box.run(Call("call_1", "get_weather", '{"city": "Oslo"}'))
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        """Reads names, docstrings and type hints.

        Raises:
          JllamaError: a hint is missing or of a kind that can't be told to a model; two names are the same.
        """
        if isinstance(functions, str) or not isinstance(functions, Collection):
            raise JllamaError(f"tools must be a list of functions, not {type(functions).__name__}")
        self.tools = check_tools([tool_of(function) for function in functions])
        self._functions = dict(zip((tool.name for tool in self.tools), functions, strict=True))

    def run(self, call: Call) -> tuple[str, bool]:
        """Calls the function.

        Returns:
          What it gave, a text as it is and all else as JSON, and True; or what went wrong, as JSON with the
          key `error`, and False: no such function, arguments that do not fit, an exception of its own.
        """
        try:
            function, arguments = self._bound(call)
        except ArgumentsError as error:
            return failed(str(error)), False
        try:
            return as_text(function(**arguments)), True
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and type(error) is not SystemExit:
                raise  # SIGTERM; a `sys.exit` of the function's own ends no chat
            return failed(f"{type(error).__name__}: {error}"), False

    def problem(self, call: Call) -> str | None:
        """What is wrong with a call before anything runs, as `run` gives it; None: nothing."""
        try:
            self._bound(call)
        except ArgumentsError as error:
            return failed(str(error))
        return None

    def _bound(self, call: Call) -> tuple[Callable[..., Any], dict[str, Any]]:
        function = self._functions.get(call.name)
        if function is None:
            have = ", ".join(self._functions) or "none"
            raise ArgumentsError(f"there is no tool {call.name!r}; there are {have}")
        return function, bound(function, call.arguments)


def failed(words: str) -> str:
    """A result that tells a model what went wrong."""
    return _sound(json.dumps({"error": words}, ensure_ascii=False))


def as_text(value: Any) -> str:
    """What a function returned, for a model; what JSON has no number for, NaN say, as a text."""
    if isinstance(value, str):
        return _sound(value)
    plain = (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
    told = json.dumps(plain, ensure_ascii=False, default=str)
    return _sound(json.dumps(json.loads(told, parse_constant=str), ensure_ascii=False))


def _sound(text: str) -> str:
    """Halves of surrogate pairs are no text: `?` stands for each."""
    return text.encode(errors="replace").decode()


def tool_of(function: Callable[..., Any]) -> Tool:
    """A function as a model is told of it: the first paragraph of its docstring, and its parameters.

    Raises:
      JllamaError: a hint is missing or of a kind that can't be told to a model; it is no plain function.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if any(kind(function) for kind in _WAITS):
        raise JllamaError(
            f"tool {name} is a generator or async, whose call gives nothing yet: write def, return"
        )
    properties, required = {}, []
    for parameter in _parameters(function, name):
        schema = schema_of(_hint(function, parameter.name, name), f"{name}({parameter.name})")
        properties[parameter.name] = schema
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return Tool(name=name, description=inspect.cleandoc(function.__doc__ or ""), parameters=parameters)


_WAITS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise JllamaError(f"tool {name} says no parameters: give a function with type hints") from None
    for parameter in found:
        if parameter.kind not in named:
            raise JllamaError(f"tool {name}: parameter {parameter} has no name that a model could give it by")
    return found


def _hint(function: Callable[..., Any], parameter: str, name: str) -> Any:
    hints = hints_of(function, f"tool {name}")
    if parameter not in hints:
        raise JllamaError(
            f"tool {name}: parameter {parameter} has no type hint: write {parameter}: str, or what it is"
        )
    return hints[parameter]


def bound(function: Callable[..., Any], arguments: str) -> dict[str, Any]:
    """A call's arguments by name, as the function takes them.

    Raises:
      ArgumentsError: they are no JSON, one is missing or unknown, or does not fit its type hint.
    """
    try:
        given = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ArgumentsError(f"the arguments are no JSON object: {error}") from None
    if not isinstance(given, dict):
        raise ArgumentsError("the arguments are no JSON object")
    known = {one.name: one for one in _parameters(function, "")}
    for name in given.keys() - known.keys():
        raise ArgumentsError(f"there is no parameter {name!r}; there are {', '.join(known) or 'none'}")
    for name, one in known.items():
        if name not in given and one.default is inspect.Parameter.empty:
            raise ArgumentsError(f"parameter {name!r} is missing")
    hints = hints_of(function, "")
    return {name: converted(value, hints[name], name) for name, value in given.items()}
