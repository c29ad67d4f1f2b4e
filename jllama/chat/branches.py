"""Messages, and the branches of a conversation that share their past."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jllama.answer import OneAtATime
from jllama.errors import JllamaError, nearest
from jllama.session import Session
from jllama.tools.definitions import Call

MAX_BRANCHES = 100


@dataclasses.dataclass(frozen=True)
class Round:
    """Calls that an answer made, with the text before them, and what they gave."""

    content: str
    calls: tuple[Call, ...]
    results: tuple[str, ...]  # one for each call

    def as_dicts(self) -> list[dict[str, Any]]:
        """For chat templates."""
        pairs = zip(self.calls, self.results, strict=True)
        told = [{"role": "tool", "name": c.name, "content": r, "tool_call_id": c.id} for c, r in pairs]
        return [_with_calls(self.content, self.calls), *told]


@dataclasses.dataclass(frozen=True)
class Message:
    """One message; of a generated answer also its token ids, which are the history that counts."""

    role: str  # "system", "user" or "assistant"
    content: str
    token_ids: tuple[int, ...] | None = None
    cut: bool = False  # an answer that did not end by itself: it can go on
    rounds: tuple[Round, ...] = ()  # of calls, before this text
    calls: tuple[Call, ...] = ()  # behind it, which wait for what they give

    def as_dict(self) -> dict[str, Any]:
        """For chat templates."""
        ids = {} if self.token_ids is None else {"token_ids": list(self.token_ids)}
        return {"role": self.role, "content": self.content, **ids}

    def as_dicts(self) -> list[dict[str, Any]]:
        """For chat templates, calls and their results as messages of their own."""
        before = [each for one in self.rounds for each in one.as_dicts()]
        if self.calls:
            return [*before, _with_calls(self.content, self.calls)]
        return before if before and not self.content else [*before, self.as_dict()]


def _with_calls(content: str, calls: tuple[Call, ...]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [call.as_dict() for call in calls]}


Turn = tuple[Message, Message]


@dataclasses.dataclass(kw_only=True)
class Branch:
    """One line of the conversation, and the cache that knows it."""

    session: Session
    system: str | None = None
    messages: tuple[Message, ...] = ()
    dropped: int = 0  # how many of the oldest turns the model no longer sees
    streams: OneAtATime = dataclasses.field(default_factory=OneAtATime, repr=False)

    def fork(self) -> "Branch":
        """Another line from here on; the session's cache is shared until one of them goes on."""
        self.streams.end()
        return dataclasses.replace(self, session=self.session.fork(), streams=OneAtATime())

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(zip(self.messages[::2], self.messages[1::2], strict=True))


class Branches:
    """Lines of a conversation by name, in the order of their birth; one of them is current."""

    def __init__(self, session: Session) -> None:
        """The empty branch `main`, with its cache."""
        self.branches = {"main": Branch(session=session)}
        self.current = "main"

    @property
    def branch(self) -> Branch:
        return self.branches[self.current]

    @property
    def messages(self) -> tuple[Message, ...]:
        """Question, answer, question, answer …: of the current branch, without the system message."""
        return self.branch.messages

    @property
    def turns(self) -> int:
        return len(self.messages) // 2

    def fork(self, name: str) -> None:
        """Starts a branch that shares the past of the current one, and goes there. It costs nothing.

        Raises:
          JllamaError: the name is taken or can't be used, or there are too many branches.
        """
        check_name(name)
        if name in self.branches:
            raise JllamaError(f"there is a branch {name!r} already")
        if len(self.branches) >= MAX_BRANCHES:
            raise JllamaError(f"there are {MAX_BRANCHES} branches, and each holds memory: no more")
        self.branches[name] = self.branch.fork()
        self.current = name

    def switch(self, branch: str | Branch) -> None:
        """Goes to another branch, given by its name or by itself.

        Raises:
          JllamaError: there is none of that name.
        """
        self.current = self._name_of(branch)

    def delete(self, branch: str | Branch) -> tuple[Turn, ...]:
        """Forgets a branch, given by its name or by itself, and returns the turns that no other branch has.

        Raises:
          JllamaError: there is none of that name, or it is the current one.
        """
        name = self._name_of(branch)
        if name == self.current:
            last = len(self.branches) == 1
            advice = "/clear begins anew" if last else "switch to another one first"
            raise JllamaError(f"{name!r} is the {'only' if last else 'current'} branch: {advice}")
        gone = self.branches.pop(name)
        gone.streams.end()
        kept = {_key(turn) for branch in self.branches.values() for turn in branch.turns}
        return tuple(turn for turn in gone.turns if _key(turn) not in kept)

    def tree(self) -> "TreeNode":
        """All branches, their common past once."""
        return build_tree({name: branch.turns for name, branch in self.branches.items()})

    def _name_of(self, given: str | Branch) -> str:
        name = next((name for name, branch in self.branches.items() if branch is given), given)
        there = f"there are {', '.join(self.branches)}"
        if isinstance(name, Branch):
            raise JllamaError(f"this branch is none of the conversation's, or was deleted; {there}")
        if not isinstance(name, str):
            raise JllamaError(f"give a branch by its name, not by a {type(name).__name__}; {there}")
        if name not in self.branches:
            raise JllamaError(f"no branch {name!r}{nearest(name, self.branches)}; {there}")
        return name


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeNode:
    """Turns that the same branches share, the branches that end with them, and how others go on."""

    turns: tuple[Turn, ...]
    ends: tuple[str, ...]
    children: tuple["TreeNode", ...]


def build_tree(branches: Mapping[str, tuple[Turn, ...]], start: int = 0) -> TreeNode:
    """The tree of branches whose first `start` turns are the same. Sharing is by identity, not by text."""
    paths = list(branches.values())
    end = start
    while all(len(path) > end and same_turn(path[end], paths[0][end]) for path in paths):
        end += 1
    ends = tuple(name for name, path in branches.items() if len(path) == end)
    groups: dict[tuple[int, int], dict[str, tuple[Turn, ...]]] = {}
    for name, path in branches.items():
        if len(path) > end:
            groups.setdefault(_key(path[end]), {})[name] = path
    children = tuple(build_tree(group, end) for group in groups.values())
    return TreeNode(turns=paths[0][start:end], ends=ends, children=children)


def same_turn(one: Turn, other: Turn) -> bool:
    """The same messages, not only the same words."""
    return _key(one) == _key(other)


def _key(turn: Turn) -> tuple[int, int]:
    return id(turn[0]), id(turn[1])


def check_name(name: str) -> None:
    """Refuses what can't be typed as a branch's name."""
    if not isinstance(name, str):
        raise JllamaError(f"a branch's name must be a text, not {type(name).__name__}")
    if not name or len(name) > 40 or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise JllamaError(f"branch name {name[:40]!r}: give 1 to 40 letters without blanks")
