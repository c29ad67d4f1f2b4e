"""How models write calls: the words around names and arguments, for each family.

A format is data: what enforces it (`grammar`), what writes calls into a prompt whose template does not
(`written`), and what reads them (`parser`) all look here.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from jllama.text.template.traced_text import OWN, Traced, join_traced
from jllama.tools.definitions import Call, Tool

SpecialId = Callable[[str], int | None]  # the id of the special token that is spelt so


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One way: `begin call between call end`, each call as `before head NAME middle ARGUMENTS tail after`.

    Attributes:
      name: for people.
      marks: any of them opens a call; without any, a call is recognised where the answer begins with it.
      close: closes what a mark opened; models forget it.
      bare: an answer that begins with JSON may be a call too.
      several: calls that one answer may hold; False where the template writes a single one.
    """

    name: str
    marks: tuple[str, ...] = ()
    close: str = ""
    bare: bool = False
    several: bool = True
    begin: str = ""
    before: str = ""
    head: str = '{"name": "'
    middle: str = '", "arguments": '
    tail: str = "}"
    after: str = ""
    between: str = "\n"
    end: str = ""

    def special_ids(self, special_id: SpecialId) -> tuple[int, ...]:
        """Of the words around calls those that are special tokens, which otherwise never show."""
        texts = (*self.marks, self.close, *(() if self.head else ("[ARGS]", "[CALL_ID]")))
        return tuple(token for text in texts if (token := special_id(text)) is not None)

    @property
    def opener(self) -> tuple[str, str]:
        """What stands before the first call's name and arguments: its mark, "" without one, and the rest."""
        opening = self.begin + self.before
        mark = next((mark for mark in self.marks if opening.startswith(mark)), "")
        return mark, opening.removeprefix(mark)

    def written(self, calls: Sequence[Call]) -> str:
        """The calls as the model writes them, of which names and arguments are traced as given."""
        each = [self._opened(call) + Traced(self.tail + self.after, OWN) for call in calls]
        between = [Traced(self.between, OWN)] * (len(each) - 1)
        inner = [part for pair in zip(each, [*between, Traced("")], strict=True) for part in pair]
        return join_traced([Traced(self.begin, OWN), *inner, Traced(self.end, OWN)])

    def opening(self, call: Call) -> str:
        """How the first call begins, up to the end of its arguments."""
        return str.__str__(Traced(self.begin, OWN) + self._opened(call))

    def _opened(self, call: Call) -> str:
        own = [Traced(text, OWN) for text in (self.before + self.head, self.middle)]
        return join_traced([own[0], Traced(call.name), own[1], Traced(call.arguments)])


TAGS: dict[str, Any] = dict(marks=("<tool_call>",), close="</tool_call>")
MISTRAL: dict[str, Any] = dict(marks=("[TOOL_CALLS]",))
PHI_MARKS: dict[str, Any] = dict(marks=("<|tool_call|>", "functools"), close="<|/tool_call|>")

HERMES = Format(name="hermes", **TAGS, before="<tool_call>\n", after="\n</tool_call>")
HERMES_TIGHT = Format(name="hermes-tight", **TAGS, before="<tool_call>", after="</tool_call>")
SMOLLM2 = Format(name="smollm2", **TAGS, begin="<tool_call>[", between=", ", end="]</tool_call>")
LLAMA = Format(name="llama", marks=("<|python_tag|>",), bare=True, several=False, middle='", "parameters": ')
MISTRAL_LIST = Format(name="mistral-list", **MISTRAL, begin="[TOOL_CALLS] [", between=", ", end="]")
MISTRAL_TIGHT = Format(name="mistral-tight", **MISTRAL, begin="[TOOL_CALLS][", between=", ", end="]")
MISTRAL_ARGS = Format(
    name="mistral-args", **MISTRAL, before="[TOOL_CALLS]", head="", middle="[ARGS]", tail="", between=""
)
PHI = Format(name="phi", **PHI_MARKS, begin="<|tool_call|>[", between=", ", end="]<|/tool_call|>")
PHI_EACH = Format(name="phi-each", **PHI_MARKS, before="<|tool_call|>", after="<|/tool_call|>", between="")
GENERIC = Format(name="generic", bare=True)
ALL = (
    *(HERMES, HERMES_TIGHT, SMOLLM2, LLAMA, MISTRAL_LIST, MISTRAL_TIGHT, MISTRAL_ARGS),
    *(PHI, PHI_EACH, GENERIC),
)

# What a template's source holds, and how its model may write then; the first line that fits counts.
_BY_SOURCE: tuple[tuple[tuple[str, ...], tuple[Format, ...]], ...] = (
    (("<function=",), ()),  # parameters as XML
    (("<function_calls>",), ()),  # as Python
    (("<|tool_call>",), ()),  # Gemma 4's own
    (("tool▁call",), ()),
    (("[TOOL_CALLS]", "[ARGS]"), (MISTRAL_ARGS,)),
    (("[TOOL_CALLS]",), (MISTRAL_LIST, MISTRAL_TIGHT)),
    (("<tool_call>",), (HERMES, HERMES_TIGHT, SMOLLM2)),
    (("<|tool_call|>",), (PHI, PHI_EACH)),
    (("<|tool|>",), (PHI, PHI_EACH)),
    (("functools",), (PHI, PHI_EACH)),
    (("<|python_tag|>",), (LLAMA,)),
    (("ipython", "<|eot_id|>"), (LLAMA,)),
    (("named SmolLM",), (SMOLLM2,)),
)


def formats_of(source: str) -> tuple[Format, ...] | None:
    """How a template's model may write, the likeliest first; (): not known here; None: nothing tells."""
    return next((found for words, found in _BY_SOURCE if all(word in source for word in words)), None)


def instructions(format: Format, tools: Sequence[Tool]) -> str:
    """A system text for models whose template takes no tools: which there are, and how to call one."""
    listed = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
    shown = [Call("", "NAME", '{"PARAMETER": VALUE}')] * (2 if format.several else 1)
    several = " Several calls at once are written so:" if format.several else ""
    words = (
        f"You can call these functions, each given with the JSON Schema of its parameters:\n{listed}\n\n"
        f"To call one, answer with nothing but this:\n{format.written(shown[:1])}"
    )
    more = f"\n{several.strip()}\n{format.written(shown)}" if several else ""
    return f"{words}{more}\nWhat it returns comes back to you. If you need none of them, answer as usual."
