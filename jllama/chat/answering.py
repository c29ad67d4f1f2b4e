"""Answers to the messages of a branch: the prompt that asks, the text as it comes, and what is kept of it."""

import dataclasses
from collections.abc import Generator, Iterator, Sequence

from jllama.answer import Result, from_first_word
from jllama.chat.asking import has_more, kept, without_calls
from jllama.chat.branches import Branches, Message, Round
from jllama.chat.overflow import fit
from jllama.chat.transcript import Transcript
from jllama.engine.decoder import Progress
from jllama.loading import Model
from jllama.settings import GenerationSettings
from jllama.tools.functions import Toolbox

NOTHING = Message("assistant", "")  # how an answer begins that was not begun


class Answering(Branches):
    """Branches whose last question a model answers."""

    model: Model
    transcript: Transcript
    on_overflow: str
    progress: Progress | None
    toolbox: Toolbox

    @property
    def result(self) -> Result:
        """Of the current branch's last answer."""
        return self.branch.session.result

    @property
    def max_seq_len(self) -> int:
        return self.branch.session.max_seq_len

    @property
    def may_grow(self) -> bool:
        """Whether the model takes a longer context than this one."""
        return self.max_seq_len < self.model.config.context_length

    @property
    def context_used(self) -> int:
        """Tokens in the current branch's cache."""
        return len(self.branch.session.ids)

    def encode(self, messages: Sequence[Message], rounds: Sequence[Round] = ()) -> list[int]:
        """The prompt ids of these messages behind the current branch's system message.

        Args:
          messages: the last one is a question.
          rounds: of calls, which the answer to it has made already.
        """
        system = [Message("system", self.branch.system)] if self.branch.system else []
        everything: list[Message | Round] = [*system, *messages, *rounds]
        told = [one for each in everything for one in each.as_dicts()]
        return self.transcript.encode(told, self.toolbox.tools)

    def _answer(
        self,
        messages: tuple[Message, ...],
        settings: GenerationSettings,
        begun: Message = NOTHING,
        rounds: tuple[Round, ...] = (),
    ) -> Iterator[str]:
        yield from self.branch.streams.run(self._turn(messages, settings, begun, rounds))

    def _turn(
        self,
        messages: tuple[Message, ...],
        settings: GenerationSettings,
        begun: Message,
        rounds: tuple[Round, ...],
    ) -> Generator[str, None, None]:
        """The answer to `messages`, the last one a question; `begun` is how it begins, behind `rounds`."""
        branch, ids, tools = self.branch, self._ids(begun), self.toolbox.tools
        prompt, dropped = fit(
            lambda count: [*self.encode(messages[2 * count :], rounds), *ids],
            turns=len(messages) // 2,  # complete ones: the last message is a question
            dropped=branch.dropped,
            wanted=settings.max_new_tokens,
            size=self.max_seq_len,
            policy=self.on_overflow,
            what="the message and its answer are" if ids else "the message is",
            may_grow=self.may_grow,
        )
        prompt = prompt[: len(prompt) - len(ids)]
        free = settings.constraint is None  # else its end is the text's, and each blank counts
        ends = self.transcript.stops if free else ()
        settings = dataclasses.replace(settings, stop=(*settings.stop, *ends))
        before, result = branch.session.result, None
        try:
            shown, reader = self.transcript.shown(tools), self.transcript.reader(tools)
            pieces = branch.session.stream(prompt, settings, begun=ids, shown=shown, progress=self.progress)
            words = from_first_word(pieces, begun.content) if free else pieces
            yield from without_calls(words, reader, begun.content)
            result = branch.session.result
        except (GeneratorExit, KeyboardInterrupt):
            result = branch.session.result
            raise
        finally:
            if result and result is not before and has_more(result, begun.content):
                tokenizer = self.model.need_tokenizer()
                answer = kept(self.transcript, tokenizer, prompt, result, tools, rounds)
                branch.messages = (*messages, answer)
                branch.dropped = dropped

    def _ids(self, answer: Message) -> Sequence[int]:
        """Of an answer: its own, or those of its text."""
        if answer.token_ids is not None:
            return answer.token_ids
        return self.model.need_tokenizer().encode(answer.content, add_special=False, begins=False)
