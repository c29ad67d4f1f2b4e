"""Text in, text out: one conversation with its cache. Every front end stands on this."""

import dataclasses
import weakref
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jllama import kernels, sharding
from jllama.answer import Answer, OneAtATime, Result, ending_ids
from jllama.checkpoint.memory import check_cache
from jllama.engine import leading
from jllama.engine.borders import Borders
from jllama.engine.decoder import Progress, raise_first, read_prompt
from jllama.engine.rows import Row
from jllama.engine.scheduler import check_fits
from jllama.engine.slot_warm_up import prepare_beginning
from jllama.engine.slots import STOPS, Slots
from jllama.engine.state import Burst, DecodeState
from jllama.errors import JllamaError
from jllama.grammar.constraint import constraint_for, masks_for
from jllama.layers.cache import KVCache
from jllama.loading import Model, checked_max_seq_len, tokenizer_of
from jllama.machine import devices
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content
from jllama.text.prompt import Prompt, Variables, encode_prompt


class Session:
    """A key-value cache and the token ids that it holds.

    A prompt that begins with those ids reuses them: only what is new is computed.

    Attributes:
      ids: what the cache holds.
      result: what became of the last request; it grows with the text.

    Example:
      >>> session = jllama.Session(model, max_seq_len=64)
      >>> for piece in session.stream("Once upon a time", chat=False, max_new_tokens=16):
      ...     print(piece, end="", flush=True)
      >>> print(session.result.finish_reason)
    """

    def __init__(self, model: Model, *, max_seq_len: int | None = None) -> None:
        """Reserves nothing yet.

        Args:
          model: what answers; it has its tokenizer.
          max_seq_len: positions of the cache; the smaller of the model's context and 2048 when None.

        Raises:
          JllamaError: `max_seq_len` is not within the model's context, or the model has no tokenizer.
        """
        self._tokenizer = tokenizer_of(model)
        self.model, self.max_seq_len = model, checked_max_seq_len(model, max_seq_len)
        self.ids: list[int] = []
        self.result = Result()
        self._cache: KVCache | None = None
        self._first = True  # text
        self._name = leading.number()  # by which other processes know the cache
        weakref.finalize(self, leading.forget, self._name)
        self._borders = Borders.of(model.config)
        self._streams = OneAtATime()
        self._sharers: weakref.WeakSet[Session] = weakref.WeakSet([self])  # who holds these very arrays

    def stream(
        self,
        prompt: Prompt,
        settings: GenerationSettings | None = None,
        *,
        chat: bool | None = None,
        system: Content | None = None,
        chat_template_kwargs: Variables | None = None,
        begun: Sequence[int] = (),
        shown: Collection[int] = (),
        progress: Progress | None = None,
        **changes: Any,
    ) -> Generator[str, None, None]:
        """Yields text as soon as it is certain; `self.result` grows with it and is complete at the end.

        Closing the iterator early (or an exception such as Ctrl-C) keeps what came, in the cache too. So does
        whatever needs the cache meanwhile: a second stream, `fork` and `adopt` end the one that runs.

        Args:
          prompt: a text, messages or token ids; `chat` and `system` as in `jllama.generate`.
          settings: how to generate; None: `GenerationSettings()`.
          chat: put a text into the chat template; None: where the model has one.
          system: a system message, for the chat template.
          chat_template_kwargs: more variables for it.
          begun: token ids of an answer that was cut and goes on: only what is new is yielded, and `result`
            has the whole text and all ids.
          shown: special tokens that are text in the answer.
          progress: shows how far a long prompt is read, such as `jllama.machine.progress.PromptBar`.
          **changes: fields of `GenerationSettings` that are to differ from `settings`.

        Raises:
          JllamaError: before the first piece: a setting or the prompt can't be used or leaves no room for
            an answer; it or `logit_bias` holds an id that is not in the vocabulary.
        """
        chosen = build_settings(settings, **changes).seeded()
        words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
        ids = encode_prompt(self._tokenizer, prompt, **words)
        answer = partial(Answer, self._tokenizer, ids, chosen, list(begun), shown)
        row = self._row([*ids, *begun], chosen)
        if row.constraint is not None:
            row.constraint.follow(begun)
            raise_first([row.constraint])
        return self._streams.run(self._answer(answer, row, progress))

    def _row(self, prompt: Sequence[int], settings: GenerationSettings) -> Row:
        config = self.model.config
        remedy = f"shorten it or raise max_seq_len (the model's context: {config.context_length})"
        check_fits(len(prompt), self.max_seq_len, remedy, config.context_length)
        ends = ending_ids(self._tokenizer, settings)
        given: Any = dict(ends=ends, vocab_size=config.vocab_size, max_len=self.max_seq_len)
        must_match = constraint_for(self._tokenizer, config.vocab_size, settings, ends)
        return Row.of(prompt, settings, constraint=must_match, **given)

    def _answer(
        self, begin: Callable[[], Answer], row: Row, progress: Progress | None
    ) -> Generator[str, None, None]:
        answer = begin()
        self.result = answer.result
        sound, (slots, first) = True, self._start(row, progress)
        try:
            for burst in self._borders.bursts(slots, first, row):
                yield from answer.push(burst[0].tolist())
                if answer.finished:
                    return
            yield from answer.end()
        except JllamaError:
            sound = False  # NaN in the cache would spoil whatever follows
            raise
        finally:
            if sound:
                new = answer.result.token_ids[answer.result.begun_tokens : -1]
                self._keep(slots, [*row.prompt.tolist(), *new])

    def fork(self) -> "Session":
        """An independent copy: both go on from here, neither sees the other.

        It costs nothing: they share the cache, and who generates next while both live copies it first.
        """
        self._streams.end()
        twin = Session(self.model, max_seq_len=self.max_seq_len)
        twin.ids, twin.result = list(self.ids), dataclasses.replace(self.result)
        twin._cache, twin._sharers = self._cache, self._sharers
        self._sharers.add(twin)
        if twin._cache is not None:
            twin._tell(leading.RESUMED, self._name)
        return twin

    def snapshot(self) -> KVCache | None:
        """The cache, with as many valid positions as there are ids; None before the first answer and in one,
        and where several processes hold it.

        The arrays are the session's own: read them before it generates again.
        """
        cache = self._cache
        if leading.followed():
            return None
        return cache and dataclasses.replace(cache, length=jnp.array([len(self.ids)], np.int32))

    def adopt(self, ids: Sequence[int], cache: KVCache) -> None:
        """Goes on from a cache that holds `ids`, as `snapshot` gave it. It is the session's from now on."""
        self._streams.end()
        if not leading.followed():  # the others do not have it: the text is read anew
            self._cache, self.ids = cache, list(ids)
        self._leave_sharers()

    def _start(self, row: Row, progress: Progress | None) -> tuple[Slots, Burst]:
        """Reads what the cache does not hold yet and samples the first token."""
        reused = self._borders.reusable(self.ids, row.prompt)
        state = DecodeState.of_one(self._take_cache(reused))
        slots = Slots(self.model.config, self.model.params, state)
        slots.name = self._name
        preparing = self._preparing(slots, row)
        logits = read_prompt(slots, row.prompt, reused, progress=progress)
        preparing()
        self.result.reused_tokens = reused
        row = self._borders.stopping(row)
        if row.constraint is None:
            return slots, slots.begin_together([(0, row, 0)], logits)
        masks = masks_for([row.constraint])
        raise_first([row.constraint])
        return slots, slots.begin_together([(0, row, 0)], logits, masks)

    def _preparing(self, slots: Slots, row: Row) -> Callable[[], None]:
        """Of the first text: the program behind the prompt's is made ready meanwhile; what waits for that."""
        first, self._first = self._first, False
        if not first or row.constraint is not None or not devices.keeps_programs():
            return lambda: None
        return prepare_beginning(slots, row).join

    def _take_cache(self, count: int) -> KVCache:
        """The cache, for its first `count` positions. It is the engine's now: until `_keep` we have none."""
        cache, self._cache, self.ids = self._cache, None, []
        if len(self._sharers) > 1:
            cache = jax.tree.map(jnp.copy, cache) if count else None
            self._leave_sharers()
            self._tell(leading.COPIED if count else leading.FORGOTTEN, self._name)
        if cache is None:
            self._tell(leading.NEW)
            config, dtype = self.model.config, self.model.dtype
            params: Any = self.model.params
            room: Any = dict(batch=1, max_len=self.max_seq_len)
            check_cache(config, dtype, **room, devices=sharding.devices_under(params))
            return kernels.empty_cache(config, params, **room, dtype=dtype)
        self._tell(leading.RESUMED, self._name)
        return cache

    def _tell(self, operation: int, *source: int) -> None:
        leading.tell(self._name, operation, *source, 0, self.max_seq_len, STOPS)

    def _keep(self, slots: Slots, ids: list[int]) -> None:
        """Takes the cache back; what the device computed beyond the answer is forgotten.

        Args:
          slots: have the cache.
          ids: what is in it: not the answer's last token, which was sampled but never fed.
        """
        cache = slots.state.cache
        if any(array.is_deleted() for array in jax.tree.leaves(cache)):
            return  # Ctrl-C fell between a step and the assignment of its result: start from nothing
        if len(ids) in self._borders.lengths:
            return  # it may just have been read anew, as a longer text, and whatever goes on from it will be
        self._cache, self.ids = cache, ids

    def _leave_sharers(self) -> None:
        self._sharers.discard(self)
        self._sharers = weakref.WeakSet([self])


def room_for(model: Model, prompt_tokens: int, settings: GenerationSettings) -> int:
    """Cache positions for a request: a power of two from 2048 on, within the model's context.

    Few sizes, because each is compiled anew.
    """
    need = max(2048, prompt_tokens + settings.max_new_tokens)
    return min(1 << (need - 1).bit_length(), model.config.context_length)
