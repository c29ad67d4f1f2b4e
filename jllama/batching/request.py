"""What a user asks an engine for, checked before anything is computed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jllama.answer import Answer, stop_ids_of
from jllama.batching.stream import Stream
from jllama.engine.rows import Row, check_ids, key_of, sampling_of
from jllama.engine.scheduler import Job
from jllama.engine.slots import STOPS
from jllama.errors import JllamaError
from jllama.layers.sampling import LIKELIEST
from jllama.loading import Model, tokenizer_of
from jllama.settings import GenerationSettings, build_settings
from jllama.text.content_parts import Content
from jllama.text.prompt import Prompt, Variables, encode_prompt


class Request:
    """The arguments of `Engine.submit`."""

    def __init__(
        self,
        model: Model,
        max_seq_len: int,
        prompt: Prompt,
        settings: GenerationSettings | None = None,
        *,
        chat: bool | None = None,
        system: Content | None = None,
        chat_template_kwargs: Variables | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        **changes: Any,
    ) -> None:
        """Checks them; `max_seq_len`: positions of a slot, the others as in `Engine.submit`.

        Raises:
          JllamaError: a setting or the prompt can't be used.
        """
        self.tokenizer, self.vocab_size = tokenizer_of(model), model.config.vocab_size
        self.settings = build_settings(settings, **changes).seeded()
        words: Any = dict(chat=chat, system=system, chat_template_kwargs=chat_template_kwargs)
        self.ids = encode_prompt(self.tokenizer, prompt, **words)
        self.limit = min(self.settings.max_new_tokens, max_seq_len - len(self.ids))
        self.logprobs, self.prompt_logprobs = logprobs, prompt_logprobs
        check_ids(self.ids, self.settings, self.vocab_size)
        for name, count in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
            if count is not None and (type(count) is not int or not 0 <= count <= LIKELIEST):
                raise JllamaError(f"{name}={count!r} must be a whole number from 0 to {LIKELIEST}")

    def stream(self, cancel: Callable[[Stream], None]) -> Stream:
        """Where its answer will come; `cancel` ends it early."""
        answer = Answer(self.tokenizer, self.ids, self.settings)
        answer.result.logprobs = None if self.logprobs is None else []
        answer.result.prompt_logprobs = None if self.prompt_logprobs is None else [None]
        row = self._row()
        job = Job(prompt=row.prompt, whole=self.prompt_logprobs is not None)
        told: Any = dict(likeliest=self.logprobs or 0, likeliest_of_prompt=self.prompt_logprobs)
        return Stream(job, answer, row, cancel, **told)

    def _row(self) -> Row:
        stops = stop_ids_of(self.tokenizer, self.settings, self.vocab_size)
        if len(stops) > STOPS:
            raise JllamaError(f"{len(stops)} tokens would end the answer; at most {STOPS} may")
        return Row(
            prompt=np.asarray(self.ids, np.int32),
            sampling=sampling_of(self.settings, self.vocab_size),
            key=key_of(self.settings),
            limit=self.limit,
            stop_ids=stops,
            floor=self.settings.min_new_tokens,
            scores=self.logprobs is not None,
        )
