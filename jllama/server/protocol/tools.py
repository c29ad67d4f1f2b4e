"""Tools of a request: which functions the model may call in its answer, and whether it must."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jllama.errors import JllamaError
from jllama.server.protocol.errors import ApiError
from jllama.server.protocol.parsing import convert
from jllama.tools.definitions import Tool, check_tools

WORDS = ("none", "auto", "required")


class Function(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One function, as its maker describes it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        """The same; without parameters it takes none."""
        given = {} if self.parameters is None else {"parameters": self.parameters}
        return Tool(name=self.name, description=self.description or "", strict=bool(self.strict), **given)


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class ChatTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As `/v1/chat/completions` writes it."""

    function: Function
    type: Literal["function"] = "function"

    def tool(self) -> Tool:
        """What it describes."""
        return self.function.tool()


class ChatChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The function that must be called, as `/v1/chat/completions` names it."""

    function: Chosen
    type: Literal["function"] = "function"

    @property
    def name(self) -> str:
        """Its name."""
        return self.function.name


class FlatTool(Function, kw_only=True):
    """As `/v1/responses` writes it."""

    type: Literal["function"] = "function"


class FlatChoice(Chosen, kw_only=True):
    """The function that must be called, as `/v1/responses` names it."""

    type: Literal["function"] = "function"


class ChatAllowed(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which of the functions may be called, as `/v1/chat/completions` lists them."""

    tools: Annotated[list[ChatChoice], Meta(min_length=1)]
    mode: Literal["auto", "required"]


class FlatAllowed(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The same, as `/v1/responses` does."""

    tools: Annotated[list[FlatChoice], Meta(min_length=1)]
    mode: Literal["auto", "required"]
    type: Literal["allowed_tools"] = "allowed_tools"


class ChatAllows(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What holds `ChatAllowed`."""

    allowed_tools: ChatAllowed
    type: Literal["allowed_tools"] = "allowed_tools"


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """What of its tools an answer may or must use.

    Attributes:
      tools: those of the request.
      choice: `none`, `auto`, `required`, or the name of the one that must be called.
      parallel: an answer may hold several calls.
      allowed: names of those that may be called; the model is told of all. None: any.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "none"
    parallel: bool = True
    allowed: frozenset[str] | None = None

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Those that the model is told of."""
        return () if self.choice == "none" else self.tools

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that it may call."""
        named = tuple(tool for tool in self.tools if tool.name == self.choice)
        return named or tuple(one for one in self.offered if self.allowed is None or one.name in self.allowed)

    @property
    def several(self) -> bool:
        """There may be more calls than one: of a tool that is named there is one."""
        return self.parallel and self.choice in WORDS

    @property
    def required(self) -> bool:
        """It must."""
        return self.choice not in ("none", "auto")

    @property
    def enforced(self) -> bool:
        """What it calls is one of those that it may call, and fits the schemas for sure."""
        limited = self.callable != self.offered
        return self.required or limited or any(tool.strict for tool in self.offered)


def tool_use(
    tools: Sequence[Any] | None,
    choice: str | dict[str, Any] | None,
    parallel: bool | None,
    kinds: tuple[type, type, type] = (ChatTool, ChatChoice, ChatAllows),
) -> ToolUse:
    """What a request says of its tools.

    Args:
      tools: its own, or nothing.
      choice: a word, a function's name in its own way or a list of them; `auto` where nothing is said.
      parallel: whether there may be several calls; nothing is yes.
      kinds: how this route writes a tool, a choice and a list of what is allowed.

    Raises:
      ApiError: 400, with the place of what is wrong.
    """
    given = [_tool(one, kinds[0], f"tools[{at}]") for at, one in enumerate(tools or ())]
    try:
        known = check_tools(given)
    except JllamaError as error:
        raise ApiError(400, str(error), param="tools") from None
    chosen, listed = _choice("auto" if choice is None else choice, kinds[1:])
    names = [tool.name for tool in known]
    unknown = [name for name in (chosen, *(listed or ())) if name not in (*WORDS, *names)]
    if unknown or (chosen == "required" and not names):
        have = f"there are {', '.join(names)}" if names else "there are no tools"
        words = f"tool_choice: {(unknown or [chosen])[0][:80]!r} can't be called: {have}"
        raise ApiError(400, words, param="tool_choice")
    allowed = None if listed is None else frozenset(listed)
    return ToolUse(known, chosen if known else "none", parallel is not False, allowed)


def _tool(given: Any, kind: type, where: str) -> Tool:
    if isinstance(given, dict) and given.get("type") not in (None, "function"):
        words = f"{where}: tools of type {str(given['type'])[:80]!r} are not supported: give functions"
        raise ApiError(400, words, param=where)
    try:
        return convert(_present(given), kind, where).tool()
    except JllamaError as error:
        raise ApiError(400, f"{where}: {error}", param=where) from None


def _present(given: Any) -> Any:
    """Without nulls, which are as good as absent."""
    return (
        {key: value for key, value in given.items() if value is not None}
        if isinstance(given, dict)
        else given
    )


def _choice(given: str | dict[str, Any], kinds: tuple[type, type]) -> tuple[str, list[str] | None]:
    """A word or a name, and the names of those that may be called, if there is a list of them."""
    kind = given.get("type", "function") if isinstance(given, dict) else "function"
    if kind not in ("function", "allowed_tools"):
        words = f"tool_choice of type {str(kind)[:80]!r} is not supported: give a function or allowed_tools"
        raise ApiError(400, words, param="tool_choice.type")
    if isinstance(given, dict) and kind == "allowed_tools":
        read = convert(given, kinds[1], "tool_choice")
        listed = getattr(read, "allowed_tools", read)
        return listed.mode, [one.name for one in listed.tools]
    if isinstance(given, dict):
        return convert(given, kinds[0], "tool_choice").name, None
    if given not in WORDS:
        words = f"tool_choice: {given[:80]!r} is none of {', '.join(WORDS)}, nor a function"
        raise ApiError(400, words, param="tool_choice")
    return given, None
