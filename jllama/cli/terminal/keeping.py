"""The chat's commands that keep what was said: branches and files."""

from jllama.chat.archive import archive
from jllama.chat.archive.document import read_document
from jllama.chat.archive.files import resolved
from jllama.cli.terminal import wording
from jllama.cli.terminal.state import Chat
from jllama.errors import JllamaError

CACHE = "--cache"


def fork(chat: Chat, argument: str) -> None:
    """/fork NAME: starts a branch here; the old one stays as it is"""
    if not argument:
        raise JllamaError("give the branch a name: /fork NAME")
    before = chat.conversation.current
    chat.conversation.fork(argument)
    chat.screen.say(f"on branch {argument}; /switch {before} goes back")


def switch(chat: Chat, argument: str) -> None:
    """/switch NAME: goes to another branch"""
    conversation = chat.conversation
    if not argument:
        raise JllamaError(f"which branch? /switch NAME; there are {', '.join(conversation.branches)}")
    conversation.switch(argument)
    last = f": {wording.one_line(conversation.messages[-2].content)}" if conversation.messages else ""
    chat.screen.say(f"on branch {argument}, {wording.turns(conversation.turns)}{last}")


def delete(chat: Chat, argument: str) -> None:
    """/delete NAME: forgets a branch, but not the current one"""
    if not argument:
        others = [name for name in chat.conversation.branches if name != chat.conversation.current]
        names = ", ".join(others)
        raise JllamaError(
            f"which branch? /delete NAME; {f'of {names}' if others else 'there is no other one'}"
        )
    is_current = argument == chat.conversation.current  # it is refused
    if not is_current and not chat.may_drop(f"/delete {argument}", argument):
        return
    lost = chat.conversation.delete(argument)
    with_it = f", with {wording.turns(len(lost))} that no other branch has" if lost else ""
    chat.screen.say(f"deleted {argument}{with_it}")


def tree(chat: Chat, argument: str) -> None:
    """/tree: shows the branches and their common past"""
    chat.screen.say(wording.tree(chat.conversation))


def save(chat: Chat, argument: str) -> None:
    """/save [FILE] [--cache]: saves all branches, again to the same FILE; --cache: also what was computed"""
    name, cache = _name_and_flag(argument)
    path = _path(name, "/save FILE", chat.file)
    files = archive.save(chat.conversation, chat.settings, path, cache=cache)
    chat.mark_saved(path)
    chat.screen.say("saved " + " and ".join(map(str, files)))


def load(chat: Chat, argument: str) -> None:
    """/load FILE: goes on with a saved conversation, its settings and its cache"""
    path = _path(argument, "/load FILE")
    if chat.unsaved_turns():
        read_document(resolved(path))  # what can't be read drops nothing
    if not chat.may_drop("/load"):
        return
    chat.settings, remarks = archive.load(chat.conversation, path)
    chat.mark_saved(path)
    for remark in remarks:
        chat.screen.say(remark)
    branches, turns = len(chat.conversation.branches), wording.turns(chat.conversation.turns)
    chat.screen.say(
        f"on branch {chat.conversation.current}, {turns}" + f", {branches} branches" * (branches > 1)
    )


def _name_and_flag(argument: str) -> tuple[str, bool]:
    """What stands before or behind `--cache`, and whether that stands there.

    Raises:
      JllamaError: another word looks like a flag; in quotes it is a part of the name.
    """
    words = argument.split(" ")
    cache = CACHE in (words[0], words[-1])
    name = " ".join(words[words[0] == CACHE : len(words) - (words[-1] == CACHE)]).strip()
    wrong = [word for word in name.split() if word.startswith("--")]
    if wrong and not _is_quoted(name):
        remedy = "/save [FILE] [--cache], or quotes around the name"
        raise JllamaError(f"{wrong[0][:40]!r} is no part of a file's name: {remedy}")
    return name, cache


def _is_quoted(text: str) -> bool:
    return len(text) > 2 and text[0] == text[-1] and text[0] in "\"'"


def _path(text: str, usage: str, default: str = "") -> str:
    text = text or default
    if _is_quoted(text):
        text = text[1:-1]
    if not text or "\0" in text:
        raise JllamaError(f"give a file: {usage}")
    return text


ALL = (fork, switch, delete, tree, save, load)
