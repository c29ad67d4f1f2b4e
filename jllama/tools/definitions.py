"""What a model may call, and a call that it made."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jllama.errors import JllamaError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MOST_TOOLS = 256
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function as a model is told of it.

    Raises:
      JllamaError: the name is none, or the parameters are no schema of an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=lambda: NO_PARAMETERS)  # JSON Schema
    strict: bool = False  # calls are written under its schema, also where the model may choose to call none

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise JllamaError(
                f"a tool's name is {self.name[:80]!r}: give 1 to 64 letters, digits, _, - or dots"
            )
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type", "object") != "object":
            raise JllamaError(f"the parameters of {self.name} must be a JSON Schema of type object")

    def as_dict(self) -> dict[str, Any]:
        """For chat templates."""
        told = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": told}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call as a model made it: `arguments` is the JSON of an object."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """As a message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def check_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools, of which no two share a name.

    Raises:
      JllamaError: two do, or there are too many.
    """
    if len(tools) > MOST_TOOLS:
        raise JllamaError(f"{len(tools)} tools are too many: give at most {MOST_TOOLS}")
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise JllamaError(f"two tools are called {twice!r}: give each a name of its own")
    return tuple(tools)
