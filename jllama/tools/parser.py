"""Calls out of a model's text, as it comes: pieces in, events out, the same however the text is cut.

What is no call stays text, as the model wrote it. A call is told when it is complete and its arguments are
JSON; one that a grammar enforces is `sure`, and its arguments are told as they come.
"""

import re
from collections.abc import Callable, Collection, Iterable

from jllama.tools.call_objects import named_call, read_call
from jllama.tools.events import Arguments, Begin, End, Event, joined
from jllama.tools.formats import Format
from jllama.tools.json_end import JsonEnd

_HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})\s*(?:\[CALL_ID\]\w*)?\s*(?:\[ARGS\])?\s*(?=\{)")
_MAYBE_NAMED = re.compile(r"\s*[A-Za-z0-9_.-]{0,64}\s*(\[[A-Z_]*\]?\w*)*\s*")
_NAMES_FOLLOW = "[TOOL_CALLS]"
_SEPARATORS = " \t\r\n,;"


class CallParser:
    """Reads one answer."""

    def __init__(
        self,
        format: Format,
        names: Collection[str],
        new_id: Callable[[], str],
        *,
        sure: bool = False,
        must: bool = False,
    ) -> None:
        """Before its first piece.

        Args:
          format: how the model writes calls.
          names: of the tools: JSON that no mark announces is a call only if it names one of them.
          new_id: makes the id of a call.
          sure: calls are written under a grammar, so that their arguments may be told as they come.
          must: the answer is calls alone, under a grammar.
        """
        self._format, self._names, self._new_id, self._sure = format, names, new_id, sure
        self._must = must
        self._state: Callable[[bool], Iterable[Event] | None] = self._text
        self._held = self._opener = ""
        self._begins = format.bare  # JSON may be a call here without a mark
        self._is_behind = self._in_list = False
        self._end, self._scanned = JsonEnd(), 0
        self.count = 0  # calls that were begun

    def push(self, text: str, *, final: bool = False) -> list[Event]:
        """Takes the next piece; gives what is certain now. `final`: nothing follows."""
        self._held += text
        events = self._events(False)
        if final and self._is_begun:
            self._held = self._opener = ""
        return joined(events + self._events(True) if final else events)

    def _events(self, final: bool) -> list[Event]:
        events: list[Event] = []
        while (more := self._state(final)) is not None:
            events += more
        return events

    @property
    def _is_begun(self) -> bool:
        """Whether what is held is the beginning of a call for sure, which is no text where it was cut."""
        return self._sure and (self._must or self.count > 0 or self._state == self._body)

    @property
    def is_amid(self) -> bool:
        """Whether a call that was begun has not ended."""
        return self._state == self._arguments

    def _text(self, final: bool) -> Iterable[Event] | None:
        """Text, until a mark or, at the beginning, JSON opens a call."""
        if self._begins:
            begun = self._held.lstrip()
            if not (begun or final):
                return None
            self._begins = False
            if begun[:1] in ("{", "["):
                return self._open(len(self._held) - len(begun), "")
        found = [(at, mark) for mark in self._format.marks if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            return self._open(at, mark)
        kept = 0 if final else _ambiguous(self._held, self._format.marks)
        sure, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._said(sure) if sure else None

    def _said(self, text: str) -> list[Event]:
        """Text of the answer; blanks behind a call belong to neither."""
        shown = text.lstrip() if self._is_behind else text
        self._is_behind = self._is_behind and not shown
        return [shown] if shown else []

    def _open(self, at: int, mark: str) -> list[Event]:
        """A call may begin; what opened it, with the blanks before, is text again if none does."""
        text = self._held[:at].rstrip()
        self._opener = self._held[len(text) : at] + mark
        self._held, self._state, self._in_list = self._held[at + len(mark) :], self._body, False
        self._restart()
        return self._said(text) if text else []

    def _restart(self) -> None:
        self._end, self._scanned = JsonEnd(), 0

    def _body(self, final: bool) -> Iterable[Event] | None:
        """Behind a mark: an object, a list of them, or a name with its arguments."""
        body = self._held.lstrip()
        if body[:1] == "{":
            return self._object(final)
        if body[:1] == "[" and not self._in_list:
            self._opener += self._held[: len(self._held) - len(body)] + "["
            self._held, self._in_list = body[1:], True
            return []
        if body[:1] == "]" and self._in_list:
            self._state = self._behind
            return []
        if self._opener.endswith(_NAMES_FOLLOW):
            return self._named(final)
        return self._release() if body or final else None

    def _named(self, final: bool) -> Iterable[Event] | None:
        found = _NAMED.match(self._held)
        if found is None:
            possible = _MAYBE_NAMED.fullmatch(self._held) and not final
            return None if possible else self._release()
        if self._sure:
            return self._stream(found[1], found.end())
        end = self._end.feed(self._held, max(found.end(), self._scanned))
        self._scanned = len(self._held)
        if end is None:
            return self._release() if final else None
        return self._complete(named_call(found[1], self._held[found.end() : end]), end)

    def _object(self, final: bool) -> Iterable[Event] | None:
        """One of `{"name": …, "arguments": …}`, its keys in any order."""
        start = len(self._held) - len(self._held.lstrip())
        if self._sure and (found := _HEAD.match(self._held, start)):
            return self._stream(found[1], found.end())
        end = self._end.feed(self._held, max(start, self._scanned))
        self._scanned = len(self._held)
        if end is None:
            return self._release() if final else None
        return self._complete(self._read(self._held[start:end]), end)

    def _read(self, text: str) -> tuple[str, str] | None:
        """Name and arguments of a call; without a mark, only of a tool that there is."""
        found = read_call(text)
        announced = bool(self._opener.strip(" \t\r\n[")) or self.count > 0
        return found if found and (announced or found[0] in self._names) else None

    def _complete(self, found: tuple[str, str] | None, end: int) -> list[Event]:
        if found is None:
            return self._release()
        self._held, self._state = self._held[end:], self._behind
        begin = self._begin(found[0])
        return [begin, Arguments(begin.index, found[1]), End(begin.index)]

    def _begin(self, name: str) -> Begin:
        self.count, self._opener = self.count + 1, ""
        return Begin(self.count - 1, self._new_id(), name)

    def _release(self) -> list[Event]:
        """It was no call: what opened it, and the rest, are text; a mark in that may open another one."""
        opener, self._opener, self._state, self._in_list = self._opener, "", self._text, False
        if not opener and self._held:
            opener, self._held = self._held[0], self._held[1:]
        return self._said(opener) if opener else []

    def _stream(self, name: str, at: int) -> list[Event]:
        """A call that is sure: its arguments follow."""
        self._held, self._state = self._held[at:], self._arguments
        self._restart()
        return [self._begin(name)]

    def _arguments(self, final: bool) -> Iterable[Event] | None:
        end, index = self._end.feed(self._held), self.count - 1
        if end is None:
            piece, self._held = self._held, ""
            return [Arguments(index, piece)] if piece else None
        piece, self._held = self._held[:end], self._held[end:]
        self._state = self._tail if self._format.head else self._behind
        return [Arguments(index, piece), End(index)]

    def _tail(self, final: bool) -> Iterable[Event] | None:
        """The brace behind the arguments."""
        rest = self._held.lstrip()
        if not rest and not final:
            return None
        self._held, self._state = rest.removeprefix("}"), self._behind
        return []

    def _behind(self, final: bool) -> Iterable[Event] | None:
        """Another call, the end of them, or text."""
        self._is_behind = True
        rest = self._held.lstrip(_SEPARATORS)
        if rest.startswith("{"):
            self._held, self._state = rest, self._body
            self._restart()
        elif rest.startswith("]") and self._in_list:
            self._held, self._in_list = rest[1:], False
        elif self._format.close and rest.startswith(self._format.close):
            self._held, self._state = rest.removeprefix(self._format.close), self._text
        elif final and self._format.close.startswith(rest):  # nothing, or what closes it was cut
            self._held, self._state = "", self._text
        elif final or (rest and not self._format.close.startswith(rest)):
            self._state, self._in_list = self._text, False
        else:
            return None
        return []


def _ambiguous(text: str, marks: Iterable[str]) -> int:
    """How much of a text's end may belong to a mark: blanks, and the beginning of one."""
    sizes = range(min(max(map(len, marks), default=1) - 1, len(text)), 0, -1)
    begun = next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in marks)), 0)
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip()) if any(marks) else begun
