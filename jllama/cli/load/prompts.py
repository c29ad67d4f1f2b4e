"""Prompts of random words, as long as wanted by the server's own count."""

import random
from collections.abc import Mapping

import msgspec

from jllama.cli.load.reply import Answer, RequestError
from jllama.cli.load.target import Target
from jllama.cli.load.workload import Workload
from jllama.errors import JllamaError

OPENING = "Words:"  # what follows begins with a blank, whatever the word
WORDS = tuple(
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law".split()
)


class Prompts:
    """Makes them."""

    def __init__(self, fixed: int, costs: Mapping[str, float]) -> None:
        """Args: `fixed`: tokens of a prompt without a word; `costs`: of each word, with the blank before."""
        self.fixed, self._costs = fixed, costs
        self._words, self._dearest = list(costs), max(costs.values())

    def text(self, source: random.Random, tokens: int) -> str:
        """Random words that `source` draws, up to so many tokens with all that stands around them."""
        words, left = [OPENING], tokens - self.fixed + 1e-6
        while known := self._affordable(left):
            words.append(source.choice(known))
            left -= self._costs[words[-1]]
        return " ".join(words)

    def _affordable(self, left: float) -> list[str]:
        return self._words if left >= self._dearest else [w for w in self._words if self._costs[w] <= left]


async def calibrated(target: Target, work: Workload) -> Prompts:
    """Prompts for a server, which also shows that it answers.

    Raises:
      JllamaError: it refuses such requests, or the shortest prompt is too long.
    """
    fixed = await _prompt_tokens(target, work, OPENING)
    if work.prompt_tokens[0] < fixed:
        words = (
            f"what stands around a prompt's words takes {fixed} tokens: give more, or --endpoint=completions"
        )
        raise JllamaError(f"--prompt_tokens={work.prompt_tokens[0]}: {words}")
    return Prompts(fixed, await _costs(target, work) or await _average(target, work, fixed))


async def _prompt_tokens(target: Target, work: Workload, prompt: str) -> int:
    answer = Answer(streamed=False)
    try:
        await target.exchange("POST", work.path, work.body(prompt, 1, streamed=False), answer)
        return answer.usage().prompt_tokens
    except RequestError as error:
        raise refused(error) from None


async def _average(target: Target, work: Workload, fixed: int) -> dict[str, float]:
    """Where the server has no /tokenize: each word counts as many tokens as they have on average."""
    total = await _prompt_tokens(target, work, " ".join((OPENING, *WORDS))) - fixed
    return dict.fromkeys(WORDS, max(total / len(WORDS), 0.1))


async def _costs(target: Target, work: Workload) -> dict[str, float]:
    """The tokens of each word by /tokenize; empty where there is none."""
    for name, more in (("prompt", {"model": work.model}), ("content", {})):  # jllama, vLLM; llama.cpp
        before = await _counted(target, {name: OPENING, **more})
        if before:
            counts = [await _counted(target, {name: f"{OPENING} {word}", **more}) for word in WORDS]
            return {word: max(count - before, 1) for word, count in zip(WORDS, counts, strict=True)}
    return {}


async def _counted(target: Target, asked: dict[str, str]) -> int:
    """Tokens of a text; 0 if the server does not understand the question."""
    try:
        status, body = await target.ask("POST", "/tokenize", asked)
        found = msgspec.json.decode(body) if status == 200 else {}
        return len(found["tokens"])
    except (RequestError, msgspec.DecodeError, TypeError, KeyError):
        return 0


def refused(error: RequestError) -> JllamaError:
    """What to do when the server does not take the first requests."""
    words = str(error)
    if "ignore_eos" in words:
        return JllamaError(f"the server does not know ignore_eos: give --noignore_eos ({words})")
    if words.startswith(("HTTP 401", "HTTP 403")):
        return JllamaError(f"the server wants another key: give --api_key=KEY ({words})")
    if "chat template" in words and "HTTP 400" in words:
        return JllamaError(f"the server can't hold conversations: give --endpoint=completions ({words})")
    return JllamaError(f"the server does not answer a first request: {words}")
