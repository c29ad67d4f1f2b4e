"""What is asked: how many requests, of which lengths, and when."""

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from jllama.errors import JllamaError

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
MOST_TOKENS = 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The requests of a run, all of which `seed` decides."""

    model: str
    endpoint: str = "chat"  # a key of PATHS
    streamed: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    prompt_tokens: tuple[int, int] = (128, 128)  # shortest and longest
    answer_tokens: tuple[int, int] = (128, 128)
    requests: int = 64
    concurrency: int | None = 16  # requests at once; None: as `request_rate` says
    request_rate: float | None = None  # per second, on average
    seed: int = 0

    @property
    def path(self) -> str:
        """Where requests go to."""
        return PATHS[self.endpoint]

    def body(self, prompt: str, answer_tokens: int, streamed: bool | None = None) -> bytes:
        """Of one request, as JSON; `streamed`: instead of what the run says."""
        asked: dict[str, Any] = {"model": self.model, "max_tokens": answer_tokens}
        asked |= {"temperature": self.temperature}
        chat = self.endpoint == "chat"
        asked |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        if self.streamed if streamed is None else streamed:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(asked)

    def lengths(self, kind: str) -> Iterator[tuple[random.Random, int, int]]:
        """Without end: a source of words, and the tokens of a prompt and of its answer.

        Args:
          kind: those of another kind are others, so that no prompt of a warm-up is known in the run.
        """
        source = random.Random(f"{kind} {self.seed}")
        while True:
            yield source, source.randint(*self.prompt_tokens), source.randint(*self.answer_tokens)

    def moments(self) -> Iterator[float]:
        """Seconds from the beginning at which requests are sent: a Poisson process of `request_rate`."""
        assert self.request_rate is not None
        source, moment = random.Random(f"arrivals {self.seed}"), 0.0
        for _ in range(self.requests):
            yield moment
            moment += source.expovariate(self.request_rate)


def parse_range(text: str, flag: str) -> tuple[int, int]:
    """`128` or `64-256` as the shortest and the longest.

    Raises:
      JllamaError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,8})(?:-(\d{1,8}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= MOST_TOKENS:
        raise JllamaError(f"{flag}={text}: give a number of tokens or a range, as in {flag}=64-256")
    return low, high
