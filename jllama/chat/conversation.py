"""A conversation with history, branches and undo: text only, no terminal. Every chat stands on this.

The history is what the model read and wrote, token by token, while the chat template writes it so: each turn
computes its new message alone. Where the template drops an answer's thoughts, its own text is read again.
"""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from jllama.answer import Result, from_first_word
from jllama.chat.branches import Branches, Message
from jllama.chat.overflow import check_policy, fit
from jllama.chat.transcript import Transcript, is_cut, kept_ids
from jllama.engine.decoder import Progress
from jllama.errors import JllamaError
from jllama.loading import Model, tokenizer_of
from jllama.session import Session
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content, as_text
from jllama.text.prompt import Variables


class Conversation(Branches):
    """Branches of messages, one of them current. Branches share their past; each has its own cache.

    Attributes:
      model: what answers.
      transcript: how the model reads the messages.
      on_overflow: what happens when the context is full: the oldest turns are dropped, or `ask` refuses.
      progress: shows how far a long prompt is read; see `Session.stream`.

    Example:
      >>> conversation = jllama.Conversation(model, system="Be brief.")
      >>> for piece in conversation.ask("Why is the sky blue?", max_new_tokens=16):
      ...     print(piece, end="", flush=True)
      >>> another = "".join(conversation.retry(max_new_tokens=16, temperature=0.8))
    """

    def __init__(
        self,
        model: Model,
        *,
        system: Content | None = None,
        transcript: str | None = None,
        max_seq_len: int | None = None,
        on_overflow: str = "drop_oldest",
        chat_template_kwargs: Variables | None = None,
    ) -> None:
        """An empty conversation on the branch `main`.

        Args:
          model: what answers.
          system: the system message.
          transcript: see `Transcript`; None takes the model's chat template, or a plain transcript.
          max_seq_len: positions of the cache; see `Session`.
          on_overflow: `drop_oldest` or `stop`.
          chat_template_kwargs: more variables for the template, in every turn.

        Raises:
          JllamaError: an argument can't be used with this model, or the model has no tokenizer.
        """
        super().__init__(Session(model, max_seq_len=max_seq_len))
        self.model = model
        self.transcript = Transcript(tokenizer_of(model), transcript, chat_template_kwargs)
        self.on_overflow = check_policy(on_overflow)
        self.progress: Progress | None = None
        if system:
            self.set_system(system)

    @property
    def result(self) -> Result:
        """Of the current branch's last answer."""
        return self.branch.session.result

    @property
    def max_seq_len(self) -> int:
        return self.branch.session.max_seq_len

    @property
    def context_used(self) -> int:
        """Tokens in the current branch's cache."""
        return len(self.branch.session.ids)

    def ask(self, text: Content, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Yields the answer to a new message, a text or a list of text parts, as it becomes certain.

        Closing the iterator early keeps what came. Whatever changes the branch meanwhile (the next `ask`,
        `undo`, `fork`, ...) closes it first. If nothing came, or an error ends it, the conversation is as it
        was. Settings are given as to `jllama.generate`: as an object, as keywords or both.

        Raises:
          JllamaError: with the first piece: the message is empty or too long, a setting can't be used, or the
            context is full and `on_overflow` is `stop`.
        """
        question, chosen = _question(text), _settings(settings, changes)
        self.branch.streams.end()
        yield from self._answer((*self.messages, question), chosen)

    def retry(self, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Like `ask`: another answer to the last message, from a new seed unless a keyword gives one.

        Raises:
          JllamaError: there is no answer yet.
        """
        chosen = _settings(settings, {"seed": None, **changes})
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to redo")
        yield from self._answer(self.messages[:-1], chosen)

    def resume(self, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Like `ask`: the last answer, which was cut, goes on from its own tokens. Yields what is new.

        The turn then has the whole text.

        Raises:
          JllamaError: there is no answer yet, it ended by itself, or the context has no room for more.
        """
        chosen = _settings(settings, changes)
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to continue")
        if not self.messages[-1].cut:
            raise JllamaError("nothing to continue: the last answer ended by itself")
        yield from self._answer(self.messages[:-1], chosen, begun=self.messages[-1])

    def edit(
        self, turn: int, text: Content, settings: GenerationSettings | None = None, **changes: Any
    ) -> Iterator[str]:
        """Like `ask`: asks turn number `turn` (from 1) anew with another text; later turns are forgotten.

        Raises:
          JllamaError: there is no such turn, or see `ask`.
        """
        question, chosen = _question(text), _settings(settings, changes)
        self.branch.streams.end()
        self._check_turn(turn, "nothing to edit")
        yield from self._answer((*self.messages[: 2 * turn - 2], question), chosen)

    def undo(self, count: int = 1) -> tuple[Message, ...]:
        """Takes back the last `count` turns, and returns their messages.

        Raises:
          JllamaError: there are not so many.
        """
        self.branch.streams.end()
        self._check_turn(count, "nothing to undo")
        kept = len(self.messages) - 2 * count
        undone = self.messages[kept:]
        self._set_messages(self.messages[:kept])
        return undone

    def clear(self) -> None:
        """Forgets the current branch's messages; the system message stays."""
        self.branch.streams.end()
        self._set_messages(())

    def set_system(self, text: Content | None) -> None:
        """Sets or (None) removes the system message of the current branch.

        Raises:
          JllamaError: the model's chat template takes none.
        """
        self.branch.streams.end()
        before, self.branch.system = self.branch.system, as_text(text or "") or None
        try:
            self.encode((Message("user", "Hello"),))
        except JllamaError:
            self.branch.system = before
            raise

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt ids of these messages behind the current branch's system message."""
        system = [Message("system", self.branch.system)] if self.branch.system else []
        return self.transcript.encode([message.as_dict() for message in (*system, *messages)])

    def _check_turn(self, turn: int, what: str) -> None:
        if not self.turns:
            raise JllamaError(f"{what}: there is no turn yet")
        if not 1 <= turn <= self.turns:
            raise JllamaError(f"turn {turn} does not exist: give a number from 1 to {self.turns}")

    def _answer(
        self, messages: tuple[Message, ...], settings: GenerationSettings, begun: Message | None = None
    ) -> Iterator[str]:
        yield from self.branch.streams.run(self._turn(messages, settings, begun or Message("assistant", "")))

    def _turn(
        self, messages: tuple[Message, ...], settings: GenerationSettings, begun: Message
    ) -> Generator[str, None, None]:
        """The answer to `messages`, whose last one is a question; `begun` is how it begins."""
        branch, ids = self.branch, self._ids(begun)
        prompt, dropped = fit(
            lambda count: [*self.encode(messages[2 * count :]), *ids],
            turns=len(messages) // 2,  # complete ones: the last message is a question
            dropped=branch.dropped,
            wanted=settings.max_new_tokens,
            size=self.max_seq_len,
            policy=self.on_overflow,
            what="the message and its answer are" if ids else "the message is",
        )
        prompt = prompt[: len(prompt) - len(ids)]
        settings = dataclasses.replace(settings, stop=(*settings.stop, *self.transcript.stops))
        before, result = branch.session.result, None
        try:
            pieces = branch.session.stream(prompt, settings, begun=ids, progress=self.progress)
            yield from from_first_word(pieces, begun.content)
            result = branch.session.result
        except (GeneratorExit, KeyboardInterrupt):
            result = branch.session.result
            raise
        finally:
            if result and result is not before and _has_more(result, begun.content):
                kept = kept_ids(self.model.need_tokenizer(), prompt, result)
                cut = is_cut(result, self.transcript.stops)
                branch.messages = (*messages, Message("assistant", result.text.lstrip(), kept, cut))
                branch.dropped = dropped

    def _ids(self, answer: Message) -> Sequence[int]:
        """Of an answer: its own, or those of its text."""
        if answer.token_ids is not None:
            return answer.token_ids
        return self.model.need_tokenizer().encode(answer.content, add_special=False, begins=False)

    def _set_messages(self, messages: tuple[Message, ...]) -> None:
        self.branch.messages = messages
        self.branch.dropped = min(self.branch.dropped, len(messages) // 2)


def _has_more(result: Result, begun: str) -> bool:
    """Whether the answer is worth keeping: an interrupted one only if it has more text than before."""
    return result.finish_reason != "interrupted" or len(result.text.strip()) > len(begun.rstrip())


def _settings(settings: GenerationSettings | None, changes: dict[str, Any]) -> GenerationSettings:
    if "system" in changes:
        raise JllamaError("a conversation's system message is given to Conversation(model, system=...)")
    return build_settings(settings, **changes)


def _question(content: Content) -> Message:
    text = as_text(content)
    if not text.strip():
        raise JllamaError("the message is empty: give a text")
    return Message("user", text)
