"""The items of a response as they grow: thoughts, then the message; each change is an event."""

from collections.abc import Iterator
from typing import Any, ClassVar

from jllama.server.choice import CallEvent, Delta
from jllama.server.protocol.drawing import drawn_id
from jllama.tools.events import Arguments, Begin

Event = tuple[str, dict[str, Any]]


class Items:
    """What has been said, as items; `done` are those that are complete."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._open: Item | None = None

    def take(self, delta: Delta) -> Iterator[Event]:
        """The events of what has come."""
        if delta.thoughts:
            yield from self._grow(Thoughts, delta.thoughts)
        if delta.text:
            yield from self._grow(Message, delta.text)
        for event in delta.calls:
            yield from self._call(event)

    def end(self, status: str) -> Iterator[Event]:
        """The answer has ended: there is a call, or else a message in any case."""
        calls = any(item["type"] == "function_call" for item in self.done)
        if isinstance(self._open, Thoughts) or (self._open is None and not calls):
            yield from self._begin(Message())
        yield from self._close(status)

    def _call(self, event: CallEvent) -> Iterator[Event]:
        if isinstance(event, Begin):
            yield from self._begin(FunctionCall(event))
        elif isinstance(event, Arguments):
            assert self._open is not None
            yield self._open.grow(event.piece)
        else:
            yield from self._close("completed")

    def _grow(self, kind: "type[Item]", text: str) -> Iterator[Event]:
        if not isinstance(self._open, kind):
            yield from self._begin(kind())
        assert self._open is not None
        yield self._open.grow(text)

    def _begin(self, item: "Item") -> Iterator[Event]:
        yield from self._close("completed")
        self._open, item.place = item, len(self.done)
        yield from self._open.begin()

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self.done.append(self._open.whole(status))
            self._open = None


class Item:
    """One that grows by text, in a single part."""

    prefix: str
    part_kind: str
    events: str
    fields: ClassVar[dict[str, Any]]

    def __init__(self) -> None:
        self._id, self.place, self._text = f"{self.prefix}_{drawn_id()}", 0, ""

    def whole(self, status: str) -> dict[str, Any]:
        """All of it."""
        content = [self._part()] if status != "in_progress" else []
        return {"id": self._id, "status": status, "content": content, **self.fields}

    def begin(self) -> Iterator[Event]:
        """It is there, and empty."""
        yield "response.output_item.added", {"output_index": self.place, "item": self.whole("in_progress")}
        yield "response.content_part.added", {**self._where(), "part": self._part()}

    def grow(self, text: str) -> Event:
        """More of it."""
        self._text += text
        return f"response.{self.events}.delta", {**self._where(), "delta": text, **self._logprobs()}

    def end(self, status: str) -> Iterator[Event]:
        """It is complete."""
        yield f"response.{self.events}.done", {**self._where(), "text": self._text, **self._logprobs()}
        yield "response.content_part.done", {**self._where(), "part": self._part()}
        yield "response.output_item.done", {"output_index": self.place, "item": self.whole(status)}

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self.place, "content_index": 0}

    def _part(self) -> dict[str, Any]:
        return {"type": self.part_kind, "text": self._text}

    def _logprobs(self) -> dict[str, Any]:
        return {}


class Message(Item):
    """What the assistant says."""

    prefix, part_kind, events = "msg", "output_text", "output_text"
    fields: ClassVar = {"type": "message", "role": "assistant"}

    def _part(self) -> dict[str, Any]:
        return {**super()._part(), "annotations": [], "logprobs": []}

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []}


class Thoughts(Item):
    """What it thinks before."""

    prefix, part_kind, events = "rs", "reasoning_text", "reasoning_text"
    fields: ClassVar = {"type": "reasoning", "summary": []}


class FunctionCall(Item):
    """A call of one of the tools, whose arguments grow."""

    prefix = "fc"

    def __init__(self, begin: Begin) -> None:
        super().__init__()
        self._call_id, self._name = begin.id, begin.name

    def whole(self, status: str) -> dict[str, Any]:
        told = {"type": "function_call", "call_id": self._call_id, "name": self._name}
        return {"id": self._id, "status": status, **told, "arguments": self._text}

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self.place, "item": self.whole("in_progress")}

    def grow(self, text: str) -> Event:
        self._text += text
        return "response.function_call_arguments.delta", {**self._where(), "delta": text}

    def end(self, status: str) -> Iterator[Event]:
        told = {"name": self._name, "arguments": self._text}
        yield "response.function_call_arguments.done", {**self._where(), **told}
        yield "response.output_item.done", {"output_index": self.place, "item": self.whole(status)}

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self.place}
