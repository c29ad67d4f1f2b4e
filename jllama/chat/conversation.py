"""A conversation with history, branches and undo: text only, no terminal. Every chat stands on this.

The history is what the model read and wrote, token by token, while the chat template writes it so: each turn
computes its new message alone. Where the template drops an answer's thoughts, its own text is read again.
"""

import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jllama.chat.answering import Answering
from jllama.chat.asking import NOT_RUN, answered, question, settings_of
from jllama.chat.branches import Message
from jllama.chat.overflow import check_policy
from jllama.chat.transcript import Transcript
from jllama.engine.decoder import Progress
from jllama.errors import JllamaError
from jllama.loading import Model, tokenizer_of
from jllama.session import Session
from jllama.settings import GenerationSettings
from jllama.text.content_parts import Content, as_text
from jllama.text.prompt import Variables
from jllama.tools.definitions import Call
from jllama.tools.functions import Toolbox


class Conversation(Answering):
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
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        """An empty conversation on the branch `main`.

        Args:
          model: what answers.
          system: the system message.
          transcript: see `Transcript`; None takes the model's chat template, or a plain transcript.
          max_seq_len: positions of the cache; see `Session`.
          on_overflow: `drop_oldest` or `stop`.
          chat_template_kwargs: more variables for the template, in every turn.
          tools: functions with type hints that the model may call. None is run unless you `run` it.

        Raises:
          JllamaError: an argument can't be used with this model, or the model has no tokenizer; a function's
            hint can't be told to a model.
        """
        super().__init__(Session(model, max_seq_len=max_seq_len))
        self.model = model
        self.transcript = Transcript(tokenizer_of(model), transcript, chat_template_kwargs)
        self.on_overflow = check_policy(on_overflow)
        self.progress: Progress | None = None
        self.toolbox = Toolbox(tools)
        self.transcript.reader(self.toolbox.tools)  # refuses a model whose calls are not known here
        if system:
            self.set_system(system)

    def ask(self, text: Content, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Yields the answer to a new message, a text or a list of text parts, as it becomes certain.

        Closing the iterator early keeps what came. Whatever changes the branch meanwhile (the next `ask`,
        `undo`, `fork`, ...) closes it first. If nothing came, or an error ends it, the conversation is as it
        was. Settings are given as to `jllama.generate`: as an object, as keywords or both.

        Raises:
          JllamaError: with the first piece: the message is empty or too long, a setting can't be used, or the
            context is full and `on_overflow` is `stop`.
        """
        asked, chosen = question(text), settings_of(settings, changes)
        self.branch.streams.end()
        yield from self._answer((*self._settled(), asked), chosen)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Those that the last answer made and that wait for what they give: `run` them, and `reply`."""
        return self.messages[-1].calls if self.messages else ()

    def run(self, call: Call) -> str:
        """Calls the function; gives what it returned, or what went wrong, as the model is to read it."""
        if not isinstance(call, Call):
            raise JllamaError(f"call must be one of `conversation.calls`, not {type(call).__name__}")
        return self.toolbox.run(call)[0]

    def reply(
        self, results: Sequence[str], settings: GenerationSettings | None = None, **changes: Any
    ) -> Iterator[str]:
        """Like `ask`: the answer goes on with what its calls gave. It may make calls again.

        Raises:
          JllamaError: there are no calls that wait, or not so many.
        """
        chosen = settings_of(settings, changes)
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to reply to")
        if isinstance(results, str) or not isinstance(results, Iterable):
            raise JllamaError(f"results must be a list of texts, not {type(results).__name__}")
        rounds = answered(self.messages[-1], tuple(results))
        yield from self._answer(self.messages[:-1], chosen, rounds=rounds)

    def retry(self, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Like `ask`: another answer to the last message, from a new seed unless a keyword gives one.

        Raises:
          JllamaError: there is no answer yet.
        """
        chosen = settings_of(settings, {"seed": None, **changes})
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to redo")
        yield from self._answer(self.messages[:-1], chosen)

    def resume(self, settings: GenerationSettings | None = None, **changes: Any) -> Iterator[str]:
        """Like `ask`: the last answer, which was cut, goes on from its own tokens. Yields what is new.

        The turn then has the whole text.

        Raises:
          JllamaError: there is no answer yet, it ended by itself, or the context has no room for more.
        """
        chosen = settings_of(settings, changes)
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to continue")
        if not self.messages[-1].cut:
            raise JllamaError("nothing to continue: the last answer ended by itself")
        begun = self.messages[-1]
        yield from self._answer(self.messages[:-1], chosen, begun, begun.rounds)

    def edit(
        self, turn: int, text: Content, settings: GenerationSettings | None = None, **changes: Any
    ) -> Iterator[str]:
        """Like `ask`: asks turn number `turn` (from 1) anew with another text; later turns are forgotten.

        Raises:
          JllamaError: there is no such turn, or see `ask`.
        """
        asked, chosen = question(text), settings_of(settings, changes)
        self.branch.streams.end()
        self._check_turn(turn, "nothing to edit")
        yield from self._answer((*self.messages[: 2 * turn - 2], asked), chosen)

    def undo(self, count: int = 1) -> tuple[Message, ...]:
        """Takes back the last `count` turns, and returns their messages.

        Raises:
          JllamaError: there are not so many.
        """
        self.branch.streams.end()
        self._check_turn(self.turns, "nothing to undo")
        if not (isinstance(count, numbers.Integral) and 1 <= count <= self.turns):
            most = "1 turn" if self.turns == 1 else f"1 to {self.turns} turns"
            raise JllamaError(f"undo takes back {most} here, not {count!r}")
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

    def _settled(self) -> tuple[Message, ...]:
        """The messages; calls that nobody ran are told so."""
        if not self.calls:
            return self.messages
        last = self.messages[-1]
        rounds = answered(last, (NOT_RUN,) * len(last.calls))
        return (*self.messages[:-1], Message("assistant", "", rounds=rounds))

    def _check_turn(self, turn: int, what: str) -> None:
        if not self.turns:
            raise JllamaError(f"{what}: there is no turn yet")
        if not isinstance(turn, numbers.Integral):
            raise JllamaError(f"a turn is given by its number, not by a {type(turn).__name__}")
        if not 1 <= turn <= self.turns:
            raise JllamaError(f"turn {turn} does not exist: give a number from 1 to {self.turns}")

    def _set_messages(self, messages: tuple[Message, ...]) -> None:
        self.branch.messages = messages
        self.branch.dropped = min(self.branch.dropped, len(messages) // 2)
