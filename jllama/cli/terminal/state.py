"""What a command of the chat may look at and change."""

from collections.abc import Iterable, Iterator

from jllama.chat.asking import MOST_ROUNDS
from jllama.chat.branches import Message
from jllama.chat.conversation import Conversation
from jllama.cli.terminal import wording
from jllama.cli.terminal.attachments import Attachment, with_files
from jllama.cli.terminal.screen import Screen
from jllama.cli.terminal.tool_calls import ToolRunner
from jllama.settings import GenerationSettings


class LeaveError(Exception):
    """The user wants to go."""


class Chat:
    """The conversation, how it is answered, where it shows and where it was saved."""

    def __init__(
        self,
        conversation: Conversation,
        settings: GenerationSettings,
        screen: Screen,
        *,
        file: str = "",
        tools: ToolRunner | None = None,
    ) -> None:
        """`file`: where the conversation came from; `tools`: runs what the model calls."""
        self.tools = tools
        self.conversation, self.settings, self.screen = conversation, settings, screen
        self.show_stats = False
        self.prefill = ""  # stands at the next prompt, to be edited
        self.attached: list[Attachment] = []  # files that go before the next message
        self.file = file  # of the last /save or /load
        self.inputs = 0  # messages and commands so far
        self._warned = ("", 0)  # a command that would drop turns, and at which input that was said
        self._saved = self._messages()

    def mark_saved(self, file: str) -> None:
        """From now on `file` holds the conversation as it is."""
        self.file, self._saved = file, self._messages()

    def may_drop(self, command: str, branch: str | None = None) -> bool:
        """Whether a command may drop what it would drop for good; says so once if turns are not saved.

        Args:
          command: as it is typed; the second in a row goes on.
          branch: the one that it drops; None: all of them.
        """
        lost = self.unsaved_turns(branch)
        if not lost or self._warned == (command, self.inputs - 1):
            return True
        self._warned = command, self.inputs
        self.screen.say(f"{wording.unsaved(lost)}{command} again drops {'it' if lost == 1 else 'them'}")
        return False

    def unsaved_turns(self, branch: str | None = None) -> int:
        """How many turns would be lost with one branch, or (None) with all."""
        stays = [name for name in self.conversation.branches if branch not in (None, name)]
        kept = {id(message) for message in [*self._saved, *self._messages(stays)]}
        return sum(message.role == "assistant" and id(message) not in kept for message in self._messages())

    def _messages(self, names: Iterable[str] | None = None) -> list[Message]:
        """Of these branches or (None) of all, what they share once."""
        branches = self.conversation.branches
        said = (
            message for name in (branches if names is None else names) for message in branches[name].messages
        )
        return [*{id(message): message for message in said}.values()]

    def ask(self, text: str) -> None:
        """Sends a message behind the files that wait for one, and shows the answer.

        Raises:
          JllamaError: see `answer`; the files wait on.
        """
        before = self.conversation.messages
        self.answer(self.conversation.ask(with_files(self.attached, text), self.settings))
        if self.conversation.messages is not before:
            self.attached.clear()

    def answer(self, pieces: Iterator[str], begun: str = "") -> None:
        """Shows an answer, and runs what it calls, until it calls nothing more.

        Args:
          pieces: of the answer.
          begun: what stood there before, if it goes on.

        Raises:
          JllamaError: the model could not answer; the conversation is as it was.
        """
        came, rounds = self._show(pieces, begun), 0
        while came and self.tools is not None and self.conversation.calls:
            rounds += 1
            if rounds > MOST_ROUNDS:
                self.screen.say(f"[{MOST_ROUNDS} rounds of calls: no more are run before your next message]")
                return
            results = self.tools.results(self.conversation.calls)
            came = self._show(self.conversation.reply(results, self.settings))

    def _show(self, pieces: Iterator[str], begun: str = "") -> bool:
        """Shows an answer, and what is worth saying about it; False if nothing came.

        Args:
          pieces: of the answer.
          begun: what stood there before, if it goes on.

        Raises:
          JllamaError: the model could not answer; the conversation is as it was.
        """
        dropped, before = self.conversation.branch.dropped, self.conversation.messages
        self.screen.stream(pieces, begun)
        if self.conversation.messages is before:
            self.screen.say("stopped before the first word: the conversation is as it was")
            return False
        if begun and self.conversation.messages[-1].content == begun:
            self.screen.say(f"[nothing more: {wording.reason(self.conversation)}]")
        if self.conversation.branch.dropped > dropped:
            self.screen.say(wording.dropped(self.conversation.branch.dropped))
        self._explain_end()
        if self.show_stats:
            self.screen.say(wording.statistics(self.conversation))
        return True

    def _explain_end(self) -> None:
        result = self.conversation.result
        reason = wording.reason(self.conversation)
        if result.finish_reason == "length":
            hint = f": /continue, or /set max_new_tokens={2 * self.settings.max_new_tokens}"
            self.screen.say(f"[{reason}{'' if 'context' in reason else hint}]")
        elif result.finish_reason == "interrupted":
            self.screen.say("[stopped]")
        elif not result.text.strip():
            self.screen.say("[an empty answer]")
