"""Many texts at once: `Engine` decodes together what any threads submit, each by settings of its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Self

from jllama import sharding
from jllama.answer import Answer, ending_ids
from jllama.batching.loop import Loop
from jllama.batching.stream import Item, Listener, Stream
from jllama.checkpoint.memory import check_cache
from jllama.engine.borders import Borders
from jllama.engine.rows import Row
from jllama.engine.scheduler import Scheduler, Stats
from jllama.engine.slot_warm_up import compile_all
from jllama.engine.slots import STOPS, Slots
from jllama.engine.step import BURST
from jllama.engine.turns import worth_copying
from jllama.errors import JllamaError
from jllama.grammar.constraint import constraint_for
from jllama.layers.sampling import LIKELIEST
from jllama.loading import Model, checked_max_seq_len, tokenizer_of
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content
from jllama.text.prompt import Prompt, Variables, encode_prompt


class Engine:
    """A model with slots: a context manager, whose one thread owns the device.

    Example:
      >>> with jllama.Engine(model, slots=4, max_seq_len=512) as engine:
      ...     streams = [engine.submit(text, max_new_tokens=16) for text in ("One", "Two", "Three")]
      ...     texts = [stream.result().text for stream in streams]
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 16,
        max_seq_len: int | None = None,
        max_queue: int = 1024,
        share_prefixes: bool = True,
        patient: bool = False,
    ) -> None:
        """Allocates the slots and starts the thread.

        Args:
          model: from `jllama.load`, with its tokenizer.
          slots: how many texts are decoded at once.
          max_seq_len: positions of a slot, prompt and answer together; the smaller of the model's context and
            2048 when None.
          max_queue: how many requests may wait for a slot.
          share_prefixes: a prompt that begins as another text in a slot copies what that has computed.
          patient: answers are wanted whole: prompts are read before any row goes on, so more tokens come in a
            second, but the first ones later.

        Raises:
          JllamaError: a number is out of range, or the slots do not fit in the device's memory.
        """
        tokenizer_of(model)
        self.model, self.slots, self.max_seq_len = model, slots, checked_max_seq_len(model, max_seq_len)
        for name, value in (("slots", slots), ("max_queue", max_queue)):
            if type(value) is not int or not 1 <= value <= 100_000:
                raise JllamaError(f"{name}={value!r} must be a whole number from 1 to 100000")
        config = model.config
        advice = f"use fewer slots than {slots}, a smaller max_seq_len or dtype bfloat16"
        whole: Any = dict(advice=advice, devices=sharding.devices_under(model.params))
        check_cache(config, model.dtype, batch=slots, max_len=self.max_seq_len, **whole)
        room = dict(slots=slots, max_len=self.max_seq_len)
        self._slots = Slots.empty(config, model.params, dtype=model.dtype, **room)
        borders = Borders.of(config)
        rules: Any = dict(
            max_queue=max_queue,
            share=share_prefixes,
            patient=patient,
            context=config.context_length,
            side=borders.side,
            worth_copying=worth_copying(self._slots.target),
        )
        scheduler = Scheduler(slots, self.max_seq_len, **rules)
        self._loop = Loop(self._slots, scheduler, borders)
        self._masked, self._compiles_masked = threading.Lock(), False

    def submit(self, prompt: Prompt, settings: GenerationSettings | None = None, **options: Any) -> Stream:
        """Asks for an answer; returns at once, from any thread.

        Args:
          prompt: a text, messages or token ids.
          settings: how to generate; None: `GenerationSettings()`.
          **options: any of these, by name, and fields of `GenerationSettings` that are to differ.
            chat: put a text into the chat template; None: where the model has one.
            system: a system message, for the chat template.
            chat_template_kwargs: more variables for it.
            logprobs: tell the log-probability of each token, and of so many of the likeliest (0 to 20), in
              `result().logprobs`; None: of none.
            prompt_logprobs: likewise of the prompt's tokens, in `result().prompt_logprobs`; its beginning is
              computed anew then, whatever a slot holds.
            shown: special tokens that are text in the answer.

        Raises:
          JllamaError: a setting or the prompt can't be used, the queue is full, or the engine is closed.
        """
        return self.submit_all([dict(prompt=prompt, settings=settings, **options)])[0]

    def submit_all(
        self, requests: Sequence[Mapping[str, Any]], listener: Listener | None = None
    ) -> list[Stream]:
        """`submit` of several requests: all are taken or none.

        Args:
          requests: the arguments of `submit` of each, by name.
          listener: called with each stream and what it hands out (a piece of text, an error, or None at the
            end), in the engine's thread, which waits for it.

        Raises:
          JllamaError: as `submit`.
        """
        streams = [self._stream(**request) for request in requests]
        for stream in streams:
            stream.listener = listener
        self._loop.submit(streams)
        return streams

    async def stream(
        self, prompt: Prompt, settings: GenerationSettings | None = None, **options: Any
    ) -> AsyncIterator[str]:
        """`submit` for asyncio: pieces of text as they come. Leaving the loop cancels the request."""
        pieces: asyncio.Queue[Item] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def hear(_: Stream, item: Item) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        (made,) = self.submit_all([dict(prompt=prompt, settings=settings, **options)], hear)
        try:
            while (item := await pieces.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            made.listener = None
            made.cancel()

    @property
    def stats(self) -> Stats:
        """How many requests run and wait, and what they have in common."""
        return self._loop.stats

    @property
    def error(self) -> BaseException | None:
        """What its thread died of; None while it lives, and after `close`."""
        return self._loop.error

    def warm_up(self) -> int:
        """Compiles every program that a request may need, before the first one asks; returns how many.

        Without it a program is compiled when it is first needed, and whoever runs waits for that. A GPU also
        runs them once: it loads a program and its graph when they first run. Programs for answers that must
        match are compiled when the first one is asked for, in the thread that asks.
        """
        count = compile_all(self._slots)
        if self._slots.target.on_gpu:
            self._run_once()
        self._compiles_masked = True
        return count

    def _warm_up_masked(self) -> None:
        """Of an engine that has warmed up: for the first answer that must match, which waits for it."""
        with self._masked:
            if self._compiles_masked:
                compile_all(self._slots, masked=True)
                self._compiles_masked = False

    def _run_once(self) -> None:
        """A prompt of each chunk's size, and a burst of 1, 2, 4, … texts; no two begin alike."""
        V, room = self.model.config.vocab_size, self.max_seq_len - 1
        counts = [*(1 << n for n in range(room.bit_length())), room]
        for size in sorted(set(map(self._slots.next_chunk, counts))):
            self.submit([size % V] * min(size, room), max_new_tokens=1, ignore_eos=True).result()
        for count in self._slots.buckets:
            options = dict(max_new_tokens=min(2 * BURST, room), ignore_eos=True)
            for stream in self.submit_all([dict(prompt=[row % V], **options) for row in range(count)]):
                stream.result()

    def close(self) -> None:
        """Ends all requests, with what came, and the thread. Does nothing the second time."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self,
        prompt: Prompt,
        settings: GenerationSettings | None = None,
        *,
        chat: bool | None = None,
        system: Content | None = None,
        chat_template_kwargs: Variables | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        shown: Collection[int] = (),
        **changes: Any,
    ) -> Stream:
        """What `submit` asks for, checked before anything is computed."""
        for name, count in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
            if count is not None and (type(count) is not int or not 0 <= count <= LIKELIEST):
                raise JllamaError(f"{name}={count!r} must be a whole number from 0 to {LIKELIEST}")
        chosen, tokenizer = build_settings(settings, **changes).seeded(), tokenizer_of(self.model)
        words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
        ids = encode_prompt(tokenizer, prompt, **words)
        given: Any = dict(ends=ending_ids(tokenizer, chosen), vocab_size=self.model.config.vocab_size)
        must_match = constraint_for(tokenizer, given["vocab_size"], chosen, given["ends"])
        if must_match is not None:
            self._warm_up_masked()
        given |= dict(max_len=self.max_seq_len, scores=logprobs is not None, constraint=must_match)
        row = Row.of(ids, chosen, **given)
        if len(row.stop_ids) > STOPS:
            raise JllamaError(f"{len(row.stop_ids)} tokens would end the answer; at most {STOPS} may")
        told: Any = dict(logprobs=logprobs, prompt_logprobs=prompt_logprobs)
        return Stream(Answer(tokenizer, ids, chosen, shown=shown), row, self._loop.cancel, **told)
