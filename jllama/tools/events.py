"""What a reader of calls tells, in the order in which it comes."""

import dataclasses
from collections.abc import Iterable

from jllama.tools.definitions import Call


@dataclasses.dataclass(frozen=True)
class Begin:
    """A call begins; `index` counts the calls of an answer."""

    index: int
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A piece of a call's arguments: all of them make up the JSON of an object."""

    index: int
    piece: str


@dataclasses.dataclass(frozen=True)
class End:
    """A call is complete."""

    index: int


Event = str | Begin | Arguments | End  # a text is no part of any call


def joined(events: Iterable[Event]) -> list[Event]:
    """Texts side by side are one."""
    told: list[Event] = []
    for event in events:
        if isinstance(event, str) and told and isinstance(told[-1], str):
            told[-1] += event
        else:
            told.append(event)
    return told


def calls_of(events: Iterable[Event]) -> tuple[str, list[Call]]:
    """The text and the calls of a whole answer; a call that was cut has what came of its arguments."""
    text, heads, pieces = "", [], {}
    for event in events:
        if isinstance(event, str):
            text += event
        elif isinstance(event, Begin):
            heads.append(event)
            pieces[event.index] = ""
        elif isinstance(event, Arguments):
            pieces[event.index] += event.piece
    return text, [Call(head.id, head.name, pieces[head.index]) for head in heads]
